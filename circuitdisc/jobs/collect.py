"""`circuitdisc collect`: one table and one page of all runs below a folder."""

import csv
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from circuitdisc.errors import BadFile, BadRun
from circuitdisc.files import read_json, replacing, write_text
from circuitdisc.jobs.config import groups_of
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.queue import queued
from circuitdisc.runs import Cells, CellState
from circuitdisc.wording import interval, is_number, percent

TABLE, PARQUET, PAGE = "summary.csv", "summary.parquet", "summary.html"
CONFIG, SCORES, COST, JOURNAL = "config.json", "scores.json", "cost.json", "journal.jsonl"
SPLIT = "heldout"
SHORT = (
    "folder",
    "model",
    "task",
    "algorithm",
    "seed",
    "ablation",
    "edges",
    "faithfulness",
    "low",
    "high",
    "random",
    "seconds",
)
"""Columns of the table that a terminal gets, beside the settings that differ, and the status."""
SHOWN_ROWS, SHOWN_WORDS = 40, 60  # of a terminal's table
FIGURES = (
    "edges", "of_edges", "heads", "of_heads", "metric", "split", "n", "faithfulness", "low", "high", "confidence", "random",
    "random_low", "random_high", "n_random", "kl", "accuracy", "seconds", "search_seconds", "forward_passes", "backward_passes",
    "candidates", "node_evaluations",
)  # fmt: skip
IN_COLUMNS = {
    "model.name",
    "task.name",
    "task.path",
    "algorithm.name",
    "ablation.kind",
    "seed",
    "task",
    "algorithm",
    "ablation",
}
"""Settings that have a column of their own; a group's name is what was typed."""
NOT_SETTINGS = {"command", "started", "versions", "progress", "memory"}
DEEPEST = 12  # lists and tables of a record within each other
MOST_SETTINGS = 20  # columns of settings that differ

Row = dict[str, Any]


def rows_of(folder: Path) -> list[Row]:
    """A line for each cell and each run below a folder, all with the same columns.

    Raises:
        BadRun: there is no such folder.
    """
    if not folder.is_dir():
        raise BadRun(f"there is no folder {folder}")
    queue = queued()
    found: dict[Path, tuple[Row, Mapping[str, Any]]] = {}
    for place in sorted(folders_below(folder), key=_in_order):
        cells = Cells(place)
        for state in cells.states(queue) if cells else ():
            if state.words:  # units of one call are no runs
                found[place / state.name] = _of_cell(folder, place / state.name, state)
        if place not in found and (place / CONFIG).is_file() and "algorithm" in (config := read_record(place / CONFIG)):
            found[place] = _of_run(folder, place, config, "done" if (place / SCORES).is_file() else "begun")
    rows, configs = [row for row, _ in found.values()], [_flat(config) for _, config in found.values()]
    values: dict[str, set[str]] = {}
    for key, value in (item for config in configs for item in config.items() if item[0] not in IN_COLUMNS):
        values.setdefault(key, set()).add(str(value))
    differ = [key for key, several in values.items() if len(several) > 1]
    for row, config in zip(rows, configs, strict=True):
        row.update({key: config.get(key) for key in differ[:MOST_SETTINGS]})
    last = ("status", "error")
    columns = ["folder", "command", "model", "task", "algorithm", "seed", "ablation", *differ[:MOST_SETTINGS], *FIGURES, *last]
    return [{column: row.get(column) for column in columns} for row in rows]


def folders_below(folder: Path) -> Iterator[Path]:
    """A folder and those below it, but those of logs and hidden ones."""
    for place, inner, _ in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "cells"]
        yield Path(place)


def _in_order(path: Path) -> list[tuple[int, int, str]]:
    """Numbers by their size, words after them."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]


def read_record(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file, without what no record of ours has; nothing if there is none, or it is damaged."""
    try:
        data = read_json(path) if path.is_file() else {}
    except BadFile:
        data = {}
    return _bounded(data, 0) if isinstance(data, dict) else {}


def _bounded(value: Any, depth: int) -> Any:
    """A value of a file without infinities, numbers that only Python has, and depth."""
    if isinstance(value, dict | list) and depth == DEEPEST:
        return "..."
    if isinstance(value, dict):
        return {key: _bounded(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_bounded(inner, depth + 1) for inner in value]
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    return None if isinstance(value, float) and not is_number(value) else value


def section(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a record's settings; an empty one in place of anything else."""
    return value if isinstance(value := record.get(name), dict) else {}


def task_in(record: Mapping[str, Any]) -> Any:
    """The task of a record: the path of one that is a file, else its name."""
    return section(record, "task").get("path") or section(record, "task").get("name")


def figure(value: Any) -> float | None:
    """A number of a record; None in place of anything else."""
    return value if is_number(value) else None


def _of_cell(folder: Path, place: Path, state: CellState) -> tuple[Row, Mapping[str, Any]]:
    from circuitdisc.jobs.registry import REGISTRY

    row, config = _of_run(folder, place, read_record(place / CONFIG), state.status)
    row |= {"command": state.words[0], "seconds": state.seconds, "error": state.error or None}
    if not config or "algorithm" not in config:  # it has not begun, has failed, or is no search
        job = REGISTRY.get(state.words[0]) if state.words[0] in REGISTRY.names else None
        words = groups_of(job.config) if job is not None and job.config is not None else {}
        words = {**words, **{key: value for key, _, value in (word.partition("=") for word in state.words[1:])}}
        names = {"model.name": "model", "task": "task", "algorithm": "algorithm", "seed": "seed", "ablation": "ablation"}
        row |= {column: words.pop(key).strip("'") for key, column in names.items() if key in words}
        config = {key: value for key, value in words.items() if key not in (*NOT_SETTINGS, "metric", "scoring", "model")}
    return row, config


def _of_run(folder: Path, place: Path, config: Mapping[str, Any], status: str) -> tuple[Row, Mapping[str, Any]]:
    """A run's line, from its files as they are, and its settings."""
    scores, cost = read_record(place / SCORES), read_record(place / COST)
    row: Row = {"folder": place.relative_to(folder).as_posix(), "command": "discover", "status": status}
    if "algorithm" in config:
        keys = {"model": "name", "algorithm": "name", "ablation": "kind"}
        row |= {name: section(config, name).get(key) for name, key in keys.items()}
        row |= {"task": task_in(config), "seed": config.get("seed")}
    sizes = {"edges": "circuit_edges", "of_edges": "graph_edges", "heads": "circuit_heads", "of_heads": "graph_heads"}
    row |= {column: figure(scores.get(key)) for column, key in sizes.items()}
    passes = {"search_seconds": "seconds", "backward_passes": "backward_runs", "candidates": "candidates"}
    passes |= {"node_evaluations": "node_evaluations"}
    row |= {column: figure(cost.get(key)) for column, key in passes.items()}
    runs = [number for key in ("model_runs", "circuit_runs") if (number := figure(cost.get(key))) is not None]
    row["forward_passes"] = sum(runs) if runs else None
    row["seconds"] = figure(cost.get("seconds"))
    for score in _list(scores.get("scores")):
        if not isinstance(score, dict) or score.get("split") != SPLIT:
            continue
        if score.get("name") in ("kl", "accuracy"):
            row[score["name"]] = figure(score.get("value"))
        elif score.get("name") == "faithfulness":
            row |= {"faithfulness": figure(score.get("value")), "random": None}
            row |= {"metric": score.get("metric"), "split": SPLIT}
            row |= {key: figure(score.get(key)) for key in ("n", "low", "high", "confidence")}
            drawn = [value for value in _list(score.get("controls")) if is_number(value)]
            row["n_random"] = len(drawn)
            if drawn:
                row |= {"random": median(drawn), "random_low": min(drawn), "random_high": max(drawn)}
    return row, config


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _flat(config: Mapping[str, Any], prefix: str = "") -> Row:
    """Settings by their dotted names."""
    flat: Row = {}
    for key, value in config.items():
        if not prefix and key in NOT_SETTINGS:
            continue
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# --- what is made of the rows -------------------------------------------------------------------------------------------------


def table_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, with all digits; what is not known is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["folder"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def short_table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    from circuitdisc.pages.description import cell
    from circuitdisc.pages.tables import text_table

    lines = _short(rows)
    if not lines:
        return "no runs"
    cells = [[cell(value)[:SHOWN_WORDS] for value in line.values()] for line in lines[:SHOWN_ROWS]]
    more = f"\n... {len(lines) - SHOWN_ROWS:,} more lines in {TABLE}" if len(lines) > SHOWN_ROWS else ""
    return f"{text_table(list(lines[0]), cells)}{more}\n{_counted(rows)}"


def _short(rows: Sequence[Row]) -> list[Row]:
    """The columns that a reader needs: of those with settings, where rows differ."""
    if not rows:
        return []
    own = list(rows[0])
    settings = own[own.index("ablation") + 1 : own.index(FIGURES[0])]
    columns = [*SHORT[:6], *settings, *SHORT[6:], "status"]
    return [_in_words({column: row[column] for column in columns} | {"why": row["error"] or ""}) for row in rows]


def _in_words(row: Row) -> Row:
    """Faithfulness as a percentage, with its interval in a column of its own."""
    words: Row = {name: percent(row[name]) for name in ("faithfulness", "random") if is_number(row[name])}
    between = interval(row["low"], row["high"], percent) or None
    shown = {("interval" if name == "low" else name): words.get(name, value) for name, value in row.items() if name != "high"}
    return shown | {"interval": between}


def _counted(rows: Sequence[Row]) -> str:
    statuses = [row["status"] for row in rows]
    parts = [f"{statuses.count(status):,} {status}" for status in dict.fromkeys(statuses)]
    return f"{len(rows):,} runs: {', '.join(parts)}" if rows else "no runs"


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as Parquet; columns with values of several kinds as text."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            columns[name] = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1 or kinds & {list, dict}:
            columns[name] = [None if value is None else str(value) for value in values]
    with replacing(path) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def _work(call: Call) -> str:
    folder = call.run_folder()
    rows = rows_of(folder)
    if not rows:
        raise BadRun(f"there is no run below {folder}")
    from circuitdisc.pages.description import Description, Section, write_description
    from circuitdisc.pages.verdict import Verdict

    write_text(folder / TABLE, table_csv(rows))
    files = [folder / TABLE]
    if find_spec("pyarrow") is not None:
        write_parquet(folder / PARQUET, rows)
        files.append(folder / PARQUET)
    else:
        print(f"circuitdisc: note: no {PARQUET}: pip install 'circuitdisc[parquet]'", file=sys.stderr)
    note = (
        "Edges: of the circuit. Faithfulness: on held-out examples, with the ends of its interval; random: the median of "
        "random circuits of the same size and kind. The CSV file has more columns"
    )
    failed = [f"{row['folder']}: {row['error']}" for row in rows if row["error"]]
    said = Verdict((f"{_counted(rows)}.",), tuple(failed[:SHOWN_ROWS]))
    description = Description(said, (Section("Runs", _short(rows), note),))
    write_description(folder / PAGE, description, heading="Runs", subject=str(folder), settings={"command": call.command})
    text = "\n".join([short_table(rows), "", *(f"table   {path}" for path in files), f"page    {folder / PAGE}"])
    return Output(text, {"folder": folder, "page": folder / PAGE, "runs": rows})


JOB = Job(
    name="collect",
    arguments=("FOLDER",),
    summary="one table and one page of all runs below a folder",
    text="""A line for each run, and each cell of a command with -m, below FOLDER: model, task, algorithm, seed, ablation,
the settings that differ, size, faithfulness on held-out examples with its interval, random controls, seconds, passes, status.
Writes summary.csv, summary.parquet (pip install circuitdisc[parquet]) and summary.html into FOLDER.""",
    work=_work,
)
