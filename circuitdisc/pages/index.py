"""The index of all runs: one page that opens offline, sorts by any column and filters; nothing of a run is more than text."""

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

from circuitdisc.files import write_text
from circuitdisc.pages.page import render
from circuitdisc.wording import duration, interval, is_number, number, percent, share, task_words

COLUMNS = (
    "run", "model", "task", "algorithm", "edges", "faithfulness", "interval", "stability", "date", "random circuits", "command",
    "ablation", "seed", "duration", "status",
)  # fmt: skip
CHOSEN = ("command", "model", "task", "algorithm", "ablation", "status")
"""Columns with a list of their values to choose from, where there are several."""


def shown_row(row: Mapping[str, Any]) -> dict[str, str]:
    """A run as people read it; what is not known is empty."""

    def of(name: str, words: Any) -> str:
        return words(row[name]) if is_number(row.get(name)) else ""

    edges, of_edges = row.get("edges"), row.get("of_edges")
    size = f"{edges:,} ({share(edges, of_edges)})" if isinstance(edges, int) and isinstance(of_edges, int) else ""
    return {
        "run": str(row["folder"]),
        **{name: str(row[name]) if row.get(name) is not None else "" for name in ("command", "model", "algorithm", "ablation")},
        "task": task_words({"path": row["task"]}) if row.get("task") else "",
        "seed": str(row["seed"]) if row.get("seed") is not None else "",
        "edges": size,
        "faithfulness": of("faithfulness", percent),
        "interval": interval(row.get("low"), row.get("high"), percent),
        "random circuits": of("random", percent),
        "stability": of("stability", number),
        "duration": of("seconds", lambda seconds: duration(float(seconds))),
        "date": str(row.get("date") or "").replace("T", " ")[:16],
        "status": str(row.get("error") or row.get("status") or ""),
    }


def write_index(path: str | PathLike[str], rows: Sequence[Mapping[str, Any]], *, subject: str) -> Path:
    """Write the index.

    Args:
        rows: of `circuitdisc.jobs.runs.all_runs`; `page` is a file in a run's folder.
        subject: the folder.

    Raises:
        BadRun: the file cannot be written.
    """
    path, lines = Path(path), [shown_row(row) for row in rows]
    columns = [name for name in COLUMNS if any(line[name] for line in lines)]
    page = render(
        "index.html.j2",
        heading="Runs",
        subject=subject,
        columns=[(name, name in _BY_NUMBER) for name in columns],
        choices={name: values for name in CHOSEN if len(values := sorted({line[name] for line in lines} - {""})) > 1},
        rows=[
            {
                "link": f"{quote(os.fsencode(line['run']))}/{quote(row['page'])}" if row.get("page") else "",
                "cells": [(name, line[name], _value(row, name)) for name in columns],
            }
            for row, line in zip(rows, lines, strict=True)
        ],
    )
    write_text(path, page)
    return path


_BY_NUMBER = {
    "edges": "edges", "faithfulness": "faithfulness", "interval": "low", "random circuits": "random", "stability": "stability",
    "duration": "seconds", "seed": "seed",
}  # fmt: skip
"""Column -> the number by which it is sorted."""


def _value(row: Mapping[str, Any], name: str) -> str:
    """What a cell is sorted by, where that is not its text."""
    value = row.get(_BY_NUMBER.get(name, ""))
    return repr(float(value)) if value is not None and is_number(value) else ""
