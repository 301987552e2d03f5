"""What the live senders of a circuit write, minus what they carry when cut, in one buffer; receivers read sums of its rows.

A receiver that keeps most of what comes before it reads the sum of all less what is cut: the cost of a read goes with the
fewer of the two, and what several receivers at one place read is one matrix product.

Shape letters: S senders, s those that are live, n receivers at one place, B examples, T positions, X = B T D, D residual width.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GATHERED = 0.5  # up to this share of the rows is copied together; beyond it the product runs over all, with zeros


class Written:
    """The differences of the live senders, written in order.

    Args:
        senders: the live ones, ascending. [s]
        like: a value of one sender. [B, T, D]
    """

    def __init__(self, senders: Int[np.ndarray, "s"], like: Float[Tensor, "B T D"]) -> None:
        self.senders, self.shape = senders, like.shape
        self._buffer = like.new_empty(len(senders), like.numel())
        self._row = {int(sender): row for row, sender in enumerate(senders)}
        # sum of the first `_n_added` rows; in 16 bits, what is cut would be taken from a sum of roundings
        self._total = torch.zeros(like.numel(), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        self._n_added = 0
        self.n_gathered = 0  # rows copied, for the count of work

    def __getitem__(self, sender: int) -> Float[Tensor, "B T D"]:
        return self._buffer[self._row[sender]].view(self.shape)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All that is kept."""
        return self._buffer, self._total

    def __contains__(self, sender: int) -> bool:
        return sender in self._row

    def write(self, sender: int, live: Float[Tensor, "B T D"], ablated: Float[Tensor, "#B #T D"]) -> None:
        """Keep live minus ablated of one sender."""
        torch.sub(live, ablated, out=self[sender])

    def sums(self, kept: Bool[np.ndarray, "n S"], n_upstream: int) -> Float[Tensor, "n B T D"]:
        """Sum of the kept senders' differences, for receivers behind the first `n_upstream` senders, all of them written."""
        n = int(np.searchsorted(self.senders, n_upstream))
        weights = kept[:, self.senders[:n]].astype(np.int8)
        mostly = 2 * weights.sum(1) > n + 1
        weights[mostly] -= 1
        columns = np.flatnonzero(weights.any(axis=0))
        if len(columns) <= GATHERED * n:
            rows, weights = self._buffer[torch.from_numpy(columns)], weights[:, columns]
            self.n_gathered += len(columns)
        else:
            rows = self._buffer[:n]
        sums = torch.from_numpy(weights).to(rows) @ rows
        if mostly.any():
            some = torch.from_numpy(mostly)
            sums[some] = (sums[some] + self._sum_of_first(n)).to(sums.dtype)
        return sums.view(-1, *self.shape)

    def _sum_of_first(self, n: int) -> Float[Tensor, "X"]:
        self._total += self._buffer[self._n_added : n].sum(0, dtype=self._total.dtype)
        self._n_added = n
        return self._total
