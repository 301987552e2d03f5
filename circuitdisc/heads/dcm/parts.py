"""What a mask of `dcm` is over: heads, groups of heads, or edges; and the model's run with some of them patched.

Shape letters: C components, L layers, H heads, R receivers, S senders, B examples, T positions, N readings, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.checks import check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.controls import different_sets
from circuitdisc.engine.changed_heads import MixedHeads, Ready, changed_logits
from circuitdisc.engine.mixed_edges import mixed_logits
from circuitdisc.engine.path_effects import ALL, Positions
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.heads.base import head_mask
from circuitdisc.models.model import Model

OVER = ("head", "group", "edge")
Groups = Mapping[str, Sequence[str]]


class Parts(Protocol):
    """Components that a mask is over.

    Args:
        names: of the components. Length C.
    """

    names: tuple[str, ...]

    @property
    def needed(self) -> Positions:
        """Where runs of it, and of its random sets, may change the model."""
        ...

    def logits(self, model: Model, ready: Ready, mask: Float[Tensor, "C"], columns: bool = False) -> Float[Tensor, "N V"]:
        """Logits at the readings with every component patched by its share, with gradients to the mask."""
        ...

    def random(self, kept: Bool[np.ndarray, "C"], n: int, generator: np.random.Generator) -> list["Parts"]:
        """Other parts of the model, as many as the mask holds, each draw as one component."""
        ...


class HeadParts:
    """Heads, or groups of heads.

    Args:
        groups: the heads of each component.
        positions: where they are patched; or for each component its own, by name.
    """

    def __init__(self, graph: ComputationGraph, groups: Groups, positions: Positions | Mapping[str, Positions] = ALL) -> None:
        self.graph, self.names = graph, tuple(groups)
        self.members = np.stack([head_mask(graph, heads) for heads in groups.values()])
        for name, member in zip(self.names, self.members, strict=True):
            if not member.any():
                raise BadSetting(f"group '{name}' holds no head: leave it out, or name its heads")
        if isinstance(positions, Mapping):
            for name in positions:
                if name not in self.names:
                    raise UnknownName("component in positions", str(name), self.names)
            if missing := [name for name in self.names if name not in positions]:
                raise BadSetting(
                    f"positions= names no place for {', '.join(missing)}: give each component its own, or one for all"
                )
            self.positions: tuple[Positions, ...] = tuple(positions[name] for name in self.names)
        else:
            self.positions = (positions,)
        self._members = torch.from_numpy(self.members)

    @property
    def needed(self) -> Positions:
        return together(self.positions)

    def places(self, ready: Ready) -> Bool[Tensor, "C B T"]:
        return torch.stack([ready.places(at) for at in self.positions])

    def logits(self, model: Model, ready: Ready, mask: Float[Tensor, "C"], columns: bool = False) -> Float[Tensor, "N V"]:
        graph = self.graph
        n_embed, per_layer = int(graph.n_upstream[0]), graph.n_heads + graph.has_mlp
        members = self._members.to(mask.device)
        return changed_logits(model, ready, MixedHeads(mask, members, self.places, n_embed, per_layer), columns)

    def random(self, kept: Bool[np.ndarray, "C"], n: int, generator: np.random.Generator) -> list[Parts]:
        """Other sets of as many heads, of all the model's, patched wherever one of the masked components is."""
        names = list(self.graph.heads)
        own: frozenset[int] = frozenset(np.flatnonzero(self.members[kept].any(0)).tolist())
        at = self.positions if len(self.positions) == 1 else [self.positions[c] for c in np.flatnonzero(kept)]
        where = together(at)
        return [
            HeadParts(self.graph, {"random": [names[i] for i in drawn]}, where) for drawn in draws(names, own, n, generator)
        ]


class EdgeParts:
    """Edges.

    Args:
        mask: which edges are components. [R, S]
        positions: where they are patched.
    """

    def __init__(self, graph: ComputationGraph, mask: Bool[np.ndarray, "R S"], positions: Positions = ALL) -> None:
        self.graph, self.positions = graph, positions
        self.rows, self.columns = np.nonzero(mask)
        self.names = tuple(graph.edge_name(int(row), int(column)) for row, column in zip(self.rows, self.columns, strict=True))

    needed: Positions = ALL  # the run of a mask on edges begins at the embedding

    def logits(self, model: Model, ready: Ready, mask: Float[Tensor, "C"], columns: bool = False) -> Float[Tensor, "N V"]:
        at = torch.from_numpy(self.rows).to(mask.device), torch.from_numpy(self.columns).to(mask.device)
        whole = mask.new_zeros(self.graph.edge_mask.shape).index_put(at, mask)
        return mixed_logits(model, ready, whole, ready.places(self.positions), columns)

    def random(self, kept: Bool[np.ndarray, "C"], n: int, generator: np.random.Generator) -> list[Parts]:
        """Other sets of as many of these edges."""
        sets: list[Parts] = []
        for drawn in draws(self.names, frozenset(np.flatnonzero(kept).tolist()), n, generator):
            sets.append(_Together(self, sorted(drawn)))
        return sets


class _Together:
    """Some of the edges as one component."""

    names: tuple[str, ...] = ("random",)
    needed: Positions = ALL

    def __init__(self, parts: EdgeParts, chosen: Sequence[int]) -> None:
        self.parts, self.chosen = parts, list(chosen)

    def logits(self, model: Model, ready: Ready, mask: Float[Tensor, "1"], columns: bool = False) -> Float[Tensor, "N V"]:
        whole = mask.new_zeros(len(self.parts.names))
        whole[self.chosen] = mask[0]
        return self.parts.logits(model, ready, whole, columns)

    def random(self, kept: Bool[np.ndarray, "C"], n: int, generator: np.random.Generator) -> list[Parts]:
        return []


def parts_of(
    graph: ComputationGraph,
    over: str,
    circuit: Circuit | None,
    groups: Groups,
    positions: Positions | Mapping[str, Positions],
) -> HeadParts | EdgeParts:
    """The components of a mask.

    Raises:
        UnknownName: `over` is not known, or `positions` names no component.
        BadSetting: there are no groups, or no circuit whose edges could be masked.
        GraphMismatch: a head is not one of this graph.
    """
    check_choice("over", over, OVER)
    if over == "group":
        if not groups:
            raise BadSetting(
                "over=group needs groups of heads: give a circuit that has some (algorithm=path_patching finds them), or "
                "groups="
            )
        return HeadParts(graph, groups, positions)
    if over == "edge":
        if circuit is None or not circuit.n_edges:
            raise BadSetting("over=edge needs a circuit whose edges are masked: give circuit=")
        if isinstance(positions, Mapping):
            raise BadSetting("positions= by name is for heads and groups: give one place, or a list, for edges")
        return EdgeParts(graph, circuit.mask, positions)
    heads = list(graph.heads) if circuit is None else circuit.heads()
    if not heads:
        raise BadSetting("the circuit keeps no heads: give one that does, or leave circuit= out for all heads")
    return HeadParts(graph, {head: [head] for head in heads}, positions)


def check_circuit(graph: ComputationGraph, circuit: Circuit | None) -> None:
    """The circuit belongs to this graph.

    Raises:
        GraphMismatch: it does not.
    """
    if circuit is not None and circuit.graph != graph:
        raise GraphMismatch(
            f"the circuit belongs to another architecture ({circuit.graph.describe()}) than the model ({graph.describe()})"
        )


def together(positions: Sequence[Positions]) -> Positions:
    """Several places as one; `all` if one of them is."""
    if ALL in positions:
        return ALL
    names: list[str | int] = []
    for at in positions:
        names += [at] if isinstance(at, str | int) else list(at)
    return list(dict.fromkeys(names))


def draws(names: Sequence[str], own: frozenset[int], n: int, generator: np.random.Generator) -> list[frozenset[int]]:
    """Sets of as many names as `own` holds, as indices: each without replacement, all different and different from `own`."""
    if not own:
        return []
    chosen = different_sets([len(names)], [len(own)], n, generator, {(tuple(sorted(own)),)})
    return [frozenset(members) for (members,) in chosen]
