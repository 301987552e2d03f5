"""What can be taken over from another model's run on the same prompt: parts of heads, MLPs, the residual stream, the readout.

    output    what a head writes to the residual stream: its pattern times its values times *its own model's* W_O
    value     its value vectors, with their bias
    query     its queries, with their bias, turned by their positions (before turning they are the same numbers: the angles are)
    key       its keys, likewise
    pattern   the rows of its attention pattern
    mlp       what an MLP writes, with its output bias
    residual  the whole residual stream before a layer; before layer 0 this is the embedding, before layer L what is read out
    biases    the attention output biases, which belong to no head
    readout   the final norm and the unembedding: weights of the other model, applied to this model's final residual

Under grouped queries several heads read one value and one key vector. These kinds are then numbered by group, not by head:
such heads cannot be patched apart, and are not.

Everything is the embedding, every head's output, every MLP, the biases and the readout: the run is then the other model's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from circuitdisc.checks import check_choice
from circuitdisc.errors import BadSetting
from circuitdisc.graph import Node
from circuitdisc.tasks.base import PromptBatch

HEAD_KINDS = ("output", "value", "query", "key", "pattern")
SHARED_KINDS = ("value", "key")
Unit = tuple[str, int, int]
"""(kind, layer, number): a head's part, or that of a group of heads that share it."""


class HeadCounts(Protocol):
    """How many heads there are: a model's specification, or shapes read from its configuration."""

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...

    @property
    def n_kv_heads(self) -> int: ...


@dataclass(frozen=True)
class Patch:
    """What one run takes over from the other model.

    Args:
        heads: parts of heads.
        mlps: layers whose MLP output is taken over.
        residual: layers before which the whole residual stream is; the number of layers stands for the final residual.
        biases: take over the attention output biases of all layers.
        readout: read the logits out with the other model's final norm and unembedding.
    """

    heads: frozenset[Unit] = frozenset()
    mlps: frozenset[int] = frozenset()
    residual: frozenset[int] = frozenset()
    biases: bool = False
    readout: bool = False

    def first(self, n_layers: int) -> int:
        """The first layer that differs from the unpatched run; `n_layers` if none does."""
        layers = [*(layer for _, layer, _ in self.heads), *self.mlps, *self.residual, *((0,) if self.biases else ())]
        return min(layers, default=n_layers)

    def numbers(self, kind: str, layer: int) -> list[int]:
        """Heads, or groups, of this layer whose part of this kind is taken over."""
        return sorted(number for its_kind, its_layer, number in self.heads if (its_kind, its_layer) == (kind, layer))

    def touches(self, layer: int) -> bool:
        """True if a query, key, value or pattern of this layer is taken over."""
        return any(its_layer == layer and kind != "output" for kind, its_layer, _ in self.heads)

    def __or__(self, other: "Patch") -> "Patch":
        """Both at once."""
        return Patch(
            self.heads | other.heads,
            self.mlps | other.mlps,
            self.residual | other.residual,
            self.biases or other.biases,
            self.readout or other.readout,
        )


def units_of(spec: HeadCounts, kind: str) -> list[Unit]:
    """All parts of a kind, layer by layer."""
    n = spec.n_kv_heads if kind in SHARED_KINDS else spec.n_heads
    return [(kind, layer, number) for layer in range(spec.n_layers) for number in range(n)]


def unit_of_head(spec: HeadCounts, kind: str, layer: int, head: int) -> Unit:
    """The part of this kind that a head has, alone or with others."""
    return (kind, layer, head * spec.n_kv_heads // spec.n_heads if kind in SHARED_KINDS else head)


def unit_heads(spec: HeadCounts, unit: Unit) -> list[str]:
    """Names of the heads that a part belongs to: one, or those that share it."""
    kind, layer, number = unit
    shared = spec.n_heads // spec.n_kv_heads if kind in SHARED_KINDS else 1
    return [Node("head", layer, head).name for head in range(number * shared, (number + 1) * shared)]


def unit_name(spec: HeadCounts, unit: Unit) -> str:
    """`a3.h5`; `a3.h4-7` for heads that share what is patched."""
    heads = unit_heads(spec, unit)
    return heads[0] if len(heads) == 1 else f"{heads[0]}-{Node.parse(heads[-1]).head}"


def everything(spec: HeadCounts, has_mlp: bool) -> Patch:
    """All that differs between two models of one architecture."""
    mlps = frozenset(range(spec.n_layers)) if has_mlp else frozenset()
    return Patch(frozenset(units_of(spec, "output")), mlps, frozenset({0}), biases=True, readout=True)


def check_kinds(what: object) -> tuple[str, ...]:
    """Kinds of parts of heads, each once.

    Raises:
        UnknownName: one does not exist.
        BadSetting: there is none.
    """
    given = [what] if isinstance(what, str) else list(what) if isinstance(what, Iterable) else []
    if not given:
        raise BadSetting(f"what={what!r} names nothing to patch: give some of {', '.join(HEAD_KINDS)}")
    return tuple(dict.fromkeys(check_choice("what", str(kind), HEAD_KINDS) for kind in given))


def patched_tokens(batch: PromptBatch, positions: Sequence[str | int] | None) -> Int[Tensor, "n"]:
    """The tokens, numbered b * T + t, at which activations are taken over: all but padding, or those of some positions.

    Raises:
        UnknownName: an example has no such role.
        BadTask: a position lies outside a prompt.
    """
    if positions is None:
        return batch.is_token.flatten().nonzero().flatten()
    first = torch.arange(batch.n_examples, device=batch.clean.device) * batch.clean.shape[1]
    return torch.cat([first + batch.position(position) for position in positions]).unique()
