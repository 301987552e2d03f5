"""The table: a CSV file to which rows are added as cells finish, by several processes at once.

A row is one write under a lock, so that rows never mix. A kill can at worst cut the last line short, which is then left out.
Where two rows have one cell, the later one counts.
"""

import csv
import fcntl
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.discovery.cells import AXES, Cell
from circuitdisc.errors import BadFile
from circuitdisc.files import write_text

AREAS = tuple(f"{name}{end}" for name in ("CMD", "CPR", "faithfulness") for end in ("", "_low", "_high", "_random"))
COLUMNS = (
    *AXES,
    *("family", "kind", "examples", "graph_edges", "circuit_edges", "true_edges"),
    *("AUROC_edges", "AUROC_nodes", "precision_edges", "recall_edges", "precision_nodes", "recall_nodes"),
    *(f"{name}_at_true_size" for name in ("precision_edges", "recall_edges", "precision_nodes", "recall_nodes")),
    *AREAS,
    *("curve", "random_curve"),
    *(f"jaccard_{name}" for name in ("edges", "edges_low", "edges_high", "heads", "edges_seeds", "heads_seeds")),
    *("forward_passes", "backward_passes", "node_evaluations", "seconds", "cell_seconds", "settings", "note"),
)
Row = dict[str, str]


def line(row: Mapping[str, Any]) -> str:
    """A row as a line; figures with four digits after the point, what is not known left empty."""
    cells = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n").writerow(cells)
    return text.getvalue()


def start(path: Path) -> None:
    """Make the table if there is none; leave out a last line that was cut short.

    Raises:
        BadFile: there is another file of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = line(dict(zip(COLUMNS, COLUMNS, strict=True)))
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.startswith(header):
        raise BadFile(f"{path} is not a table of this benchmark: choose another with out=, or remove it")
    if not text or not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1] or header)


def add(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row."""
    with path.open("a", encoding="utf-8", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed
        file.write(line(row))


def read(path: Path) -> dict[Cell, Row]:
    """All rows by cell.

    Raises:
        BadFile: there is no table, or it is not one.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    if rows and set(rows[0]) != set(COLUMNS):
        raise BadFile(f"{path} is not a table of this benchmark")
    whole = (row for row in rows if row["note"] is not None)
    return {Cell.of([row[axis] for axis in AXES]): row for row in whole}


def to_do(path: Path, cells: Iterable[tuple[Cell, str]]) -> list[tuple[Cell, str]]:
    """Cells that are not in the table, or were run with other settings.

    Args:
        cells: each with its settings as `settings_text` gives them.
    """
    done = {cell: row["settings"] for cell, row in read(path).items()}
    return [(cell, settings) for cell, settings in cells if done.get(cell) != settings]
