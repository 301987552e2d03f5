"""What a comparison of two circuits found: what they share, how each does the other's task, and what their heads do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitdisc.circuit import Circuit
from circuitdisc.errors import shorten
from circuitdisc.results import Result, Row
from circuitdisc.scoring.base import Scores
from circuitdisc.scoring.intervene import Effect
from circuitdisc.scoring.overlap import Overlap


@dataclass(frozen=True, repr=False)
class Side(Result):
    """One of the two circuits.

    Args:
        folder: of its run.
        model, task, algorithm: what it was found with.
        circuit: the circuit.
    """

    KEYS = ("folder", "model", "task", "algorithm", "granularity", "n_edges", "heads")

    folder: str
    model: str
    task: str
    algorithm: str
    circuit: Circuit

    @property
    def granularity(self) -> str:
        """What its algorithm decided on."""
        return self.circuit.granularity

    @property
    def n_edges(self) -> int:
        return self.circuit.n_edges

    def heads(self) -> list[str]:
        """Of the circuit."""
        return self.circuit.heads()


@dataclass(frozen=True, repr=False)
class Crossing(Result):
    """One circuit on one task.

    Args:
        circuit, task: `A` or `B`: whose circuit, and whose task, model and ablation.
        scores: what came out.
    """

    circuit: str
    task: str
    scores: Scores

    def table(self) -> list[Row]:
        """A line a score."""
        return [{"circuit": self.circuit, "task": self.task, **row} for row in self.scores.table()]


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """All that a comparison found.

    Args:
        sides: `A` and `B`.
        overlaps: `heads`, `nodes` and `edges`.
        crossings: each circuit on its own task, where the run has scores, and on the other's.
        effects: `A` or `B`, for the task -> what changing heads does to its metrics.
        notes: what was not done, and why.
        settings: how it was made.
    """

    FORMAT = "circuitdisc.comparison"
    KEYS = ("sides", "overlap=overlaps", "crossings", "effects", "notes", "settings")

    sides: Mapping[str, Side]
    overlaps: Mapping[str, Overlap]
    crossings: tuple[Crossing, ...] = ()
    effects: Mapping[str, tuple[Effect, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> list[Row]:
        """A line a score of each circuit on each task."""
        return [row for crossing in self.crossings for row in crossing.table()]

    def __repr__(self) -> str:
        of = " and ".join(f"{shorten(side.task, 30)} on {shorten(side.model, 30)}" for side in self.sides.values())
        return f"Comparison({of}; {len(self.crossings)} circuits scored on a task)"
