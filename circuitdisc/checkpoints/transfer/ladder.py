"""Circuits of one graph beside each other: what two share against chance, and what is kept, gained and lost in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from circuitdisc.circuit import Circuit
from circuitdisc.results import Result
from circuitdisc.scoring.overlap import Overlap, overlap

KINDS = ("heads", "edges")


@dataclass(frozen=True, repr=False)
class Pair(Result):
    """What two circuits share.

    Args:
        a, b: their labels.
        overlaps: `heads` and `edges`, with what chance would share.
    """

    a: str
    b: str
    overlaps: Mapping[str, Overlap]

    def to_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, **{kind: overlap.to_dict() for kind, overlap in self.overlaps.items()}}


@dataclass(frozen=True)
class Step:
    """From one circuit of the ladder to the next.

    Args:
        before, after: their labels.
        kind: `heads` or `edges`.
        kept: names of those in both.
        gained: names of those in the later one alone.
        lost: names of those in the earlier one alone.
    """

    before: str
    after: str
    kind: str
    kept: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Ladder(Result):
    """Circuits in the order of their checkpoints.

    Args:
        labels: of the circuits.
        pairs: every two of them, the earlier one first.
        kept_by_all: kind -> names of what every circuit has.
        steps: for each kind, one for each circuit but the first.
    """

    labels: tuple[str, ...]
    pairs: tuple[Pair, ...]
    kept_by_all: Mapping[str, tuple[str, ...]]
    steps: tuple[Step, ...]

    def pair(self, a: str, b: str) -> Pair:
        """What two circuits share.

        Raises:
            KeyError: there is no such pair.
        """
        for pair in self.pairs:
            if {pair.a, pair.b} == {a, b}:
                return pair
        raise KeyError(f"no pair of '{a}' and '{b}'")


def ladder(circuits: Mapping[str, Circuit], order: Sequence[str] | None = None) -> Ladder:
    """What circuits share and how they change in order.

    The edges of head circuits follow from their heads: for them only heads are followed.

    Args:
        circuits: label -> circuit.
        order: labels of those that make the ladder; None: all. The others are only compared in pairs.

    Raises:
        GraphMismatch: they belong to different architectures.
    """
    along = {label: circuits[label] for label in (circuits if order is None else order)}
    pairs = []
    for a, b in combinations(circuits, 2):
        shared = overlap(circuits[a], circuits[b])
        pairs.append(Pair(a, b, {kind: shared[kind] for kind in KINDS}))
    followed = [
        kind for kind in KINDS if kind == "heads" or not any(circuit.granularity == "head" for circuit in along.values())
    ]
    names = {kind: {label: _names(circuit, kind) for label, circuit in along.items()} for kind in followed}
    steps = [
        _step(before, after, kind, names[kind])
        for kind in followed
        for before, after in zip(list(along), list(along)[1:], strict=False)
    ]
    kept = {kind: _in_all(list(names[kind].values())) for kind in followed}
    return Ladder(tuple(along), tuple(pairs), kept, tuple(steps))


def _names(circuit: Circuit, kind: str) -> list[str]:
    """Heads or edges of a circuit, in the graph's order."""
    if kind == "edges":
        return circuit.edge_names()
    return circuit.heads()


def _in_all(names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    rest = [set(names_of) for names_of in names[1:]]
    return tuple(name for name in names[0] if all(name in names_of for names_of in rest)) if names else ()


def _step(before: str, after: str, kind: str, names: Mapping[str, Sequence[str]]) -> Step:
    earlier, later = set(names[before]), set(names[after])
    return Step(
        before,
        after,
        kind,
        tuple(name for name in names[after] if name in earlier),
        tuple(name for name in names[after] if name not in earlier),
        tuple(name for name in names[before] if name not in later),
    )
