"""`circuitdisc runs`: all that was run below a folder, as a table and as one page that sorts and filters."""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun
from circuitdisc.jobs.collect import figure, folders_below, read_record, rows_of, section, task_in
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output

INDEX, DEFAULT, TRANSFER = "index.html", "runs", "transfer"
LONGEST, MOST_CHARACTERS = 40, 1000  # of a command's name, and of a line in which it is looked for
RECORDS = ("result.json", "drift.json", "transfer.json", "cmap.json", "compare.json", "ladder.json", "plan.json")
PAGES = ("report.html", "transfer.html", "cmap.html", "compare.html")
SHOWN = ("run", "command", "model", "task", "algorithm", "edges", "faithfulness", "interval", "stability", "date", "status")
"""Columns of the table on the terminal."""

Row = dict[str, Any]


def all_runs(folder: Path) -> list[Row]:
    """A line for each search, each cell and each result of another command below a folder, the latest first.

    Raises:
        BadRun: there is no such folder.
    """
    rows = [{**row, **_beside(folder / row["folder"])} for row in rows_of(folder)]
    known = {row["folder"] for row in rows}
    rows += [row for row in _others(folder) if row["folder"] not in known]
    return sorted(rows, key=lambda row: str(row["date"] or ""), reverse=True)


def _beside(place: Path) -> Row:
    """What the table of runs does not read: when a run was begun, how stable its circuit is, and its page."""
    table = read_record(place / "stability.json").get("table")
    rows = [row for row in table if isinstance(row, Mapping)] if isinstance(table, list) else []
    stability = figure(next((row.get("Jaccard") for row in rows if row.get("of") == "edges"), None))
    begun = (record.get("started") for record in map(read_record, _records(place)))
    started = next((started for started in begun if isinstance(started, str)), None)
    return {"stability": stability, "date": started, "page": _page(place)}


def _records(place: Path) -> Iterator[Path]:
    yield from (place / name for name in ("config.json", *RECORDS) if (place / name).is_file())


def _page(place: Path) -> str | None:
    return next((name for name in PAGES if (place / name).is_file()), None)


def _others(folder: Path) -> Iterator[Row]:
    """Results of commands that search nothing, by their records."""
    for place in folders_below(folder):
        record = next((data for path in _records(place) if _name_in(data := read_record(path))), None)
        if record is None or _page(place) is None:
            continue
        checkpoints = record.get("checkpoints")
        yield {
            "folder": place.relative_to(folder).as_posix(),
            "command": _name_in(record),
            "model": section(record, "model").get("name")
            or (", ".join(map(str, checkpoints)) if isinstance(checkpoints, list) else None),
            "task": task_in(record),
            "status": "done",
            **_beside(place),
        }


def _name_in(record: Mapping[str, Any]) -> str:
    """`heads roles` of `circuitdisc heads roles model=gpt2`, or of a record's format; of any other command its beginning."""
    line = str(record.get("command") or "")[:MOST_CHARACTERS]
    program, *words = line.split() or [""]
    if program == "circuitdisc" and (name := " ".join(takewhile(re.compile(r"[a-z_]+").fullmatch, words))):
        return name[:LONGEST]
    return line[:LONGEST] or (TRANSFER if record.get("format") == f"circuitdisc.{TRANSFER}" else "")


def _work(call: Call) -> str:
    if len(call.args) > 1:
        raise BadRun(f"which folder? `circuitdisc runs FOLDER` takes one, not {len(call.args)}")
    folder = Path(call.args[0]) if call.args else Path(DEFAULT)
    rows = all_runs(folder)
    if not rows:
        raise BadRun(f"there is no run below {folder}")
    from circuitdisc.pages.index import shown_row, write_index
    from circuitdisc.pages.tables import text_table
    from circuitdisc.pages.verdict import plain_text

    page = write_index(folder / INDEX, rows, subject=str(folder))
    cells = [shown_row(row) for row in rows]
    columns = [name for name in SHOWN if any(row[name] for row in cells)]
    table = plain_text(text_table(columns, [[row[name] or "-" for name in columns] for row in cells]))
    counted = "1 run" if len(rows) == 1 else f"{len(rows):,} runs"
    return Output(f"{table}\n\n{counted} in {folder}\npage  {page}", {"folder": folder, "page": page, "runs": rows})


JOB = Job(
    name="runs",
    arguments=("[FOLDER]",),
    summary="all runs below a folder (runs/), as a table and as one page that sorts and filters",
    text="""A line for each search, each cell of a command with -m, and each result of another command below FOLDER (runs/ if
none is named), the latest first: model, task, algorithm, size, faithfulness on held-out examples with its interval, stability,
date. Writes FOLDER/index.html, which links to their pages, sorts by any column and filters.""",
    work=_work,
)
