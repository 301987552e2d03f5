"""The job of `circuitdisc compare`: the circuits of two runs, beside each other. Plain arguments, as in `jobs/pipeline.py`."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from typing_extensions import Unpack

from circuitdisc.ablation import get_ablation
from circuitdisc.bound import check_circuit, check_written, identity_of_scores
from circuitdisc.checks import N_RANDOM, SHARE, Real, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.engine.interventions import Intervention, check_interventions
from circuitdisc.engine.selfcheck import load_model
from circuitdisc.errors import BadRun, BadSetting, BadTask, CircuitdiscError, UnknownName
from circuitdisc.files import write_json
from circuitdisc.jobs.pipeline import CIRCUIT, SCORES, build_task
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, Option, takes
from circuitdisc.pages.comparison import write_comparison
from circuitdisc.runs import Run, check_free, versions
from circuitdisc.schemas import read_record
from circuitdisc.scoring import Scores, score
from circuitdisc.scoring.comparison import Comparison, Crossing, Side
from circuitdisc.scoring.intervene import Effect, effects
from circuitdisc.scoring.overlap import Overlap, overlap
from circuitdisc.sections import open_run
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import beside
from circuitdisc.tasks.roles import position_of

Doing = Literal["heads", "none"]
JSON, PAGE = "compare.json", "compare.html"


class Comparing(Drawing, total=False):
    """What the circuits are compared with."""

    n_random: Annotated[int, Option(20, "random circuits, and draws of other heads.", N_RANDOM)]


@bounded(scale=Real(-1e6, 1e6), share=SHARE)
@takes(Comparing, progress=True)
def compare_runs(
    run_a: str | Path,
    run_b: str | Path,
    *,
    out: str | Path | None = None,
    interventions: Doing = "heads",
    heads: Sequence[str] | None = None,
    scale: float | None = None,
    attend: tuple[str | int, str | int] | None = None,
    share: float = 1.0,
    mix: bool = False,
    **options: Unpack[Comparing],
) -> tuple[Comparison, Path]:
    """Compare the circuits of two runs.

    Each task is run in its own run's model, under its own run's ablation and metric, so that checkpoints may differ.

    Args:
        run_a, run_b: folders of runs whose search is finished.
        out: folder for compare.json and compare.html; None makes one under runs/.
        interventions: `none` compares the circuits alone, and runs no model.
        heads: heads to change; None: those in both circuits.
        scale: what their outputs are multiplied by; None: 0, unless `attend` is given.
        attend: (query, key), the positions that their attention is moved from and to.
        share: how much of it.
        mix: compare circuits that were found under different ablations, each judged under its own.

    Returns:
        The comparison, and the folder that holds it.

    Raises:
        BadRun: a folder is no run, or has no circuit yet, or its weights, examples or settings have changed since; or `out` is
            taken.
        GraphMismatch: the runs' models differ in architecture.
        UnknownName: a head or a position is not known.
        BadSetting: a setting cannot be used, or the circuits were found under different ablations and `mix` is not set.
    """
    asked: dict[str, Any] = {"heads": heads, "scale": scale, "attend": attend, "share": share}
    given = [name for name in ("heads", "scale", "attend") if asked[name] is not None]
    if interventions not in get_args(Doing):
        raise UnknownName("interventions", str(interventions), get_args(Doing))
    if interventions == "none" and given:
        raise BadSetting(f"{given[0]}= changes heads, but interventions=none asks for none: leave one of them out")
    runs = {"A": open_run(run_a), "B": open_run(run_b)}
    sides = {label: _side(run) for label, run in runs.items()}
    found = overlap(sides["A"].circuit, sides["B"].circuit, mix=True)  # whether they may meet is asked below
    labels = {label: get_ablation(run.config["ablation"]).label for label, run in runs.items()}
    if labels["A"] != labels["B"] and not mix:
        raise BadSetting(
            f"the circuits were found under different ablations ({labels['A']} and {labels['B']}), under which different edges "
            "count: find both under one of them, or compare them all the same with mix=true"
        )
    changes = _changes(sides["A"].circuit, found["heads"], asked)
    folder = Path(out) if out is not None else _default_folder(runs)
    settings = {"runs": [str(run.folder) for run in runs.values()], "interventions": interventions, **asked}
    common: dict[str, Any] = dict(options)
    settings |= {name: common[name] for name in ("n_random", "confidence", "seed", "memory")} | {"versions": versions()}
    with _staged(folder) as beside:
        comparison = Comparison(sides, found, settings=settings)
        if interventions != "none":
            models = _models(runs)
            tasks = {label: build_task(models[label], run.config) for label, run in runs.items()}
            for label, run in runs.items():
                where, own = run.path(CIRCUIT), (models[label], tasks[label])
                check_circuit(where, sides[label].circuit, run.config, *own)
                check_written(run.path(SCORES), identity_of_scores(run.config, *own, sides[label].circuit))
            tried = _effects(models, tasks, runs, changes, bool(given), common)  # first: a wrong head or role is seen at once
            crossings = tuple(_crossings(models, tasks, runs, sides, common))
            notes = (*_differences(runs), *tried[1])
            comparison = Comparison(sides, found, crossings, tried[0], notes, settings)
        write_json(beside / JSON, comparison.to_dict())
        write_comparison(beside / PAGE, comparison)
    return comparison, folder


# --- the two runs ---------------------------------------------------------------------------------------------------------


def _side(run: Run) -> Side:
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    circuit, config = Circuit.load(run.path(CIRCUIT)), run.config
    model, task, algorithm = (config[section]["name"] for section in ("model", "task", "algorithm"))
    task = config["task"].get("path") or task
    return Side(str(run.folder), str(model), str(task), str(algorithm), circuit)


def _default_folder(runs: Mapping[str, Run]) -> Path:
    names = [run.folder.resolve().name for run in runs.values()]
    return Path("runs") / "_".join(["compare", *names, datetime.now().strftime("%Y-%m-%d_%H-%M-%S")])


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, which takes its name once all is written; removed if anything fails."""
    check_free(folder)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise BadRun(f"cannot make the folder {folder}: {error.strerror}. Choose another one with out=") from error
    try:
        yield beside
        beside.replace(folder)
    except OSError as error:
        raise BadRun(f"cannot write {folder}: {error.strerror}. Choose another one with out=") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _models(runs: Mapping[str, Run]) -> dict[str, Model]:
    """Each run's model; loaded once if both have the same."""
    first = load_model(**runs["A"].config["model"])
    same = runs["A"].config["model"] == runs["B"].config["model"]
    return {"A": first, "B": first if same else load_model(**runs["B"].config["model"])}


def _differences(runs: Mapping[str, Run]) -> Iterator[str]:
    """Notes on what else differs between the runs than the task."""
    a, b = (run.config for run in runs.values())
    if a["model"] != b["model"]:
        yield "the circuits come from different checkpoints: each task is run in the model of its own run"
    if a["ablation"] != b["ablation"]:
        yield "the circuits were found under different ablations: on each task both are scored under that of the task's own run"


# --- each circuit on the other's task -------------------------------------------------------------------------------------


def _crossings(
    models: Mapping[str, Model],
    tasks: Mapping[str, Task],
    runs: Mapping[str, Run],
    sides: Mapping[str, Side],
    common: Mapping[str, Any],
) -> Iterator[Crossing]:
    for task in sides:
        for circuit in sides:
            if circuit == task:
                if runs[task].path(SCORES).exists():
                    yield Crossing(circuit, task, read_record(Scores, runs[task].path(SCORES)))
                continue
            config = runs[task].config
            ablation, metric = dict(config["ablation"]), config["metric"].get("name")
            found = score(
                models[task],
                tasks[task],
                sides[circuit].circuit,
                ablation=ablation,
                metric=metric or tasks[task].metric,
                **common,
            )
            yield Crossing(circuit, task, found)


# --- changed heads --------------------------------------------------------------------------------------------------------


def _changes(circuit: Circuit, heads: Overlap, asked: Mapping[str, Any]) -> list[Intervention]:
    """The same intervention on every head asked for, or on every shared one.

    Raises:
        UnknownName: the graph has no such head.
    """
    names = list(dict.fromkeys(heads.shared if asked["heads"] is None else asked["heads"]))
    known = circuit.graph.heads
    for name in names:
        if name not in known:
            raise UnknownName("head", name, known, f"The runs' models have {circuit.graph.describe()}, counted from 0.")
    scale = 0.0 if asked["scale"] is None and asked["attend"] is None else asked["scale"]
    return [Intervention(name, scale, asked["attend"], asked["share"]) for name in names]


def _effects(
    models: Mapping[str, Model],
    tasks: Mapping[str, Task],
    runs: Mapping[str, Run],
    changes: Sequence[Intervention],
    given: bool,
    common: Mapping[str, Any],
) -> tuple[dict[str, tuple[Effect, ...]], list[str]]:
    """The effects on both tasks, and notes on those that were not measured.

    Args:
        given: whether the user asked for these changes: then what cannot be done is an error, not a note.
    """
    if not changes:
        return {}, ["no head is in both circuits, so none was changed: heads= says which to change"]
    if not all(model.can("interventions") for model in models.values()) and not given:
        return {}, ["no head was changed: the model runs by hooks"]
    found: dict[str, tuple[Effect, ...]] = {}
    refused: dict[str, CircuitdiscError] = {}
    for label, task in tasks.items():
        check_interventions(models[label], changes)
        try:
            _check_positions(task, changes[0])
        except (UnknownName, BadTask) as error:  # a role that one of the tasks has is enough
            refused[label] = error
            continue
        metric = runs[label].config["metric"].get("name") or task.metric
        measured = beside(models[label], get_metric(metric), "accuracy", *(["pair_accuracy"] if task.has_wrong else []))
        found[label] = effects(models[label], task, changes, metrics=measured, **common)
    if not found:
        raise refused["A"]
    return found, [f"no head was changed on task {label}: {error}" for label, error in refused.items()]


def _check_positions(task: Task, change: Intervention) -> None:
    for position in change.attend or ():
        for example in task.heldout:
            position_of(example, position)
