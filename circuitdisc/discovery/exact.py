"""Exact edge patching: the metric's change when one edge is cut, for every edge of the full model.

1. Measure the metric of the full model.
2. Score an edge s -> r by the metric with that edge alone cut, minus the full model's.
3. Keep the edges with the best scores.

The slow truth that the attribution algorithms estimate: one candidate an edge, several in a batch, each run from the cut on
only, as for ACDC. It knows nothing of how edges act together.

Source: path patching of single edges (Goldowsky-Dill et al. 2023); the target of EAP in Syed et al. 2023.
"""

import numpy as np
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import Ranking, Selection
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task


@takes(Ranking)
def exact(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    **options: Unpack[Ranking],
) -> Discovery:
    """Score every edge by cutting it alone.

    Returns:
        A circuit, the exact score of every edge, and a line for every edge in the trace.

    Raises:
        BadSetting: a setting is out of its bounds, or attention patterns are to be ablated.
    """
    selection = Selection(**options)
    selection.n_edges(model.graph)
    if ablation.target == "pattern":
        raise BadSetting("exact cuts edges; an attention pattern is no edge: use ablation.target=output")
    graph, journal = model.graph, context.journal
    patching = Patching(model, ablation, task.train, memory=context.memory)
    removal = patching.removal(
        patching.hold_share(task.train), graph.edge_mask, get_metric(context.metric), first=0, accepts=False
    )
    scores = np.full(graph.edge_mask.shape, np.nan)
    for line in journal.decisions:
        scores[graph.parse_edge(line["edge"])] = line["score"]
    finished = set(journal.marks)
    done = int(np.isfinite(scores).sum())
    bar = progress_bar(graph.n_edges, f"exact on {model.name}", "edge", context.progress, done)
    for receiver in reversed(range(graph.n_receivers)):
        name = graph.receivers[receiver].name
        if name in finished:
            continue
        most = removal.most_rows(receiver)
        for first in range(0, int(graph.n_upstream[receiver]), most):
            senders = list(range(first, min(first + most, int(graph.n_upstream[receiver]))))
            for sender, value in zip(senders, removal.try_cuts(receiver, senders, [True] * len(senders)), strict=True):
                scores[receiver, sender] = value - removal.value
                journal.write(edge=graph.edge_name(receiver, sender), metric=value, score=scores[receiver, sender])
            bar.update(len(senders))
        journal.mark(name)
    bar.close()
    removal.close()
    return Discovery(selection.circuit(graph, scores), scores, journal.decisions, patching.cost)
