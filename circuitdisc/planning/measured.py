"""How long the parts of a run take on this machine: a plain forward, the first steps of the search, the first circuits scored.

The search itself is run, and stopped after some seconds; how far its progress bar has come by then says what the whole will
take. Everything here is an estimate, unless the search ended by itself.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from circuitdisc.ablation import get_ablation
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import discover
from circuitdisc.discovery.selection import greedy
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.planning.counts import Counts
from circuitdisc.planning.sizes import GRADIENTS
from circuitdisc.progress import OutOfTime, Watch, watching
from circuitdisc.scoring.score import masks_of
from circuitdisc.tasks.base import Task, collate
from circuitdisc.tasks.measured import beside, metric_for
from circuitdisc.wording import duration, percent

AT_ONCE = 1024  # tokens of a batch that is timed
TRIED = 2
"""Controls that are timed."""
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
    elif counts is not None and counts.model_runs[0] * forward > seconds:
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
    before = watch.bars[0].opened if watch.bars else (0.0, 0.0)  # checks of weights and examples, which are done once
    seconds, of_cpu = (start + (end - start) * more for start, end in zip(before, (wall, cpu), strict=True))
    return Timing(seconds, of_cpu, f"estimate: the search on {n} of {len(task.train)} examples"), None


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
    seconds, of_cpu = (start + (end - start) / share for start, end in zip(bar.opened, (wall, cpu), strict=True))
    return Timing(seconds, of_cpu, f"estimate: {percent(share)} of the search in {duration(wall)}")


def time_score(model: Model, task: Task, circuit: Circuit, n_random: int, given: Mapping[str, Any], basis: str) -> Timing:
    """Scoring a circuit, from the circuit and a few of its controls on the first examples.

    Args:
        given: what `score` takes: ablation, metric, seed, memory.
        basis: which circuit it is.
    """
    clock = _Clock()
    controls = random_circuits(circuit, n_random, np.random.default_rng(given["seed"]))
    masks = masks_of(circuit, replace(controls, circuits=controls.circuits[:TRIED]))
    patching = Patching(model, get_ablation(given["ablation"]), task.train, memory=given["memory"])
    drawn, marks = clock.read(), list[tuple[float, float]]()  # and what the ablation learns, which is of all train examples
    examples, n_all = task.train[: -(-len(task.train) // patching.n_chunks(task.train))], len(task.train) + len(task.heldout)
    metrics = beside(model, metric_for(model, task, given["metric"]), "accuracy", "kl")
    del masks["empty"]  # takes next to no time
    patching.evaluate(examples, masks, metrics, on_progress=lambda _: marks.append(clock.read()))
    seconds = []
    for start, *ends in zip(drawn, *marks, strict=True):
        ready, each = ends[0] - start, float(np.mean(np.diff(ends))) if len(ends) > 1 else 0.0
        seconds.append(start + (ready + (1 + len(controls)) * each) * n_all / len(examples))
    words = f"estimate: {basis} and {len(masks) - 2} controls on {len(examples)} examples"
    return Timing(seconds[0], seconds[1], words)


def stand_in(graph: ComputationGraph, n_edges: int | None, seed: int) -> Circuit:
    """A random circuit of the size that a search will find, as far as that is known."""
    scores = np.where(graph.edge_mask, np.random.default_rng(seed).random(graph.edge_mask.shape), np.nan)
    return greedy(graph, scores, min(graph.n_edges, n_edges or STAND_IN))
