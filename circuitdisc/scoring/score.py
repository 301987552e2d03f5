"""`score`: judge a circuit on the examples that it was found on and, above all, on those that it was not."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import N_RANDOM_OR_AUTO
from circuitdisc.circuit import Circuit
from circuitdisc.controls import Controls, random_circuits
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.identity import identity_of
from circuitdisc.metrics import OUTPUT, Metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, Option, takes
from circuitdisc.progress import work_bar
from circuitdisc.runs import Memo
from circuitdisc.scoring.base import Score, Scores, judging_ablation
from circuitdisc.scoring.faithfulness import TARGET, faithfulness_scores
from circuitdisc.scoring.judging import ByMetric, check_graph
from circuitdisc.scoring.work import AUTO, READY, CircuitRuns, Pace, Works, circuit_of, n_controls, n_examples, tell
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import SPLITS, Task
from circuitdisc.tasks.measured import beside, is_numeric, mean_targets, metric_for


class Scoring(Drawing, ByMetric, total=False):
    """How a circuit is scored."""

    n_random: Annotated[
        int | Literal["auto"],
        Option(
            AUTO,
            "random circuits matched with this one; fewer where there are no more. `auto`: 20, or as many as cost no more than "
            "`search`, and 5 at least (`n_controls`).",
            N_RANDOM_OR_AUTO,
        ),
    ]
    search: Annotated[Cost | None, Option(None, "what the search has cost (`Discovery.cost`); None: not known.")]
    journal: Annotated[
        str | Path | None,
        Option(
            None,
            "a file for the values of each circuit as they come. Called again with it, a killed score goes on where it was, "
            "bit for bit; None keeps nothing.",
        ),
    ]
    on_pace: Annotated[
        Callable[[float, Works], object] | None,
        Option(
            None,
            "called once with the seconds of a circuit on an example, and the work that is left; None: with `progress`, "
            "this and about how long it takes is said on stderr, where it is more than a few seconds.",
        ),
    ]


@takes(Scoring)
def score(model: Model, task: Task, circuit: Circuit, **options: Unpack[Scoring]) -> Scores:
    """Score a circuit on both splits, with intervals (`circuitdisc/stats.py`) and random controls (`circuitdisc/controls.py`).

    Args:
        metric: None takes what the circuit was found with.
        seed: of the random circuits and the bootstrap.

    Raises:
        GraphMismatch: the circuit belongs to another architecture.
        BadSetting: no ablation is known, or a number is out of its bounds.
        BadRun: the journal was begun with other weights, examples, settings or another circuit.
    """
    given: Any = options
    seed, n_random = given["seed"], given["n_random"]
    check_graph(model, circuit)
    cut = judging_ablation(given["ablation"], circuit.provenance)
    measure = metric_for(model, task, given["metric"], circuit.provenance.metric)
    n_random = n_controls(model, task, given["search"]) if n_random == AUTO else n_random
    controls = random_circuits(circuit, n_random, np.random.default_rng(seed))
    masks = masks_of(circuit, controls)
    metrics = beside(model, measure, "accuracy", *(("pair_accuracy",) if task.has_wrong else ()), "kl")
    numeric = is_numeric((*task.train, *task.heldout))
    metrics += [OUTPUT] if numeric else []
    patching = Patching(model, cut, task.train, memory=given["memory"])
    units = _units(model, task, circuit, {**given, "n_random": n_random}, cut, measure)
    scores: list[Score] = []
    means: dict[str, dict[str, float]] = {}
    sizes = {split: len(task.split(split)) for split in SPLITS if task.split(split)}
    title = f"score: {len(masks)} circuits on {' + '.join(map(str, sizes.values()))} examples"
    # the model's own values and none at all take next to no time, but examples are first made ready
    weights = dict.fromkeys(masks, 1.0) | {"full": 1 + READY, "empty": 0.0}
    work = CircuitRuns(len(masks), sum(sizes.values()), sum(weights.values()) / len(masks))
    with work_bar(work.runs, title, given["progress"]) as bar, closing(units):

        def told(seconds: float) -> None:
            left = [replace(work, share=work.share * bar.total / work.runs)]
            if given["on_pace"] is not None:
                given["on_pace"](seconds, left)
            elif given["progress"]:
                tell({"score": left}, seconds)

        pace = Pace(len(masks) - 2, told)
        for split in sizes:

            def keep(unit: str, compute: Callable[[], Any], split: str = split) -> Any:
                name, circuit = f"{split}, {unit}", circuit_of(unit)
                known = units.knows(name)
                values = units.get(name, partial(pace.timed, compute) if weights[circuit] == 1 else compute)
                runs = weights[circuit] * n_examples(values)
                if known:
                    bar.total -= runs
                else:
                    bar.update(runs)
                return values

            values = patching.evaluate(task.split(split), masks, metrics, keep=keep)
            arrays = {name: {m: v.double().cpu().numpy() for m, v in found.items()} for name, found in values.items()}
            if numeric:
                right = mean_targets(task.split(split))
                arrays = {name: {**by_metric, TARGET: right} for name, by_metric in arrays.items()}
            means[split] = {which: float(arrays[which][measure.name].mean()) for which in ("full", "circuit", "empty")}
            scores += faithfulness_scores(
                arrays,
                [name for name in masks if name.startswith("random")],
                split=split,
                metric=measure.name,
                ablation=cut.label,
                over=partition_of(task.split(split)),
                matched=controls.words,
                confidence=given["confidence"],
                seed=seed,
            )
    n_heads = model.graph.n_layers * model.graph.n_heads
    return Scores(circuit.n_edges, model.graph.n_edges, len(circuit.heads()), n_heads, means, tuple(scores))


def _units(model: Model, task: Task, circuit: Circuit, given: Mapping[str, Any], ablation: Ablation, metric: Metric) -> Memo:
    """What is finished, bound to all that the values depend on; the budget, which decides on the chunks, among it."""
    if given["journal"] is None:
        return Memo(None)
    settings = {name: given[name] for name in ("n_random", "seed", "memory")}
    settings |= {"ablation": ablation.label, "metric": metric.name}
    examples = {f"{split} examples": task.split(split) for split in SPLITS}
    return Memo(given["journal"], identity_of(model, examples, settings, circuit))


def masks_of(circuit: Circuit, controls: Controls) -> dict[str, Bool[np.ndarray, "R S"]]:
    """`full`, `circuit`, `empty` and each random circuit."""
    graph = circuit.graph
    empty = Circuit.from_heads(graph, []) if circuit.granularity == "head" else Circuit.empty(graph)
    drawn = {f"random{index}": one.mask for index, one in enumerate(controls.circuits)}
    return {"full": graph.edge_mask, "circuit": circuit.mask, "empty": empty.mask, **drawn}
