"""Random scores: the control that every scored algorithm must beat.

1. Draw a score for every edge from a normal distribution, by the seed.
2. Choose a circuit as the scored algorithms do.
"""

import numpy as np

from circuitdisc.ablation import Ablation
from circuitdisc.checks import bounded
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import SIZE, By, Grow, Selection
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task


@bounded(**SIZE)
def random(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    edges: int | None = None,
    fraction: float = 0.05,
    grow: Grow = "top_k",
    by: By = "absolute",
) -> Discovery:
    """Score every edge at random; model, task and ablation are not looked at.

    Args:
        edges: size of the circuit in edges; None takes `fraction`. Edges that lead nowhere are left out afterwards, so that the
            circuit may be smaller.
        fraction: size of the circuit as a share of the graph's edges.
        grow: `top_k`: the best edges; `greedy`: grown from `logits`, the best edge into a node of the circuit at a time.
        by: `absolute`: scores of either sign count; `signed`: the edges whose cutting lowers the metric most come first.

    Returns:
        A circuit and the score of every edge. The trace is empty.

    Raises:
        BadSetting: a setting is out of its bounds.
    """
    graph = model.graph
    selection = Selection(edges, fraction, grow, by)
    drawn = np.random.default_rng(context.seed).normal(size=graph.edge_mask.shape)
    scores = np.where(graph.edge_mask, drawn, np.nan)
    return Discovery(selection.circuit(graph, scores), scores)
