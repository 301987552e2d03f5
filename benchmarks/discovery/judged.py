"""Held-out judgement of what was found: a curve over MIB's ten sizes for scores, one faithfulness for a circuit."""

from statistics import mean
from typing import Any

import circuitdisc as cd
from benchmarks.discovery.cells import Cell
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.models.model import Model
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.mib import mib_curves
from circuitdisc.tasks.base import Task


def judged(cell: Cell, model: Model, task: Task, found: Discovery, scored: bool, n_random: int) -> dict[str, Any]:
    """CMD and CPR of scores, or faithfulness of a circuit that was decided, with random controls beside."""
    asked: dict[str, Any] = {"ablation": cell.ablation, "metric": cell.metric, "n_random": n_random, "seed": cell.seed}
    if not scored:
        scores = cd.score(model, task, found.circuit, **asked)
        return _columns("faithfulness", scores.get("faithfulness"))
    curve = cd.curve(model, task, found, **asked)
    lines = {"curve": [point.faithfulness for point in curve.points]}
    lines["random_curve"] = [_mean(point.controls) for point in curve.points]
    joined = {name: " ".join("-" if one is None else f"{one:.4g}" for one in values) for name, values in lines.items()}
    return _columns("CMD", curve.cmd) | _columns("CPR", curve.cpr) | joined | _by_mib(cell, model, task, found)


def _by_mib(cell: Cell, model: Model, task: Task, found: Discovery) -> dict[str, Any]:
    """CMD and CPR by MIB's conventions, with intervals."""
    signed = "by" in get_algorithm(cell.registered).settings
    curves = mib_curves(model, task, found, signed=signed, ablation=cell.ablation, metric=cell.metric, seed=cell.seed)
    areas = {"cmd": curves.absolute.cmd, "cpr": curves.signed.cpr}
    ends = {f"{name}_mib_{end}": getattr(area, end) for name, area in areas.items() for end in ("low", "high")}
    return {f"{name}_mib": area.value for name, area in areas.items()} | ends


def _columns(name: str, score: Score) -> dict[str, Any]:
    """Value, interval and the mean of the random controls."""
    ends = {f"{name}_low": score.low, f"{name}_high": score.high}
    return {name: score.value, **ends, f"{name}_random": _mean(score.controls), "note": score.note or ""}


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
