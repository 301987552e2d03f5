"""Softmaxes over a vocabulary that arrives in blocks of columns, from the first to the last, so that it never is in memory.

Sums over blocks are in float64. Shape letters: N readings, W columns of a block, A answers.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.metrics.base import pick

Blocks = Iterable[Float[Tensor, "... N W"]]


class LogSum:
    """The logarithm of a sum of exponentials (`value`, float64): a running maximum, and a running sum relative to it."""

    def __init__(self) -> None:
        self._most: Float[Tensor, "... N"] | None = None
        self._sum: Float[Tensor, "... N"] | float = 0.0

    def add(self, logits: Float[Tensor, "... N W"]) -> tuple[Float[Tensor, "... N W"], Float[Tensor, "... N"]]:
        """Add a block.

        Returns:
            The logits less the largest one so far, and that one.
        """
        most = logits.amax(-1).clamp(min=torch.finfo(logits.dtype).min)  # a block of -inf alone adds nothing
        if self._most is not None:
            most = torch.maximum(self._most, most)
            self._sum = self._sum * (self._most.double() - most).exp()
        shifted = logits - most[..., None]
        self._sum = self._sum + shifted.exp().sum(-1).double()
        self._most = most
        return shifted, most

    @property
    def value(self) -> Float[Tensor, "... N"]:
        assert self._most is not None, "no block was added"
        return self._most + torch.as_tensor(self._sum).log()


def log_probabilities_at(blocks: Blocks, columns: Int[Tensor, "N A"]) -> Float[Tensor, "... N A"]:
    """Log-probabilities of some tokens of each reading, in nats."""
    total, start, picked = LogSum(), 0, torch.zeros((), device=columns.device)
    for logits in blocks:
        total.add(logits)
        here, last = columns - start, logits.shape[-1] - 1
        inside = (here >= 0) & (here <= last)
        picked = torch.where(inside, pick(logits, here.clamp(0, last)).double(), picked)
        start += logits.shape[-1]
    return picked - total.value[..., None]
