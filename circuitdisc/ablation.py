"""Ablation: the value that a sender carries on the edges that are cut.

`zero`: nothing. `zero_folded`: what a head writes from biases alone, and nothing of any other sender; that is `zero` in a model
whose norms and value biases are folded, as TransformerLens folds them (`engine/folded.py`). `resample`: its value on the
corrupted prompt. `mean`: its average over a set of prompts, taken for each group and position, for each position, or over
everything.

Shape letters: S senders, B examples, T positions, G groups, D width of what is averaged.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.errors import BadSetting, UnknownName

Kind = Literal["zero", "zero_folded", "mean", "resample"]
Scope = Literal["group", "position", "dataset"]
Prompts = Literal["clean", "corrupted"]
Target = Literal["output", "pattern"]


@dataclass(frozen=True)
class Ablation:
    """What cut edges carry.

    Args:
        kind: `zero`, `zero_folded`, `mean` or `resample`.
        scope: what `mean` averages over: examples of the same `group` at the same position (without groups: all examples
            at the same position), all examples at the same `position`, or all examples and positions (`dataset`).
        prompts: whether `mean` averages over the `clean` or the `corrupted` prompts. Always those of the train split.
        target: `output` cuts what a head writes; `pattern` (head circuits alone) replaces its attention pattern.

    Raises:
        UnknownName: a setting has no such value.
        BadSetting: an attention pattern is to be ablated by `zero_folded`, which is about outputs.
    """

    kind: Kind = "mean"
    scope: Scope = "group"
    prompts: Prompts = "clean"
    target: Target = "output"

    def __post_init__(self) -> None:
        for name, allowed in (("kind", Kind), ("scope", Scope), ("prompts", Prompts), ("target", Target)):
            if getattr(self, name) not in get_args(allowed):
                raise UnknownName(f"ablation {name}", str(getattr(self, name)), get_args(allowed))
        if self.kind == "zero_folded" and self.target == "pattern":
            raise BadSetting(
                "ablation zero_folded says what a head's output is when it is cut, and target=pattern cuts its attention "
                "pattern: use kind=zero, or target=output"
            )

    @property
    def label(self) -> str:
        """What is printed beside every score."""
        words = self.kind
        if self.kind == "zero_folded":
            words = "zero (norms and value biases folded)"
        if self.kind == "mean":
            over = {"group": "per group and position", "position": "per position", "dataset": "over the data set"}
            words = f"mean ({over[self.scope]}{', corrupted prompts' if self.prompts == 'corrupted' else ''})"
        return f"{words} of the attention pattern" if self.target == "pattern" else words

    @property
    def needs_corrupted(self) -> bool:
        return self.kind == "resample" or (self.kind == "mean" and self.prompts == "corrupted")

    @property
    def cuts_embedding_to_nothing(self) -> bool:
        """Without the embedding nothing is left of the residual stream before the first layer."""
        return self.kind in ("zero", "zero_folded")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def every_ablation() -> Iterator[Ablation]:
    """All combinations of settings that go together."""
    for settings in product(get_args(Kind), get_args(Scope), get_args(Prompts), get_args(Target)):
        with suppress(BadSetting):
            yield Ablation(*settings)


def get_ablation(ablation: "str | Ablation | dict[str, Any]") -> Ablation:
    """An `Ablation` from its kind, its settings, or itself.

    Raises:
        UnknownName: the kind or one of the settings is not known.
    """
    if isinstance(ablation, Ablation):
        return ablation
    settings: dict[str, Any] = {"kind": ablation} if isinstance(ablation, str) else dict(ablation)
    foreign = set(settings) - set(Ablation.__dataclass_fields__)
    if foreign:
        raise UnknownName("ablation setting", sorted(foreign)[0], Ablation.__dataclass_fields__)
    return Ablation(**settings)


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
            sums.index_add_(1, positions[chosen], values[:, chosen].double())
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
