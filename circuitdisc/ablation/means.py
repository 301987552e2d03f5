"""Averages of what is written, over a set of prompts.

Shape letters: S senders, B examples, T positions, G groups, D width of what is averaged.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.ablation.base import Scope

AT_ONCE = 16  # senders whose values are added together


class Means:
    """Averages over examples, kept for each group and position. Summed in float64.

    A position that no example of a group reaches takes the group's average over positions; a group that was never seen takes
    the average over all groups.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._groups: dict[str, int] = {}
        self._sums: list[Float[Tensor, "S T D"]] = []
        self._counts: list[Int[Tensor, "T"]] = []

    def add(
        self,
        values: Float[Tensor, "S B T D"],
        position_ids: Int[Tensor, "B T"],
        is_token: Bool[Tensor, "B T"],
        groups: Sequence[str],
    ) -> None:
        """Add a batch; padding does not count."""
        for name in dict.fromkeys(self._key(group) for group in groups):
            rows = torch.tensor([self._key(group) == name for group in groups], device=values.device)
            chosen = is_token & rows[:, None]
            positions = torch.zeros_like(position_ids) if self.scope == "dataset" else position_ids
            length = int(positions[chosen].max()) + 1 if chosen.any() else 0
            sums = values.new_zeros(values.shape[0], length, values.shape[-1], dtype=torch.float64)
            for some in range(0, len(values), AT_ONCE):  # a copy of all in float64 would be the largest of a run
                part = values[some : some + AT_ONCE, chosen].double()
                sums[some : some + AT_ONCE].index_add_(1, positions[chosen], part)
            self._merge(name, sums, torch.bincount(positions[chosen], minlength=length))

    def _key(self, group: str) -> str:
        return group if self.scope == "group" else ""

    def _merge(self, name: str, sums: Tensor, counts: Tensor) -> None:
        if name not in self._groups:
            self._groups[name] = len(self._sums)
            self._sums.append(sums)
            self._counts.append(counts)
            return
        index = self._groups[name]
        length = max(sums.shape[1], self._sums[index].shape[1])
        self._sums[index] = _pad(self._sums[index], length, 1) + _pad(sums, length, 1)
        self._counts[index] = _pad(self._counts[index], length, 0) + _pad(counts, length, 0)

    def table(self, length: int) -> Float[Tensor, "S G T D"]:
        """The averages up to a length; the last group is the one for groups never seen."""
        width = max([length, *(sums.shape[1] for sums in self._sums)])
        sums = [_pad(sums, width, 1) for sums in self._sums]
        counts = [_pad(counts, width, 0) for counts in self._counts]
        sums.append(torch.stack(sums).sum(0))
        counts.append(torch.stack(counts).sum(0))
        return torch.stack([_average(*pair) for pair in zip(sums, counts, strict=True)], dim=1)[:, :, :length]

    def values(self, position_ids: Int[Tensor, "B T"], groups: Sequence[str], dtype: torch.dtype) -> Float[Tensor, "S B T D"]:
        """The averages for a batch: by each example's group and each token's own position."""
        positions = torch.zeros_like(position_ids) if self.scope == "dataset" else position_ids
        table = self.table(int(positions.max()) + 1).to(dtype)
        rows = [self._groups.get(self._key(group), len(self._groups)) for group in groups]
        if len(set(rows)) == 1 and bool((positions == positions[0]).all()):
            return table[:, rows[0]][:, None, positions[0]]
        return table[:, torch.tensor(rows, device=positions.device)[:, None], positions]


def _average(sums: Float[Tensor, "S T D"], counts: Int[Tensor, "T"]) -> Float[Tensor, "S T D"]:
    overall = sums.sum(1, keepdim=True) / counts.sum().clamp(min=1)
    return torch.where((counts > 0)[None, :, None], sums / counts.clamp(min=1)[None, :, None], overall)


def _pad(values: Tensor, length: int, dim: int) -> Tensor:
    missing = length - values.shape[dim]
    if missing == 0:
        return values
    shape = list(values.shape)
    shape[dim] = missing
    return torch.cat([values, values.new_zeros(shape)], dim=dim)
