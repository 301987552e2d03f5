"""Which patches cross-model patching makes: units one by one, the model in pieces, groups, pairs, a growing set.

Every patch has a label, under which its values come back. Labels begin with what the patch is for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from circuitdisc.circuit import Circuit
from circuitdisc.controls import different_sets
from circuitdisc.engine.cross.patch import (
    SHARED_KINDS,
    HeadCounts,
    Patch,
    Unit,
    everything,
    unit_of_head,
    units_of,
)
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.heads.base import head_mask
from circuitdisc.heads.knockout import sizes_of_points

Label = tuple[str | int, ...]
NOTHING, EVERYTHING, FINAL = "nothing", "everything", "final residual"
ALL_GROUPS = "all groups"
POINTS = 9  # of the growing set, unless others are asked for


@dataclass(frozen=True)
class Wanted:
    """What is to be patched.

    Args:
        counts: how many layers and heads the model has.
        what: kinds of parts of heads; the first is the one that pairs and the growing set are of.
        groups: named heads, as (layer, head).
        parts: the model in pieces, too.
        top: how many of the best units are tried two by two; 0 for none.
        sizes: points of the growing set; none for no such set.
        n_random: random draws for every group, and random orders.
        alone: every unit by itself, too.
    """

    counts: HeadCounts
    has_mlp: bool
    what: tuple[str, ...]
    groups: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    parts: bool = True
    top: int = 0
    sizes: tuple[int, ...] = ()
    n_random: int = 20
    seed: int = 0
    alone: bool = True

    @property
    def needs_order(self) -> bool:
        """True if units are first scored on the search examples."""
        return self.top > 1 or bool(self.sizes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Activations that must be kept of the other model."""
        pieces = ("output", "residual", *(("mlp",) if self.has_mlp else ())) if self.parts else ()
        return tuple(dict.fromkeys((*self.what, *pieces)))

    @property
    def readout(self) -> bool:
        return self.parts

    def singles(self, kind: str) -> dict[Label, Patch]:
        """Every unit of a kind alone."""
        units = units_of(self.counts, kind)
        return {("unit", kind, at): Patch(frozenset({unit})) for at, unit in enumerate(units)}

    def patches(self, order: Sequence[int]) -> dict[Label, Patch]:
        """All that is judged.

        Args:
            order: units of the first kind, the best on the search examples first.
        """
        patches: dict[Label, Patch] = {}
        for kind in self.what if self.alone else ():
            patches |= self.singles(kind)
        if self.parts:
            patches |= {("part", name): patch for name, patch in self.pieces().items()}
        for name in self.groups:
            for kind in self.what:
                patches |= self._group(name, kind)
        return patches | self._pairs(order) | self._growing(order)

    def pieces(self) -> dict[str, Patch]:
        """The model in pieces, whole first."""
        n_layers, whole = self.counts.n_layers, everything(self.counts, self.has_mlp)
        pieces = {
            NOTHING: Patch(),
            EVERYTHING: whole,
            "embedding": Patch(residual=frozenset({0})),
            "all heads": Patch(whole.heads),
            "all MLPs": Patch(mlps=whole.mlps),
            "all heads and MLPs": Patch(whole.heads, whole.mlps),
            "attention biases": Patch(biases=True),
            "readout": Patch(readout=True),
        }
        pieces |= {f"m{layer}": Patch(mlps=frozenset({layer})) for layer in sorted(whole.mlps)}
        pieces |= {f"residual before layer {layer}": Patch(residual=frozenset({layer})) for layer in range(1, n_layers)}
        pieces[FINAL] = Patch(residual=frozenset({n_layers}))
        if not self.has_mlp:
            pieces = {name: patch for name, patch in pieces.items() if "MLP" not in name}
        return pieces

    # --- groups ------------------------------------------------------------------------------------------------------

    def group_units(self, name: str, kind: str) -> frozenset[Unit]:
        """What of a kind the heads of a group have."""
        return frozenset(unit_of_head(self.counts, kind, layer, head) for layer, head in self.groups[name])

    def _group(self, name: str, kind: str) -> dict[Label, Patch]:
        units = self.group_units(name, kind)
        patches: dict[Label, Patch] = {("group", name, kind): Patch(units)}
        for at, drawn in enumerate(self._random_sets(units, kind, name)):
            patches["random", name, kind, at] = Patch(drawn)
        return patches

    def _random_sets(self, units: frozenset[Unit], kind: str, name: str) -> list[frozenset[Unit]]:
        """As many units of each layer as the group has there, drawn without replacement; no draw twice."""
        own: dict[int, list[int]] = {}
        for _, layer, number in sorted(units):
            own.setdefault(layer, []).append(number)
        layers = sorted(own)
        n = self.counts.n_kv_heads if kind in SHARED_KINDS else self.counts.n_heads
        generator = np.random.default_rng([self.seed, *f"{name}/{kind}".encode()])
        counts, itself = [len(own[layer]) for layer in layers], tuple(tuple(own[layer]) for layer in layers)
        drawn = different_sets([n] * len(layers), counts, self.n_random, generator, {itself})
        return [
            frozenset((kind, layer, number) for layer, numbers in zip(layers, of_layers, strict=True) for number in numbers)
            for of_layers in drawn
        ]

    # --- several of the best ------------------------------------------------------------------------------------------

    def _pairs(self, order: Sequence[int]) -> dict[Label, Patch]:
        units, best = units_of(self.counts, self.what[0]), order[: self.top]
        return {
            ("pair", first, second): Patch(frozenset({units[first], units[second]}))
            for at, first in enumerate(best)
            for second in best[at + 1 :]
        }

    def _growing(self, order: Sequence[int]) -> dict[Label, Patch]:
        units = units_of(self.counts, self.what[0])
        generator = np.random.default_rng(self.seed)
        orders = [list(order), *(generator.permutation(len(units)).tolist() for _ in range(self.n_random if self.sizes else 0))]
        return {
            ("grow", which, size): Patch(frozenset(units[at] for at in ranking[:size]))
            for which, ranking in enumerate(orders)
            for size in self.sizes
        }


# --- settings to sets -----------------------------------------------------------------------------------------------------


def wanted_of(
    counts: HeadCounts,
    has_mlp: bool,
    what: tuple[str, ...],
    groups: dict[str, list[tuple[int, int]]],
    settings: Mapping[str, Any],
) -> Wanted:
    """What a call asks for.

    Args:
        groups: without all of them together.
        settings: `alone`, `parts`, `top`, `grow`, `steps`, `n_random` and `seed`.

    Raises:
        BadSetting: nothing is asked for, or the steps are no points of the growing set.
    """
    alone, parts, n_units = settings["alone"], settings["parts"], len(units_of(counts, what[0]))
    if not (alone or parts or groups):
        raise BadSetting("alone=false and parts=false, and there are no groups: nothing is left to patch")
    top = min(settings["top"], n_units) if alone else 0
    sizes = points(settings["steps"], n_units) if alone and settings["grow"] else ()
    return Wanted(counts, has_mlp, what, with_all(groups), parts, top, sizes, settings["n_random"], settings["seed"], alone)


def points(steps: int | Sequence[int] | None, n_units: int) -> tuple[int, ...]:
    """How many units are patched at each point of the growing set; None spreads them over a few points.

    Raises:
        BadSetting: as `sizes_of_points`.
    """
    return sizes_of_points(min(POINTS, n_units + 1) if steps is None else steps, n_units)


def groups_of(circuit: Circuit) -> dict[str, tuple[str, ...]]:
    """The groups of a circuit that was found group by group; of others, all heads as `circuit`.

    Raises:
        BadSetting: it has no heads.
    """
    heads = tuple(circuit.heads())
    if not heads:
        raise BadSetting("the circuit has no attention heads: there is no group to patch")
    return {name: tuple(members) for name, members in circuit.groups.items() if members} or {"circuit": heads}


def places_of(graph: ComputationGraph, heads: Sequence[str]) -> list[tuple[int, int]]:
    """Layer and number of heads by name.

    Raises:
        GraphMismatch: the graph has no such head.
        BadSetting: there are none.
    """
    if not heads:
        raise BadSetting("a group has no heads: name at least one, as a3.h1")
    return [(int(layer), int(head)) for layer, head in np.argwhere(head_mask(graph, heads))]


def with_all(groups: dict[str, list[tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    """Several groups, and all of them together."""
    if len(groups) < 2:
        return groups
    return groups | {ALL_GROUPS: sorted({place for places in groups.values() for place in places})}
