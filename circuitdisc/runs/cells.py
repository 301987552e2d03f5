"""Cells: calls, or units of a call, that any process may run; what became of each, in files that every process can read.

    FOLDER/cells/list.json         the command, and the words of every cell by its name
    FOLDER/cells/NAME/log.jsonl    a line when the cell is begun, done or failed, with process, machine and Slurm job
    FOLDER/cells/NAME/.lock        while it runs (`folders.py`)

A cell runs under its lock, and only where its log does not say that it is done: two calls at once run none twice. A process
that was killed leaves a line `begun` without an end, and a lock that does not count.
"""

import json
import os
import re
import socket
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from circuitdisc.errors import BadFile, BusyFolder, CircuitdiscError, shown
from circuitdisc.files import make_inner_folder, read_json, read_text, sync, write_json
from circuitdisc.identity import hash_bytes
from circuitdisc.runs.folders import WRITER, may_run, writing
from circuitdisc.wording import is_number

CELLS, LIST, LOG = "cells", "list.json", "log.jsonl"
FORMAT = "circuitdisc.cells"
LOG_BYTES, LIST_BYTES = 2**24, 2**28
SECONDS_OF_A_LIST = 60  # that a second call waits while the first one writes the list
BEGUN, DONE, FAILED = "begun", "done", "failed"

Status = Literal["waiting", "running", "done", "failed"]
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
STATUSES: tuple[Status, ...] = ("running", "failed", "waiting", "done")


@dataclass(frozen=True)
class CellState:
    """What is known of a cell.

    Args:
        words: of its command; empty for a unit of one call.
        begun, finished: how often it was begun, and how often it was done.
        seconds: that it took; None unless it is done.
        error: the sentence of its failure.
        holder: the process that runs it, or ran it last.
        job: its Slurm job.
        stamp: what it was done with (`finish`).
    """

    name: str
    words: tuple[str, ...]
    status: Status
    begun: int = 0
    finished: int = 0
    seconds: float | None = None
    error: str = ""
    holder: str = ""
    job: str = ""
    stamp: str = ""


class Cells:
    """The cells of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / CELLS

    def __bool__(self) -> bool:
        return (self.folder / LIST).is_file()

    def place(self, name: str) -> Path:
        """The folder of a cell's log, and of what it leaves for its call."""
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name)[-80:].strip("-")
        return self.folder / (plain if plain == name else f"{plain}-{hash_bytes(name.encode())[:6]}")

    # --- the list -----------------------------------------------------------------------------------------------------------

    def read(self) -> tuple[str, dict[str, tuple[str, ...]]]:
        """The command, and the words of each cell by its name. The name of a call is that of its folder, too: a plain number.

        Raises:
            BadFile: there is no list, it is damaged, or it is none that this package writes.
        """
        data = read_json(self.folder / LIST, LIST_BYTES)
        cells = data.get("cells") if isinstance(data, dict) and data.get("format") == FORMAT else None
        if not isinstance(cells, dict) or not all(map(_are_words, cells.values())):
            raise BadFile(f"{self.folder / LIST} is no list of cells: it is damaged")
        if odd := [name for name, words in cells.items() if words and not _NUMBER.fullmatch(name)]:
            raise BadFile(f"{self.folder / LIST} names a cell {shown(odd[0])}, where -m has 0, 1, 2, ...: it is damaged")
        return _word(data, "command"), {name: tuple(words) for name, words in cells.items()}

    def enter(self, command: str, cells: Mapping[str, Iterable[str]]) -> None:
        """Write the list; a second call writes its own over it."""
        make_inner_folder(self.folder)
        data = {"format": FORMAT, "version": 1, "command": command}
        write_json(self.folder / LIST, data | {"cells": {name: list(words) for name, words in cells.items()}})

    @contextmanager
    def listing(self) -> Iterator[None]:
        """Be the only process that reads and writes the list."""
        make_inner_folder(self.folder)
        with writing(self.folder, SECONDS_OF_A_LIST):
            yield

    # --- a cell -------------------------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, name: str) -> Iterator[CellState | None]:
        """Be the process that runs a cell: gives what is known of it; None where another process runs it now."""
        place = self.place(name)
        make_inner_folder(self.folder)
        make_inner_folder(place)
        try:
            with writing(place):
                yield self.state(name)
        except BusyFolder as busy:
            if busy.folder != place:
                raise
            yield None

    def begin(self, name: str) -> None:
        self._log(name, BEGUN, pid=os.getpid(), host=socket.gethostname(), **_slurm_job())

    def finish(self, name: str, seconds: float, **more: Any) -> None:
        """Say that a cell is done.

        Args:
            more: `stamp`, by which a later call sees that it would run the same, for one.
        """
        self._log(name, DONE, seconds=round(seconds, 3), **more)

    def fail(self, name: str, error: Exception) -> str:
        """Say that a cell has failed; returns the sentence. Of an error that nobody foresaw the traceback is printed, too."""
        if not isinstance(error, CircuitdiscError):
            traceback.print_exception(error)
            error = CircuitdiscError(f"{type(error).__name__}: {' '.join(str(error).split())}")
        self._log(name, FAILED, error=str(error))
        return str(error)

    def state(self, name: str, words: tuple[str, ...] = (), queue: frozenset[str] | None = None) -> CellState:
        """What its log says of a cell.

        Args:
            queue: jobs that Slurm has now; None where it cannot be asked.
        """
        events = [event for event in self._events(name) if event.get("event") in (BEGUN, DONE, FAILED)]
        starts = [event for event in events if event["event"] == BEGUN]
        ends = [event for event in events if event["event"] == DONE]
        last = events[-1] if events else {}
        start = starts[-1] if starts else {}
        status: Status = "waiting" if last.get("event", BEGUN) == BEGUN else last["event"]
        if last.get("event") == BEGUN and (self.place(name) / WRITER).exists() and _is_alive(start, queue):
            status = "running"
        pid, host, since = (_word(start, key) for key in ("pid", "host", "at"))
        seconds = last.get("seconds")
        return CellState(
            name,
            words,
            status,
            len(starts),
            len(ends),
            seconds if is_number(seconds) else None,
            _word(last, "error"),
            f"process {pid} on {host} since {since}" if start else "",
            _word(start, "job"),
            _word(last, "stamp"),
        )

    def states(self, queue: frozenset[str] | None = None) -> list[CellState]:
        """Every cell of the list, in its order."""
        _, cells = self.read()
        return [self.state(name, words, queue) for name, words in cells.items()]

    def _events(self, name: str) -> list[dict[str, Any]]:
        path = self.place(name) / LOG
        if not path.is_file():
            return []
        events = []
        for line in read_text(path, LOG_BYTES).splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):  # cut short by a kill
                continue
            events += [event] if isinstance(event, dict) else []
        return events

    def _log(self, name: str, event: str, **more: Any) -> None:
        path = self.place(name) / LOG
        line = json.dumps({"event": event, "at": datetime.now().astimezone().isoformat(timespec="seconds"), **more})
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            os.write(handle, f"\n{line}\n".encode())  # a line of its own, even behind one that was cut short
            os.fsync(handle)
        finally:
            os.close(handle)
        sync(path.parent)


def _are_words(words: object) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def _word(event: Mapping[str, Any], key: str) -> str:
    """A text or number of a line that anybody may have written; nothing in place of anything else."""
    value = event.get(key)
    return str(value) if isinstance(value, str | int) else ""


def _slurm_job() -> dict[str, str]:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return {"job": job} if job else {}


def _is_alive(start: Mapping[str, Any], queue: frozenset[str] | None) -> bool:
    """Whether the process that began a cell still runs, as far as can be seen from here."""
    if queue is not None and (job := _word(start, "job")):
        return job in queue
    return may_run(start.get("pid"), start.get("host"))
