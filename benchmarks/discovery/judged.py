"""Held-out judgement of what was found: a curve over MIB's ten sizes for scores, one faithfulness for a circuit.

Faithfulness at an equal size, beside it: of scores, at as many edges as are true, or else at a part's share of the edges
(`EQUAL`); of a circuit that was decided, at its own size, with that of as many of the best edges of `eap_ig` beside.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np

import circuitdisc as cd
from benchmarks.discovery.cells import Cell
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.discovery.selection import By, top_k
from circuitdisc.models.model import Model
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.mib import mib_curve
from circuitdisc.scoring.stability import jaccard
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import Task

EQUAL = {"shipped": 0.05, "real": 0.01}
"""The share of the edges at which scores are compared where the true size is not known."""


def judged(
    cell: Cell, model: Model, task: Task, found: Discovery, scored: bool, n_random: int, true_size: int | None
) -> dict[str, Any]:
    """CMD and CPR of scores, or faithfulness of a circuit that was decided, with random controls beside."""
    asked: dict[str, Any] = {"ablation": cell.ablation, "metric": cell.metric, "n_random": n_random, "seed": cell.seed}
    if not scored:
        score = cd.score(model, task, found.circuit, **asked).get("faithfulness")
        return _columns("faithfulness", score) | _equal(found.circuit.n_edges, score) | _rival(cell, model, task, found)
    curve = cd.curve(model, task, found, **asked)
    lines = {"curve": [point.faithfulness for point in curve.points]}
    lines["random_curve"] = [_mean(point.controls) for point in curve.points]
    joined = {name: " ".join("-" if one is None else f"{one:.4g}" for one in values) for name, values in lines.items()}
    row = _columns("CMD", curve.cmd) | _columns("CPR", curve.cpr) | joined | _by_mib(cell, model, task, found)
    if true_size is not None:
        return row | _equal(true_size, _faithfulness(cell, model, task, found.top_k(true_size)))
    share = EQUAL[cell.part]
    point = next(point for point in curve.points if point.share == share)
    return row | _equal(math.ceil(share * curve.graph_edges), point)


def of_halves(task: Task, found: Discovery, size: int, again: Callable[[Task], Discovery] | None) -> dict[str, Any]:
    """Jaccard index of the circuits that two halves of the search examples give: of `size` edges, or as they were decided.

    Groups of examples stay whole where there are at least five.

    Args:
        again: the same search on other examples, where `found` has not kept what each example adds; None: then nothing.
    """
    halves: list[Circuit] = []
    over = partition_of(task.train)
    for start in (0, 1):
        if found.units is not None:
            counts = np.arange(over.n_drawn) % 2 == start
            halves.append(top_k(found.circuit.graph, found.units.scores(counts.astype(float)), size))
        elif again is not None:
            own = tuple(example for example, unit in zip(task.train, over.of, strict=True) if unit % 2 == start)
            half = again(replace(task, train=own))
            halves.append(half.circuit if half.edge_scores is None else half.top_k(size))
    masks = [half.mask[half.graph.edge_mask][None] for half in halves]
    return {"jaccard_halves": float(jaccard(masks[0], masks[1])[0, 0])} if masks else {}


def _equal(size: int, score: Any) -> dict[str, Any]:
    """Columns of one faithfulness: of a `Score`, or of a point of a curve."""
    value = score.value if hasattr(score, "value") else score.faithfulness
    ends = {"equal_faithfulness_low": score.low, "equal_faithfulness_high": score.high}
    return {"equal_edges": size, "equal_faithfulness": value} | ends


def _rival(cell: Cell, model: Model, task: Task, found: Discovery) -> dict[str, Any]:
    """Faithfulness of as many of the best edges of `eap_ig` as a circuit of single edges has."""
    if found.circuit.granularity != "edge" or not found.circuit.n_edges:
        return {}
    best = cd.discover(model, task, "eap_ig", ablation=cell.ablation, metric=cell.metric).top_k(found.circuit.n_edges)
    return {"equal_faithfulness_eap_ig": _faithfulness(cell, model, task, best).value}


def _faithfulness(cell: Cell, model: Model, task: Task, circuit: Circuit) -> Score:
    scores = cd.score(model, task, circuit, ablation=cell.ablation, metric=cell.metric, n_random=0, seed=cell.seed)
    return scores.get("faithfulness")


def _by_mib(cell: Cell, model: Model, task: Task, found: Discovery) -> dict[str, Any]:
    """CMD and CPR by MIB's conventions, with intervals.

    In a graph of so many edges as a real model's, MIB's CMD is ours but for one edge of each circuit, and is not run again.
    """
    signed = found.signed and "by" in get_algorithm(cell.registered).settings
    by: dict[str, By] = {"cpr": "signed" if signed else "absolute", "cmd": "absolute"}
    if cell.part == "real":
        del by["cmd"]
    options: dict[str, Any] = {"ablation": cell.ablation, "metric": cell.metric, "seed": cell.seed}
    curves = {which: mib_curve(model, task, found, which, **options) for which in dict.fromkeys(by.values())}
    areas = {name: getattr(curves[which], name) for name, which in by.items()}
    ends = {f"{name}_mib_{end}": getattr(area, end) for name, area in areas.items() for end in ("low", "high")}
    return {f"{name}_mib": area.value for name, area in areas.items()} | ends


def _columns(name: str, score: Score) -> dict[str, Any]:
    """Value, interval and the mean of the random controls."""
    ends = {f"{name}_low": score.low, f"{name}_high": score.high}
    return {name: score.value, **ends, f"{name}_random": _mean(score.controls), "note": score.note or ""}


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
