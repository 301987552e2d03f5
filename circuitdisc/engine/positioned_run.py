"""The run of a positioned circuit: an edge carries its sender's live value at the spans where it is kept, else the ablated one.

    input of receiver r at a token of span p = constants + sum of ablated senders before r
                                               + sum over edges s -> r kept at p of (live_s - ablated_s)

The differences that senders write are kept with the tokens of a span side by side, so that what receivers read is one matrix
product a span. Everything else is the run of a circuit; an edge that is kept anywhere counts as kept where it is asked what has
to be computed.

Shape letters: P spans, S senders, R receivers, n receivers at one place, B examples, T positions, N tokens (B * T), D residual
width, m readings, V vocabulary.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.circuit_run import CircuitRun
from circuitdisc.engine.written import Written
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components


class WrittenBySpan(Written):
    """The differences of the live senders, tokens sorted by their span."""

    def __init__(self, senders: Int[np.ndarray, "s"], like: Float[Tensor, "B T D"], spans: Int[np.ndarray, "B T"]) -> None:
        super().__init__(senders, like)
        flat, device = spans.reshape(-1), like.device
        order = np.argsort(flat, kind="stable")
        self._order = torch.from_numpy(order).to(device)
        self._back = torch.from_numpy(np.argsort(order)).to(device)
        present, first = np.unique(flat[order], return_index=True)
        ends = (*first[1:].tolist(), len(flat))
        self.places = [(int(p), slice(a, b)) for p, a, b in zip(present, first.tolist(), ends, strict=True) if p >= 0]

    def write(self, sender: int, live: Float[Tensor, "B T D"], ablated: Float[Tensor, "#B #T D"]) -> None:
        torch.index_select((live - ablated).flatten(0, 1), 0, self._order, out=self[sender].flatten(0, 1))

    def sums_by_span(self, kept: Bool[np.ndarray, "P n S"], n_upstream: int) -> Float[Tensor, "n B T D"]:
        """Sum of the differences that are kept at each token's span; 0 at padding."""
        n = int(np.searchsorted(self.senders, n_upstream))
        tokens = self._buffer.view(len(self.senders), self.shape[:2].numel(), self.shape[-1])
        sums = self._buffer.new_zeros(kept.shape[1], *tokens.shape[1:])
        for span, place in self.places:
            weights = kept[span][:, self.senders[:n]]
            columns = np.flatnonzero(weights.any(0))
            if len(columns):
                rows = tokens[torch.from_numpy(columns).to(tokens.device), place].flatten(1)
                sums[:, place] = (torch.from_numpy(weights[:, columns]).to(rows) @ rows).unflatten(1, (-1, self.shape[-1]))
        return sums[:, self._back].unflatten(1, self.shape[:2])


class PositionedRun(CircuitRun):
    """One run of one positioned circuit on one chunk.

    Args:
        kept: True where an edge is kept at a span. [P, R, S]
        spans: of each token; -1 at padding. [B, T]
    """

    def __init__(
        self,
        components: Components,
        graph: ComputationGraph,
        chunk: Chunk,
        kept: Bool[np.ndarray, "P R S"],
        spans: Int[np.ndarray, "B T"],
    ) -> None:
        self.kept, self.spans = kept, spans
        super().__init__(components, graph, chunk, np.logical_or.reduce(kept))

    def _kept_everywhere(self) -> Bool[np.ndarray, "R S"]:
        return np.logical_and.reduce(self.kept[np.unique(self.spans[self.spans >= 0])])

    def _begin_writing(self) -> WrittenBySpan:
        return WrittenBySpan(np.flatnonzero(self.live_senders), self.chunk.clean[0], self.spans)

    def _what_is_kept(self, receiver: int) -> bytes:
        return self.kept[:, receiver].tobytes()

    def _sums(self, receivers: list[int], n_upstream: int) -> Float[Tensor, "n B T D"]:
        assert isinstance(self.difference, WrittenBySpan), "it was made here"
        return self.difference.sums_by_span(self.kept[:, receivers], n_upstream)
