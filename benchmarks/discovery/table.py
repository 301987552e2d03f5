"""The table: a CSV file to which rows are added as cells finish, by several processes at once.

A row is one write under a lock, so that rows never mix. A kill can at worst cut the last line short, which is then left out.
Where two rows have one cell, the later one counts. A row says by a digest what it belongs to (`kept.py`); one of an
older table, which has no such column, is known by its settings alone; one that has no figures by MIB's conventions, or at an
equal size, is not run again for them.
"""

import csv
import fcntl
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.discovery.cells import AXES, Cell
from circuitdisc.errors import BadFile
from circuitdisc.files import write_text

AREAS = tuple(f"{name}{end}" for name in ("CMD", "CPR", "faithfulness") for end in ("", "_low", "_high", "_random"))
MIB = ("auroc_mib", *(f"{name}_mib{end}" for name in ("cmd", "cpr") for end in ("", "_low", "_high")))
"""Figures by the conventions of the MIB benchmark (`circuitdisc/scoring/mib.py`)."""
BESIDE = ("equal_edges", *(f"equal_faithfulness{end}" for end in ("", "_low", "_high", "_eap_ig")), "jaccard_halves")
"""Faithfulness at an equal size (`judged.py`), and how alike the circuits of two halves of the search examples are."""
COLUMNS = (
    *AXES,
    *("family", "kind", "examples", "graph_edges", "circuit_edges", "true_edges"),
    *("AUROC_edges", "AUROC_nodes", "precision_edges", "recall_edges", "precision_nodes", "recall_nodes"),
    *(f"{name}_at_true_size" for name in ("precision_edges", "recall_edges", "precision_nodes", "recall_nodes")),
    *AREAS,
    *("curve", "random_curve"),
    *MIB,
    *BESIDE,
    *(f"jaccard_{name}" for name in ("edges", "edges_low", "edges_high", "heads", "edges_seeds", "heads_seeds")),
    *("forward_passes", "backward_passes", "node_evaluations", "seconds", "cell_seconds", "settings", "note", "identity"),
)
_WITHOUT_BESIDE = tuple(name for name in COLUMNS if name not in BESIDE)
_WITHOUT_MIB = tuple(name for name in _WITHOUT_BESIDE if name not in MIB)
OLDER = (_WITHOUT_BESIDE, _WITHOUT_MIB, _WITHOUT_MIB[:-1])
Row = dict[str, str]


def line(row: Mapping[str, Any]) -> str:
    """A row as a line; figures with four digits after the point, what is not known left empty."""
    cells = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n").writerow(cells)
    return text.getvalue()


def start(path: Path) -> None:
    """Make the table if there is none; leave out a last line that was cut short; give an older one the columns that it lacks.

    Raises:
        BadFile: there is another file of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = line(dict(zip(COLUMNS, COLUMNS, strict=True)))
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.startswith(tuple(",".join(older) + "\n" for older in OLDER)):
        write_text(path, header + "".join(map(line, read(path).values())))
    elif text and not text.startswith(header):
        raise BadFile(f"{path} is not a table of this benchmark: choose another with out=, or remove it")
    elif not text or not text.endswith("\n"):
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
            rows = list(csv.DictReader(file, restval=None))
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    columns = tuple(rows[0]) if rows else COLUMNS
    if columns not in (COLUMNS, *OLDER):
        raise BadFile(f"{path} is not a table of this benchmark")
    whole = ({**dict.fromkeys(COLUMNS, ""), **row} for row in rows if row[columns[-1]] is not None)
    return {Cell.of([row[axis] for axis in AXES]): row for row in whole}


def to_do(path: Path, cells: Iterable[tuple[Cell, str]], digest: Callable[[Cell], str]) -> list[tuple[Cell, str]]:
    """Cells that are not in the table, or were run with other settings, weights, examples or another version.

    Args:
        cells: each with its settings as `settings_text` gives them.
        digest: of what a cell belongs to now; asked of those alone whose row has one, since it takes the case's model.
    """
    rows = read(path)

    def is_done(cell: Cell, settings: str) -> bool:
        row = rows.get(cell)
        if row is None or row["settings"] != settings:
            return False
        return not row["identity"] or row["identity"] == digest(cell)

    return [(cell, settings) for cell, settings in cells if not is_done(cell, settings)]
