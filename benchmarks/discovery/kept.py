"""Finished cells, each in a journal of its own beside the table, found by what it belongs to.

    TABLE.cells/DIGEST.jsonl    the row of one cell, with all its digits; DIGEST is of weights, examples, settings and version

The table is written from them: a row that is missing there is taken from here, and no cell is run twice.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.discovery.cases import load_case
from benchmarks.discovery.cells import Cell, settings_in_all
from circuitdisc.discovery.registry import REGISTRY
from circuitdisc.errors import CircuitdiscError
from circuitdisc.identity import Identity, identity_of, with_contents
from circuitdisc.results import plain
from circuitdisc.runs import Memo

ROW = "row"


def identity_of_cell(cell: Cell, config: Mapping[str, Any]) -> Identity:
    """What a cell's row belongs to; of a case that is refused, its settings alone."""
    settings = {"cell": str(cell), **with_contents(settings_in_all(cell, config))}
    try:
        case = load_case(cell.case, config, cell.part, cell.seed)
        found = identity_of(case.model, {"train examples": case.task.train, "held-out examples": case.task.heldout}, settings)
    except CircuitdiscError:
        found = Identity(settings=settings)
    return found.with_packages(REGISTRY.versions(cell.registered))


def folder_of_cells(path: Path) -> Path:
    """The folder beside a table in which its cells are kept."""
    return path.with_suffix(".cells")


def kept_row(cell: Cell, config: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A cell's row: that of an earlier start, or computed and kept; with the digest of what it belongs to."""
    identity, folder = identity_of_cell(cell, config), folder_of_cells(Path(config["out"]))
    folder.mkdir(exist_ok=True)
    with closing(Memo(folder / f"{identity.digest}.jsonl", identity)) as memo:
        return {**memo.get(ROW, lambda: plain(compute())), "identity": identity.digest}
