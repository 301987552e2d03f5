"""How much time an exact walk has left, for its bar.

Edges are no measure: those of dead nodes go by thousands a second, and a candidate near the embedding makes most of the model
run again. What was visited last says what a candidate costs there; below, it costs more with every layer that comes behind it.

    time left = sum over live receivers to be visited of its edges x seconds a candidate there
    seconds a candidate at depth d (layers from the end) = s (1 + STEEPNESS (d / d0 - 1)), with s and d0 of the last LATEST
    groups of the same kind

A head is counted once a kept edge leads out of it, MLPs by the share of those visited that were live.
"""

from collections import defaultdict
from time import perf_counter

import numpy as np
from jaxtyping import Bool

from circuitdisc.graph import ComputationGraph

LATEST, STEEPNESS = 2, 1.25


class TimeLeft:
    """The expected time of a walk from `logits` backwards, in seconds."""

    def __init__(self, graph: ComputationGraph) -> None:
        self.graph = graph
        self.is_mlp = np.array([receiver.kind == "mlp" for receiver in graph.receivers])
        self.depth = np.array(
            [0 if receiver.kind == "logits" else graph.n_layers - receiver.node.layer for receiver in graph.receivers]
        )
        self.node_of = np.array([graph.sender_index.get(receiver.node.name, -1) for receiver in graph.receivers])
        self.first_reader = np.searchsorted(graph.n_upstream, np.arange(graph.n_senders), side="right")
        self.mlps = np.array([node.kind == "mlp" for node in graph.senders])
        self.groups: dict[bool, list[tuple[int, int, float]]] = defaultdict(list)  # by kind: depth, candidates, seconds
        self._last = perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        last, self._last = self._last, perf_counter()
        return self._last - last

    def visited(self, receiver: int, n_candidates: int, seconds: float) -> None:
        """The group of this receiver has been visited."""
        if n_candidates:
            self.groups[bool(self.is_mlp[receiver])].append((int(self.depth[receiver]), n_candidates, seconds))

    def expect(self, mask: Bool[np.ndarray, "R S"], n_unvisited: int) -> float | None:
        """Seconds that the receivers below `n_unvisited` will take; None before anything was visited.

        Args:
            mask: the edges left.
        """
        if not self.groups:
            return None
        reached = mask[n_unvisited:].any(0)
        decided = self.first_reader >= n_unvisited  # senders whose every reader was visited
        share = (1 + (self.mlps & decided & reached).sum()) / (2 + (self.mlps & decided).sum())
        live = np.where(reached, 1.0, np.where(self.mlps & ~decided, share, 0.0))
        edges = mask[:n_unvisited].sum(1) * live[self.node_of[:n_unvisited]]
        seconds = np.where(self.is_mlp, self._a_candidate(True), self._a_candidate(False))
        return float((edges * seconds[:n_unvisited]).sum())

    def _a_candidate(self, mlp: bool) -> np.ndarray:
        """Seconds a candidate for each receiver, as one of this kind."""
        latest = (self.groups.get(mlp) or self.groups[not mlp])[-LATEST:]
        depths, candidates, seconds = np.array(latest).T
        here = max(0.5, float((depths * candidates).sum() / candidates.sum()))
        return seconds.sum() / candidates.sum() * np.maximum(1 + STEEPNESS * (self.depth / here - 1), 0.0)
