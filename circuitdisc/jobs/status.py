"""`circuitdisc status`: what is waiting, running, done and failed in a folder."""

from dataclasses import asdict
from typing import Any

from circuitdisc.errors import BadRun
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.queue import queued
from circuitdisc.runs import Cells, CellState
from circuitdisc.runs.cells import STATUSES
from circuitdisc.runs.folders import WRITER, is_written, writer_of
from circuitdisc.runs.works import is_finished, works_in

LISTED = 40


def _work(call: Call) -> str:
    folder = call.run_folder()
    if not folder.is_dir():
        raise BadRun(f"there is no folder {folder}")
    cells, queue = Cells(folder), queued()
    last = writer_of(folder) if (folder / WRITER).exists() else None
    writer = last if is_written(folder) else None
    states = cells.states(queue) if cells else []
    if not cells and writer is None and not is_finished(folder):
        works_in(folder)  # says what else is wrong with it
    counts = {status: sum(state.status == status for state in states) for status in STATUSES}
    jobs = None if queue is None else sorted(queue)
    data = {"folder": folder, "writer": writer, "slurm_jobs": jobs, "counts": counts, "cells": list(map(asdict, states))}
    lines = [f"{folder} is being written by {writer}"] if writer else []
    lines += [f"{folder} was being written by {last}, which has ended"] if last and not writer else []
    if not cells:
        if is_finished(folder):
            lines += [] if writer else [f"{folder} is finished, and nobody writes in it"]
        elif not writer:
            lines.append(f"{folder} has no cells, and nobody writes in it: `circuitdisc resume {folder}` goes on")
        return Output("\n".join(lines), data)
    command, _ = cells.read()
    lines += [f"{len(states):,} cells of {command}", ", ".join(f"{n:,} {status}" for status, n in counts.items())]
    lines += [f"Slurm has {len(queue):,} jobs of yours, waiting or running"] if queue is not None else []
    return Output("\n".join([*lines, *_table(states)]), data)


def _table(states: list[CellState]) -> list[str]:
    """Cells that are not done, those that need somebody first."""
    from circuitdisc.pages.tables import text_table

    order = sorted((state for state in states if state.status != "done"), key=lambda state: STATUSES.index(state.status))
    if not order:
        return []
    rows = [(state.name, state.status, state.begun, state.job or "-", _why(state)) for state in order[:LISTED]]
    more = [f"... {len(order) - LISTED:,} more"] if len(order) > LISTED else []
    return ["", text_table(("cell", "status", "begun", "Slurm job", "what is known"), rows), *more]


def _why(state: CellState) -> str:
    known: dict[str, Any] = {
        "running": state.holder,
        "failed": state.error,
        "waiting": f"was stopped: {state.holder}" if state.begun else " ".join(state.words[1:]),
    }
    return known[state.status]


JOB = Job(
    name="status",
    arguments=("FOLDER",),
    summary="what is waiting, running, done and failed in a folder",
    text="""The cells of a command with -m, or the units that a command has handed to a launcher: how many are waiting,
running, done and failed; of those not done the sentence, the process that runs it or ran it last, and its Slurm job. The same
command again runs what is not done.""",
    work=_work,
)
