"""How long the parts of a run take on this machine: a plain forward, the first steps of the search, the first circuits scored.

The search itself is run, and stopped after some seconds; how far its progress bar has come by then says what the whole will
take. Everything here is an estimate, unless the search ended by itself.
"""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import discover
from circuitdisc.discovery.selection import greedy
from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.planning.counts import Counts
from circuitdisc.planning.sizes import GRADIENTS
from circuitdisc.progress import OutOfTime, Watch, watching
from circuitdisc.scoring import score
from circuitdisc.scoring.work import Works, runs_of
from circuitdisc.tasks.base import Task, collate
from circuitdisc.wording import duration, percent

AT_ONCE = 1024  # tokens of a batch that is timed
STAND_IN = 300
"""Edges of the circuit that stands in for one that a search has yet to find."""


@dataclass(frozen=True)
class Timing:
    """Time of a part.

    Args:
        seconds, cpu_seconds: of the whole of it; the second of all threads of this process.
        basis: how it is known.
    """

    seconds: float
    cpu_seconds: float
    basis: str


class _Clock:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = perf_counter(), process_time()

    def read(self) -> tuple[float, float]:
        return perf_counter() - self.wall, process_time() - self.cpu


@torch.no_grad()
def time_forward(model: Model, task: Task, seconds: float) -> Timing:
    """A plain forward of all search examples, from as many as a tenth of the time allows; the faster of two rounds."""
    length = max(map(len, task.train))
    size = max(1, AT_ONCE // length)
    best, tokens = (float("inf"), float("inf")), sum(map(len, task.train))
    for _ in range(2):
        clock, done = _Clock(), 0
        for first in range(0, len(task.train), size):
            examples = task.train[first : first + size]
            batch = collate(examples, device=model.device)
            model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            done += sum(map(len, examples))
            if clock.read()[0] > seconds / 20:
                break
        wall, cpu = clock.read()
        best = min(best, (wall * tokens / done, cpu * tokens / done))
    return Timing(*best, "measured")


def time_search(
    model: Model, task: Task, algorithm: str, settings: Mapping[str, Any], given: Mapping[str, Any], counts: Counts | None,
    forward: float, seconds: float,
) -> tuple[Timing | None, Discovery | None]:  # fmt: skip
    """The search, run for so many seconds.

    Args:
        given: what `discover` takes beside the algorithm's settings.
        counts: planned; None where nobody planned them.
        forward: seconds of a plain forward over the search examples.

    Returns:
        What it takes in all, None if the time ended before a step that says anything; and what was found, if it came to an end.
    """
    n = len(task.train)
    if counts is not None and algorithm in GRADIENTS and counts.usual * forward > seconds / 2:
        n = max(1, int(n * seconds / 2 / (counts.usual * forward)))  # no step of an attribution is shorter than a chunk
    elif counts is not None and counts.serial * forward > seconds:
        return None, None
    whole = n == len(task.train)
    part = task if whole else replace(task, train=task.train[:n])
    asked = dict(given) if whole else {**given, "allow_chance": True}
    clock = _Clock()
    with watching(seconds) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", CircuitdiscWarning)  # the run itself says them
        try:
            found = discover(model, part, algorithm, **asked, **settings)
        except OutOfTime:
            return _extrapolated(watch, clock, algorithm, counts), None
    wall, cpu = clock.read()
    if whole:
        return Timing(wall, cpu, "the search itself, to its end"), found
    more = sum(map(len, task.train)) / sum(map(len, part.train))
    return Timing(wall * more, cpu * more, f"estimate: the search on {n} of {len(task.train)} examples"), None


def _extrapolated(watch: Watch, clock: _Clock, algorithm: str, counts: Counts | None) -> Timing | None:
    """From how far the search's own bar has come."""
    wall, cpu = clock.read()
    own = next((at for at, bar in enumerate(watch.open) if bar.name.startswith(algorithm)), None)
    share = None if own is None else watch.share(own)
    if own is None or not share:
        return None
    bar = watch.open[own]
    units = None if counts is None else counts.units
    if units is not None and len(units) == bar.total:
        share = float(units[: int(bar.n)].sum() / units.sum())
        if not share:
            return None
    before = bar.opened - watch.started
    whole = before + (wall - before) / share
    words = f"estimate: {percent(share)} of the search in {duration(wall)}"
    return Timing(whole, cpu * whole / wall, words)


class _Known(Exception):
    pass


def time_score(model: Model, task: Task, circuit: Circuit, n_random: int, given: Mapping[str, Any], basis: str) -> Timing:
    """Scoring a circuit, from the first circuits that are run.

    Args:
        given: what `score` takes: ablation, metric, seed, memory.
        basis: which circuit it is.
    """
    clock, told = _Clock(), list[tuple[float, float]]()

    def on_pace(pace: float, left: Works) -> None:
        told.append((pace, runs_of(left)))
        raise _Known

    with suppress(_Known):
        score(model, task, circuit, n_random=n_random, on_pace=on_pace, **given)
    wall, cpu = clock.read()
    if not told:
        return Timing(wall, cpu, "the scores themselves, to their end")
    pace, runs = told[0]
    n_circuits, examples = 3, (*task.train, *task.heldout)
    spent = min(wall, pace * len(examples) * n_circuits)  # what these circuits took is among the runs that are left
    whole = max(wall, wall - spent + pace * runs)
    return Timing(whole, cpu * whole / wall, f"estimate: {basis}, {pace * 1000:.3g} ms a circuit and example")


def stand_in(graph: ComputationGraph, n_edges: int | None, seed: int) -> Circuit:
    """A random circuit of the size that a search will find, as far as that is known."""
    scores = np.where(graph.edge_mask, np.random.default_rng(seed).random(graph.edge_mask.shape), np.nan)
    return greedy(graph, scores, min(graph.n_edges, n_edges or STAND_IN))
