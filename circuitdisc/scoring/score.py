"""`score`: judge a circuit on the examples that it was found on and, above all, on those that it was not."""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import N_RANDOM
from circuitdisc.circuit import Circuit
from circuitdisc.controls import Controls, random_circuits
from circuitdisc.engine.patching import Patching
from circuitdisc.identity import identity_of
from circuitdisc.metrics import OUTPUT, Metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, Option, takes
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Memo
from circuitdisc.scoring.base import Score, Scores, judging_ablation
from circuitdisc.scoring.faithfulness import TARGET, faithfulness_scores
from circuitdisc.scoring.judging import ByMetric, check_graph
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import SPLITS, Task
from circuitdisc.tasks.measured import beside, is_numeric, mean_targets, metric_for


class Scoring(Drawing, ByMetric, total=False):
    """How a circuit is scored."""

    n_random: Annotated[int, Option(20, "random circuits matched with this one; fewer where there are no more.", N_RANDOM)]
    journal: Annotated[
        str | Path | None,
        Option(
            None,
            "a file for the values of each circuit as they come. Called again with it, a killed score goes on where it was, "
            "bit for bit; None keeps nothing.",
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
    controls = random_circuits(circuit, n_random, np.random.default_rng(seed))
    masks = masks_of(circuit, controls)
    metrics = beside(model, measure, "accuracy", *(("pair_accuracy",) if task.has_wrong else ()), "kl")
    numeric = is_numeric((*task.train, *task.heldout))
    metrics += [OUTPUT] if numeric else []
    patching = Patching(model, cut, task.train, memory=given["memory"])
    units = _units(model, task, circuit, given, cut, measure)
    scores: list[Score] = []
    means: dict[str, dict[str, float]] = {}
    sizes = {split: len(task.split(split)) for split in SPLITS if task.split(split)}
    title = f"score: {len(masks)} circuits on {' + '.join(map(str, sizes.values()))} examples"
    n_steps = sum(patching.n_chunks(task.split(split)) for split in sizes) * len(masks)
    with progress_bar(n_steps, title, "run", given["progress"]) as bar, closing(units):
        for split in sizes:

            def keep(unit: str, compute: Callable[[], Any], split: str = split) -> Any:
                return units.get(f"{split}, {unit}", compute)

            values = patching.evaluate(task.split(split), masks, metrics, bar.update, keep)
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
