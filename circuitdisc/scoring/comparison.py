"""What a comparison of two circuits found: what they share, how each does the other's task, and what their heads do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitdisc.circuit import Circuit
from circuitdisc.scoring.base import Scores
from circuitdisc.scoring.intervene import Effect
from circuitdisc.scoring.overlap import Overlap

FORMAT = "circuitdisc.comparison"


@dataclass(frozen=True)
class Side:
    """One of the two circuits.

    Args:
        folder: of its run.
        model, task, algorithm: what it was found with.
        circuit: the circuit.
    """

    folder: str
    model: str
    task: str
    algorithm: str
    circuit: Circuit

    def to_dict(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "circuit"}
        return {
            **plain,
            "granularity": self.circuit.granularity,
            "n_edges": self.circuit.n_edges,
            "heads": self.circuit.heads(),
        }


@dataclass(frozen=True)
class Crossing:
    """One circuit on one task.

    Args:
        circuit, task: `A` or `B`: whose circuit, and whose task, model and ablation.
        scores: what came out.
    """

    circuit: str
    task: str
    scores: Scores


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found.

    Args:
        sides: `A` and `B`.
        overlaps: `heads`, `nodes` and `edges`.
        crossings: each circuit on its own task, where the run has scores, and on the other's.
        effects: `A` or `B`, for the task -> what changing heads does to its metrics.
        notes: what was not done, and why.
        settings: how it was made.
    """

    sides: Mapping[str, Side]
    overlaps: Mapping[str, Overlap]
    crossings: tuple[Crossing, ...] = ()
    effects: Mapping[str, tuple[Effect, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        crossings = [{"circuit": one.circuit, "task": one.task, "scores": one.scores.to_dict()} for one in self.crossings]
        return {
            "format": FORMAT,
            "version": 1,
            "sides": {label: side.to_dict() for label, side in self.sides.items()},
            "overlap": {kind: found.to_dict() for kind, found in self.overlaps.items()},
            "crossings": crossings,
            "effects": {label: [one.to_dict() for one in found] for label, found in self.effects.items()},
            "notes": list(self.notes),
            "settings": dict(self.settings),
        }
