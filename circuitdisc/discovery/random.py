"""Random scores: the control that every scored algorithm must beat.

1. Draw a score for every edge from a normal distribution, by the seed.
2. Choose a circuit as the scored algorithms do.
"""

import numpy as np
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import Ranking, Selection
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@takes(Ranking)
def random(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    **options: Unpack[Ranking],
) -> Discovery:
    """Score every edge at random; model, task and ablation are not looked at.

    Returns:
        A circuit and the score of every edge. The trace is empty.

    Raises:
        BadSetting: a setting is out of its bounds.
    """
    graph = model.graph
    selection = Selection(**options)
    drawn = np.random.default_rng(context.seed).normal(size=graph.edge_mask.shape)
    scores = np.where(graph.edge_mask, drawn, np.nan)
    return Discovery(selection.circuit(graph, scores), scores)
