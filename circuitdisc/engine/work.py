"""How much work an exact walk has left, for its bar.

Edges are no measure: those of dead nodes go by thousands a second, and a candidate near the embedding makes most of the model
run again. The work of a candidate is the work of the live nodes behind its receiver, at the tokens that an answer sees of them:
known of what was visited, expected of what was not.

    work left = sum over receivers still to be visited of P(its node is live) x its edges x work of a candidate there
    work of a candidate = work of one row's unembedding + sum over nodes behind it of P(live) x tokens x work at a token

A node that a kept edge leads out of is live; of the others as large a share as of those visited.

Shape letters: R receivers, S senders.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.evaluate import n_logits
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model

OVERHEAD = 1e7  # multiplications in the time that a candidate takes apart from them


class WorkLeft:
    """The expected work of a walk from `logits` backwards, in multiplications.

    Args:
        at_token: work of each sender at one token. [S]
        of_row: work of every candidate, wherever it is.
    """

    def __init__(self, graph: ComputationGraph, at_token: Float[np.ndarray, "S"], of_row: float) -> None:
        self.graph, self.at_token, self.of_row = graph, at_token, of_row
        self.kinds = np.array([node.kind for node in graph.senders])
        self.node_of = np.array([graph.sender_index.get(receiver.node.name, -1) for receiver in graph.receivers])
        self.first_reader = np.searchsorted(graph.n_upstream, np.arange(graph.n_senders), side="right")
        self.candidate = np.full(graph.n_receivers, of_row)  # work of one candidate of each receiver, by the last estimate

    @classmethod
    def of(cls, model: Model, chunks: Sequence[Chunk], metric: Metric) -> "WorkLeft":
        """That of a search on these examples. A model that only runs as a whole does the same for every candidate."""
        graph = model.graph
        if not model.can("partial runs"):
            return cls(graph, np.zeros(graph.n_senders), 1.0)
        d_model, logits = model.components.spec.d_model, n_logits(model, chunks, metric)
        at_token = np.array([_multiplications(model, node.kind, node.layer) for node in graph.senders], dtype=float)
        return cls(graph, at_token, OVERHEAD + float(d_model * logits * len(chunks)))

    def expect(self, mask: Bool[np.ndarray, "R S"], n_unvisited: int, tokens: Int[np.ndarray, "R"]) -> float:
        """Work that is left while the receivers below `n_unvisited` have not been visited.

        Args:
            mask: the edges left.
            tokens: of each visited receiver, at how many tokens an answer sees what it reads.
        """
        visited = mask[n_unvisited:]
        reached = visited.any(0)
        decided = self.first_reader >= n_unvisited  # all that reads them was visited
        live = reached.astype(float)
        for kind in set(self.kinds):
            of_kind = self.kinds == kind
            share = (1 + (of_kind & decided & reached).sum()) / (2 + (of_kind & decided).sum())
            live[of_kind & ~decided & ~reached] = share
        seen = np.where(visited, tokens[n_unvisited:, None], 0).max(0, initial=0)
        seen = np.where(seen > 0, seen, seen.max(initial=1))
        behind = np.append(np.cumsum((live * seen * self.at_token)[::-1])[::-1], 0.0)  # a sender, and all that come after it
        self.candidate = self.of_row + behind[self.node_of]  # logits: the last entry, nothing
        n_edges = mask[:n_unvisited].sum(1)
        of_node = np.append(live, 1.0)[self.node_of[:n_unvisited]]
        return float((of_node * n_edges * self.candidate[:n_unvisited]).sum())


def _multiplications(model: Model, kind: str, layer: int) -> float:
    """What one node does at one token."""
    spec, block = model.components.spec, model.components.weights.layers[max(layer, 0)]
    if kind == "head":
        return 4 * spec.d_model * spec.d_head
    matrices = [block.W_in, block.W_gate, block.W_out]
    return sum(matrix.numel() for matrix in matrices if matrix is not None) if kind == "mlp" else 0.0
