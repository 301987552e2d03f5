"""What a transfer found: circuits as rows, checkpoints as columns, every score of every cell, and the circuits compared.

Shape letters: C circuits, K checkpoints, N random circuits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.checkpoints.transfer.cells import find_score
from circuitdisc.checkpoints.transfer.ladder import Ladder
from circuitdisc.circuit import Circuit
from circuitdisc.results import Result, Row
from circuitdisc.scoring.base import Score

FORMAT = "circuitdisc.transfer"


@dataclass(frozen=True, repr=False)
class FoundCircuit(Result):
    """One circuit of the matrix.

    Args:
        label: its name in the matrix: the checkpoint's for a circuit found on one, `joint`, `donor A -> B`, or a given file's.
        kind: `own` (found on one checkpoint), `joint`, `donor` or `given`.
        found_on: the checkpoints that the search saw.
        circuit: the circuit.
        note: what a reader must know of it.
    """

    KEYS = ("label", "kind", "found_on", "n_edges", "graph_edges", "heads", "n_heads", "graph_heads", "note")

    label: str
    kind: str
    found_on: tuple[str, ...]
    circuit: Circuit
    note: str = ""

    @property
    def n_edges(self) -> int:
        return self.circuit.n_edges

    @property
    def graph_edges(self) -> int:
        """Edges of the whole graph."""
        return self.circuit.graph.n_edges

    @property
    def heads(self) -> list[str]:
        return self.circuit.heads()

    @property
    def n_heads(self) -> int:
        return len(self.heads)

    @property
    def graph_heads(self) -> int:
        """Heads of the whole graph."""
        return self.circuit.graph.n_layers * self.circuit.graph.n_heads


@dataclass(frozen=True, repr=False)
class Transfer(Result):
    """Every circuit on every checkpoint.

    Args:
        checkpoints: names, in the order of the ladder: the columns.
        circuits: the rows.
        cells: (circuit's label, checkpoint) -> scores.
        ladder: overlaps of all circuits, and what is kept, gained and lost along those of the ladder.
        metric: that was searched with.
        ablation: label of the ablation that all cells were scored under.
        notes: checkpoint -> what a reader must know of it (that it does not do the task, say).
        settings: how it was made.
    """

    FORMAT = FORMAT
    KEYS = ("checkpoints", "circuits", "metric", "ablation", "cells=cell_lines", "ladder", "notes", "settings")

    checkpoints: tuple[str, ...]
    circuits: tuple[FoundCircuit, ...]
    cells: Mapping[tuple[str, str], tuple[Score, ...]]
    ladder: Ladder
    metric: str
    ablation: str
    notes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Held-out examples."""
        return next((score.n for scores in self.cells.values() for score in scores if score.split == "heldout"), 0)

    @property
    def cell_lines(self) -> list[Row]:
        """Every cell with all its scores."""
        return [{"circuit": row, "checkpoint": column, "scores": list(scores)} for (row, column), scores in self.cells.items()]

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows' names."""
        return tuple(circuit.label for circuit in self.circuits)

    def get(
        self, circuit: str, checkpoint: str, name: str = "accuracy", split: str = "heldout", metric: str | None = None
    ) -> Score:
        """One score of one cell.

        Raises:
            KeyError: there is no such cell, or no such score in it.
        """
        if (circuit, checkpoint) not in self.cells:
            raise KeyError(f"no cell of '{circuit}' on '{checkpoint}'")
        return find_score(self.cells[circuit, checkpoint], name, split, metric)

    def kinds(self) -> list[tuple[str, str]]:
        """Name and metric of every score that each cell has."""
        scores = next(iter(self.cells.values()), ())
        return list(dict.fromkeys((score.name, score.metric) for score in scores))

    def values(self, name: str = "accuracy", split: str = "heldout", metric: str | None = None) -> Float[np.ndarray, "C K"]:
        """The matrix of one score; NaN where it is undefined."""
        rows = [[self.get(row, column, name, split, metric).value for column in self.checkpoints] for row in self.labels]
        return np.array(rows, dtype=float)

    def arrays(self) -> dict[str, np.ndarray]:
        """All matrices: `<score>_<metric>_<split>` [C, K], with `_low` and `_high`, and `_random` [C, K, N]."""
        arrays: dict[str, np.ndarray] = {"circuits": np.array(self.labels), "checkpoints": np.array(self.checkpoints)}
        for name, metric in self.kinds():
            for split in ("train", "heldout"):
                cells = [[self.get(row, column, name, split, metric) for column in self.checkpoints] for row in self.labels]
                key = f"{name}_{metric}_{split}" if name != metric else f"{name}_{split}"
                for part in ("value", "low", "high"):
                    values = [[getattr(cell, part) for cell in row] for row in cells]
                    arrays[key if part == "value" else f"{key}_{part}"] = np.array(values, dtype=float)
                arrays[f"{key}_random"] = _padded([[cell.controls for cell in row] for row in cells])
        return arrays

    def table(self, name: str = "accuracy", split: str = "heldout", metric: str | None = None) -> list[Row]:
        """A line a cell: value, interval, n, random circuits, and under what it was measured."""
        return [
            self._line(circuit, column, self.get(circuit.label, column, name, split, metric))
            for circuit in self.circuits
            for column in self.checkpoints
        ]

    def _line(self, circuit: FoundCircuit, column: str, score: Score) -> Row:
        drawn = [control for control in score.controls if control is not None]
        return {
            "circuit of": circuit.label,
            "on": column,
            "score": score.name,
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "n": score.n,
            "random median": float(np.median(drawn)) if drawn else None,
            "random lowest": min(drawn, default=None),
            "random highest": max(drawn, default=None),
            "split": score.split,
            "ablation": score.ablation,
            "metric": score.metric,
            "note": score.note,
        }

    def best_for(self, checkpoint: str, name: str | None = None, metric: str | None = None) -> FoundCircuit:
        """The circuit that scores best on a checkpoint's search examples; of equal ones the smallest.

        Chosen there and judged on the held-out examples, it is a circuit found on one checkpoint and verified on another.
        Circuits of checkpoints that do not do the task are passed over: what a search finds there (often the whole model)
        is no circuit of the task.

        Args:
            name: of the score; None: the mean of the metric that was searched with. KL and difference are best when small.
        """
        name = name or self.metric
        able = [circuit for circuit in self.circuits if circuit.kind != "own" or circuit.label in self.ladder.labels]
        sign = -1.0 if name in ("kl", "difference") else 1.0

        def rank(circuit: FoundCircuit) -> tuple[float, int]:
            value = self.get(circuit.label, checkpoint, name, "train", metric).value
            return (-np.inf if value is None else sign * value, -circuit.circuit.n_edges)

        return max(able, key=rank)


def _padded(controls: list[list[tuple[float | None, ...]]]) -> Float[np.ndarray, "C K N"]:
    """Random circuits' scores, NaN where one is undefined or missing."""
    longest = max((len(cell) for row in controls for cell in row), default=0)
    return np.array([[[*cell, *[None] * (longest - len(cell))] for cell in row] for row in controls], dtype=float).reshape(
        len(controls), len(controls[0]) if controls else 0, longest
    )
