"""Algorithm 1 of Conmy et al. 2023 as it is written: one whole-model run for each edge."""

from typing import Any

import numpy as np
from reference import masked_metric

from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import METRICS


def sequential_acdc(
    model,
    task,
    ablation,
    metric,
    threshold=0.01,
    *,
    relative=False,
    two_sided=None,
    order="descending",
    measure=masked_metric,
    keep=None,
    start=None,
    scores: Any = None,
):
    """Returns the mask and (edge, kept) decisions."""
    two_sided = metric != "kl" if two_sided is None else two_sided
    graph, metric = model.graph, METRICS[metric]
    chunks = Patching(model, ablation, task.train).hold(task.train)
    mask = graph.edge_mask.copy() if start is None else start.copy()
    full, empty = (measure(model, chunks, edges, metric) for edges in (graph.edge_mask.copy(), np.zeros_like(mask)))
    current = measure(model, chunks, mask, metric)
    decisions = []
    for receiver in reversed(range(graph.n_receivers)):
        node = graph.receivers[receiver].node
        if node.kind != "logits" and not mask[:, graph.sender_index[node.name]].any():
            mask[receiver] = False
            continue
        senders = np.arange(graph.n_upstream[receiver])
        if start is not None:
            senders = np.flatnonzero(start[receiver])
        if order == "descending":
            senders = senders[::-1]
        elif order == "random":
            senders = np.random.default_rng([0, receiver]).permutation(senders)
        elif order == "attribution":
            senders = sorted(senders, key=lambda sender: abs(scores[receiver, sender]))
        for sender in senders:
            mask[receiver, sender] = False
            new = measure(model, chunks, mask, metric)
            change = abs(current - new) if two_sided else current - new
            if keep is None:
                stays = not change < (threshold * abs(current) if relative else threshold)
            else:
                share = (new - empty) / (full - empty)
                stays = not keep <= share <= 2 - keep
            if stays:
                mask[receiver, sender] = True
            else:
                current = new
            decisions.append((graph.edge_name(receiver, sender), stays))
    return mask, decisions


def decided(discovery):
    """(edge, kept) of every edge that a search tried."""
    return [(line["edge"], line["kept"]) for line in discovery.trace if "edge" in line]
