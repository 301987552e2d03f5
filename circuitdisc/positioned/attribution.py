"""Scores of units: the attribution of an edge, span by span.

    score(s -> r at p) = sum over tokens of span p of (ablated_s - clean_s) . g_r,   g_r = d metric / d input of r

averaged over examples. The sum over spans is the edge's own score by the same algorithm (`eap`, `eap_ig`): the same passes, the
same products, added up apart.

Source: Haklay et al. 2025, section 3 (position-aware edge attribution patching), here with a head's q, k and v as receivers.

Shape letters: P spans, R receivers, S senders.
"""

import numpy as np
from jaxtyping import Float, Int

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.discovery.scored import takes_gauss
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import gauss_between, published_between
from circuitdisc.engine.patching import Cost
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.spans import Spans

RANKINGS = ("eap_ig", "eap")
STEPS = 5
"""Points of `eap_ig`, as its own default is."""


def unit_scores(
    model: Model,
    task: Task,
    spans: Spans,
    ablation: Ablation,
    metric: Metric,
    *,
    ranking: str = "eap_ig",
    memory: str | int = "4GiB",
    progress: bool = False,
) -> tuple[Float[np.ndarray, "P R S"], Cost]:
    """The score of every edge at every span on the search examples; NaN where the graph has no edge.

    Args:
        ranking: `eap_ig` or `eap`.

    Raises:
        UnknownName: there is no such ranking.
        BadSetting: the model, the metric, the ablation or the budget does not allow it.
    """
    check_choice("ranking", ranking, RANKINGS)
    gradient = Gradient(at_full=True) if ranking == "eap" else Gradient(rows=STEPS)
    about = {"gradient": gradient, "memory": memory, "name": ranking, "progress": progress}
    attribution = Attribution(model, ablation, task.train, metric, **about)
    attribution.keep_spans([spans.tokens(example) for example in task.train], len(spans))
    if ranking == "eap":
        attribution.edges_at_full()
    else:
        attribution.edges_between((gauss_between if takes_gauss("auto", model, ablation) else published_between)(STEPS))
    assert attribution.units is not None, "they were asked for"
    scores = np.full((len(spans), *model.graph.edge_mask.shape), np.nan)
    sums = attribution.units.edges(model.graph, attribution.n_rows)
    scores[:, model.graph.edge_mask] = sums / len(task.train)
    return scores, attribution.cost


def ascending(scores: Float[np.ndarray, "P R S"]) -> Int[np.ndarray, "n"]:
    """Flat indices of all units, the one with the smallest score, whatever its sign, first."""
    known = np.flatnonzero(np.isfinite(scores))
    return known[np.argsort(np.abs(scores.flat[known]), kind="stable")]
