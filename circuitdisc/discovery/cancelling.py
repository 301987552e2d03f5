"""Whether what a search decides by cancels in the mean, so that it saw nothing where there is something to see.

A search that decides by the mean of a metric over examples is blind to changes that are large on single examples and add up to
0. Mean ablation does that to any metric that is linear in what is cut: the differences to a mean add up to 0 by construction.
Corrupted prompts that are the clean ones in another order do it under resample ablation.

It is measured, not known by name: the change of each example when what the search gave up is cut, its mean over examples beside
its mean size, for the metric of the search and for others. It is measured only where a search found nothing, that is where its
circuit is empty or all of its scores are near 0.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery
from circuitdisc.engine.patching import Patching, Values
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import METRICS, Metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import check_metric

CANCELS = 0.1
"""Changes cancel if their mean is below this share of their mean size."""
SEES = 0.5
"""A metric sees what is cut if the mean of its changes is at least this share of their mean size."""
NEAR_NOTHING = 0.02
"""The largest score is looked into if it is below this share of the metric's spread over examples."""
ROUNDING = 1e-5
"""Changes below this share of the metric's size are rounding."""
OTHERS = ("kl", "log_prob", "prob_diff", "logit_diff", "squared_error")
"""Metrics that may see what another does not."""
N_EDGES = 4
"""Edges, those with the largest scores, that are cut one by one to look."""


def cancelling_note(
    model: Model,
    task: Task,
    ablation: Ablation,
    metric: Metric,
    discovery: Discovery,
    algorithm: str,
    by_mean: bool,
    full: Float[Tensor, "B"] | None = None,
    memory: str | int = "4GiB",
) -> str | None:
    """What a reader must know where everything cancels, in a sentence; None where it does not.

    Args:
        discovery: what the search gave.
        algorithm: name of the algorithm.
        by_mean: its edge scores are means of changes over examples, or estimates of them.
        full: the full model's metric on the train examples; None measures it where it is needed.
    """
    if metric.zero_at_full:
        return None  # no change is above 0, so that none makes up for another
    masks = _given_up(discovery, by_mean)
    scored = discovery.edge_scores is not None
    if not masks or (scored and full is not None and not _near_nothing(discovery, full)):
        return None
    patching = Patching(model, ablation, task.train, memory=memory)
    usable = [METRICS[name] for name in OTHERS if name != metric.name and _can_use(METRICS[name], model, task)]
    values = patching.evaluate(task.train, {"full": model.graph.edge_mask, **masks}, [metric, *usable])
    if scored and not _near_nothing(discovery, values["full"][metric.name]):
        return None
    mean, size, scale = _mean_and_size(values, metric)
    if size <= ROUNDING * scale or mean >= CANCELS * size:
        return None
    others = [other for other in usable if _sees(values, other)]
    what = "an edge is cut" if scored else "all that the search gave up is cut"
    why = f": {ablation.method.cancels}" if ablation.method.cancels else ""
    advice = f"metric={' or metric='.join(other.name for other in others)} sees it" if others else "try another ablation"
    return (
        f"Everything cancels: when {what}, {metric.name} changes by {size:.3g} on an example, up or down, and by {mean:.2g} in "
        f"the mean over {len(task.train)} examples, by which {algorithm} decides{why}. "
        f"That nothing was found says nothing of the model; {advice}."
    )


def _given_up(discovery: Discovery, by_mean: bool) -> dict[str, Bool[np.ndarray, "R S"]]:
    """The circuits whose change is looked at: the empty one that a search left, or single cuts of its best-scored edges."""
    circuit, graph = discovery.circuit, discovery.circuit.graph
    if discovery.edge_scores is None:
        nothing = not circuit.heads() if circuit.granularity == "head" else circuit.n_edges == 0
        return {"nothing": circuit.mask} if nothing else {}
    return _single_cuts(graph, discovery.edge_scores) if by_mean else {}


def _single_cuts(graph: ComputationGraph, scores: Float[np.ndarray, "R S"]) -> dict[str, Bool[np.ndarray, "R S"]]:
    sizes = np.where(graph.edge_mask, np.nan_to_num(np.abs(scores)), -1.0)
    cuts = {}
    for index in np.argsort(-sizes, axis=None, kind="stable")[:N_EDGES].tolist():
        mask = graph.edge_mask.copy()
        mask.flat[index] = False
        cuts[f"cut {index}"] = mask
    return cuts


def _near_nothing(discovery: Discovery, full: Float[Tensor, "B"]) -> bool:
    """True if the largest score is small beside the metric's spread over examples."""
    spread = float(full.double().std()) if len(full) > 1 else 0.0
    return discovery.edge_scores is not None and float(np.nanmax(np.abs(discovery.edge_scores))) < NEAR_NOTHING * spread


def _can_use(metric: Metric, model: Model, task: Task) -> bool:
    try:
        check_metric(metric, task.train, model, task.name)
    except BadSetting:
        return False
    return True


def _mean_and_size(values: Values, metric: Metric) -> tuple[float, float, float]:
    """Of the changes when cut, size of the mean over examples and mean of the size; mean size of the full model's values."""
    rows = {name: of[metric.name].double() for name, of in values.items()}
    full = rows.pop("full")
    changes_XB = torch.stack(list(rows.values())) - full
    return float(changes_XB.mean(1).abs().mean()), float(changes_XB.abs().mean()), float(full.abs().mean())


def _sees(values: Values, metric: Metric) -> bool:
    mean, size, scale = _mean_and_size(values, metric)
    return size > ROUNDING * max(scale, ROUNDING) and mean >= SEES * size
