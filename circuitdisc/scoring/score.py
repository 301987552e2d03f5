"""`score`: judge a circuit on the examples that it was found on and, above all, on those that it was not."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from circuitdisc.ablation import Ablation
from circuitdisc.checks import CONFIDENCE, N_RANDOM, SEED, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.controls import Controls, random_circuits
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import OUTPUT, Metric
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.scoring.base import Score, Scores, judging_ablation
from circuitdisc.scoring.faithfulness import TARGET, faithfulness_scores
from circuitdisc.scoring.judging import check_graph
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import SPLITS, Task
from circuitdisc.tasks.measured import beside, is_numeric, mean_targets, metric_for


@bounded(n_random=N_RANDOM, confidence=CONFIDENCE, seed=SEED)
def score(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    ablation: str | Ablation | dict[str, Any] | None = None,
    metric: str | Metric | None = None,
    n_random: int = 20,
    confidence: float = 0.95,
    seed: int = 0,
    memory: str | int = "4GiB",
    progress: bool = False,
) -> Scores:
    """Score a circuit on both splits, with intervals (`circuitdisc/stats.py`) and random controls (`circuitdisc/controls.py`).

    Args:
        ablation: what cut edges carry; None takes what the circuit was found with. Means are those of the train split.
        metric: None takes what the circuit was found with.
        n_random: random circuits matched with this one; fewer where there are no more.
        confidence: coverage of the intervals.
        seed: of the random circuits and the bootstrap.

    Raises:
        GraphMismatch: the circuit belongs to another architecture.
        BadSetting: no ablation is known, or a number is out of its bounds.
    """
    check_graph(model, circuit)
    cut = judging_ablation(ablation, circuit.provenance)
    measure = metric_for(model, task, metric, circuit.provenance.metric)
    controls = random_circuits(circuit, n_random, np.random.default_rng(seed))
    masks = masks_of(circuit, controls)
    metrics = beside(model, measure, "accuracy", *(("pair_accuracy",) if task.has_wrong else ()), "kl")
    numeric = is_numeric((*task.train, *task.heldout))
    metrics += [OUTPUT] if numeric else []
    patching = Patching(model, cut, task.train, memory=memory)
    scores: list[Score] = []
    means: dict[str, dict[str, float]] = {}
    n_steps = sum(patching.n_chunks(task.split(split)) for split in SPLITS if task.split(split)) * len(masks)
    with progress_bar(n_steps, "score", "run", progress) as bar:
        for split in SPLITS:
            if not task.split(split):
                continue
            values = patching.evaluate(task.split(split), masks, metrics, bar.update)
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
                confidence=confidence,
                seed=seed,
            )
    n_heads = model.graph.n_layers * model.graph.n_heads
    return Scores(circuit.n_edges, model.graph.n_edges, len(circuit.heads()), n_heads, means, tuple(scores))


def masks_of(circuit: Circuit, controls: Controls) -> dict[str, Bool[np.ndarray, "R S"]]:
    """`full`, `circuit`, `empty` and each random circuit."""
    graph = circuit.graph
    empty = Circuit.from_heads(graph, []) if circuit.granularity == "head" else Circuit.empty(graph)
    drawn = {f"random{index}": one.mask for index, one in enumerate(controls.circuits)}
    return {"full": graph.edge_mask, "circuit": circuit.mask, "empty": empty.mask, **drawn}
