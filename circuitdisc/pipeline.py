"""The main job: load, discover, score, report, in a run's folder. Plain arguments; the command line is a thin layer above."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.lines import check_lines
from circuitdisc.discovery.registry import discover
from circuitdisc.errors import BadFile, BadRun, BadSetting, CircuitdiscError
from circuitdisc.exchange import write_graph_json
from circuitdisc.files import read_arrays, read_json, write_arrays
from circuitdisc.models.model import Model
from circuitdisc.patching.selfcheck import load_model
from circuitdisc.report import scores_table
from circuitdisc.report.page import write_report
from circuitdisc.runs import Run, check_free
from circuitdisc.schemas import CostFile, StabilityFile, read_record, validate
from circuitdisc.scoring import Scores, score
from circuitdisc.scoring.judged import JudgementFile
from circuitdisc.sections import check_sections, open_run
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Task

CIRCUIT, SCORES, COST, PAGE = "circuit.json", "scores.json", "cost.json", "report.html"
EDGE_SCORES = "edge_scores.npz"
JUDGEMENT, STABILITY = "judgement.json", "stability.json"


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: its folder, and what is in it."""

    folder: Path
    circuit: Circuit
    scores: Scores

    @property
    def summary(self) -> str:
        """The table that ends a run."""
        table = scores_table(self.scores, self.circuit.provenance.model)
        return f"{table}\n\nrun     {self.folder}\nreport  {self.folder / PAGE}"


def default_folder(config: Mapping[str, Any]) -> Path:
    """`runs/<model>_<task>_<algorithm>_<date and time>`."""
    task = config["task"].get("path") or config["task"]["name"]
    parts = (Path(str(config["model"]["name"])).as_posix(), Path(str(task)).stem, config["algorithm"]["name"])
    words = [part.strip("./~").replace("/", "-") for part in parts]
    return Path("runs") / "_".join([*words, datetime.now().strftime("%Y-%m-%d_%H-%M-%S")])


def start(config: Mapping[str, Any], folder: Path | None = None) -> Outcome:
    """Run the main job in a new folder.

    Args:
        config: sections `model`, `task`, `algorithm`, `ablation`, `metric`, `scoring`, and `seed`, `memory`, `allow_chance`,
            `progress`; as in conf/config.yaml.
        folder: the run's folder; None makes one under runs/.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind unless the search had begun; then it can be resumed.
    """
    check_sections(config)
    folder = folder or default_folder(config)
    check_free(folder)
    model = load_model(**config["model"])  # before the folder is made: bad input leaves nothing behind
    task = build_task(model, config)
    run = Run.create(folder, config)
    try:
        return _finish(run, model, task)
    except CircuitdiscError:
        journal = run.path("journal.jsonl")
        if not journal.exists() or not journal.read_text(encoding="utf-8").strip():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(folder: str | Path, progress: bool = True) -> Outcome:
    """Go on with a run that was killed; a finished part is not done again.

    Raises:
        BadRun: the folder is not a run.
    """
    run = open_run(folder)
    run.config["progress"] = progress
    check_sections(run.config)
    model = load_model(**run.config["model"])
    return _finish(run, model, build_task(model, run.config))


def build_task(model: Model, config: Mapping[str, Any]) -> Task:
    """The task of a configuration."""
    settings = dict(config["task"])
    return load_task(settings.pop("name"), model, **{"seed": config["seed"], **settings})


def rescore(folder: str | Path, changes: Mapping[str, Any], progress: bool = True) -> Scores:
    """Score a run's circuit, with some settings changed (another model, more held-out examples, another ablation).

    Args:
        changes: sections as in the configuration; what is not given stays as the run had it.
    """
    run, circuit, config, model, task = changed_run(folder, changes)
    scores = score_circuit(model, task, circuit, config, progress)
    if not changes:
        run.write(SCORES, scores.to_dict())
    return scores


def changed_run(folder: str | Path, changes: Mapping[str, Any]) -> tuple[Run, Circuit, dict[str, Any], Model, Task]:
    """A run with its circuit, and its configuration, model and task with some settings changed.

    Raises:
        BadRun: the folder is not a run, or has no circuit yet.
    """
    run = open_run(folder)
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    config = {**run.config}
    if "algorithm" in changes:
        raise BadSetting(f"the search of {run.folder} is over: leave algorithm= out, or start another run with it")
    for name, value in changes.items():
        config[name] = _merged(config[name], value) if isinstance(value, Mapping) else value
    check_sections(config)
    model = load_model(**config["model"])
    return run, Circuit.load(run.path(CIRCUIT)), config, model, build_task(model, config)


def _merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes; another task's settings replace those of the run's own."""
    another = "n" in section and changes.get("name", section["name"]) != section["name"]
    return dict(changes) if another else {**section, **changes}


def write_page(folder: str | Path) -> Path:
    """Write a run's report page from its files."""
    run = open_run(folder)
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    circuit = Circuit.load(run.path(CIRCUIT))
    cost = _record(run, COST, CostFile, "remove it") or {}
    details = {
        "command": run.config.get("command", ""),
        "started": run.config.get("started", ""),
        "seconds": cost.get("seconds"),
        "cost": {name: value for name, value in cost.items() if name != "seconds"},
        "model": run.config["model"]["name"],
        "task": run.config["task"],
        "folder": str(run.folder),
    }
    journal = run.journal()
    journal.close()
    check_lines(run.config["algorithm"]["name"], circuit.graph, journal.decisions, journal.path)
    return write_report(
        run.path(PAGE),
        circuit=circuit,
        scores=_scores(run),
        run=details,
        trace=journal.decisions,
        edge_scores=read_scores_of_edges(run, circuit),
        judgement=_record(run, JUDGEMENT, JudgementFile, "`circuitdisc score RUN --all` writes it again"),
        stability=_record(run, STABILITY, StabilityFile, "`circuitdisc stability RUN` writes it again"),
    )


def _record(run: Run, name: str, kind: Any, remedy: str) -> Any:
    """One of a run's JSON files that need not be there, as it is; seen to be what its schema says."""
    if not run.path(name).exists():
        return None
    data = read_json(run.path(name))
    validate(kind, data, str(run.path(name)), remedy=remedy)
    return data


def _scores(run: Run) -> Scores | None:
    path = run.path(SCORES)
    return read_record(Scores, path, remedy="`circuitdisc score RUN` writes it again") if path.exists() else None


def read_scores_of_edges(run: Run, circuit: Circuit) -> Float[np.ndarray, "R S"] | None:
    """The scores of all edges that a run's algorithm gave; None if it gave none.

    Raises:
        BadFile: the file is not one of numbers, or those of another graph.
    """
    path, shape = run.path(EDGE_SCORES), circuit.mask.shape
    if not path.exists():
        return None
    scores = read_arrays(path, most=4 * 8 * circuit.mask.size + 2**16).get("edge_scores")
    if scores is not None and (scores.shape != shape or scores.dtype.kind != "f"):
        raise BadFile(f"{path}: it has scores of shape {scores.shape}, and the circuit's graph needs {shape}: remove it")
    return scores


def export(folder: str | Path, path: Path) -> Path:
    """Write a run's circuit, and its edge scores if it has any, as EAP-IG and the MIB benchmark read them.

    Raises:
        BadRun: the folder is not a run, or has no circuit yet.
        GraphMismatch: its graph has no place in that layout.
    """
    run = open_run(folder)
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    circuit = Circuit.load(run.path(CIRCUIT))
    write_graph_json(path, circuit, read_scores_of_edges(run, circuit))
    return path


def _finish(run: Run, model: Model, task: Task) -> Outcome:
    config = run.config
    if run.path(CIRCUIT).exists():
        circuit = Circuit.load(run.path(CIRCUIT))
    else:
        found, resumed = _discover(run, model, task)
        circuit = found.circuit
        arrays = {"edge_scores": found.edge_scores, "node_scores": found.node_scores}
        if scored := {name: values for name, values in arrays.items() if values is not None}:
            write_arrays(run.path(EDGE_SCORES), scored)
        circuit.save(run.path(CIRCUIT))
        run.write(COST, found.cost_dict() | ({"counted": "since the run was resumed"} if resumed else {}))
    scores = _scores(run)
    if scores is None:
        scores = score_circuit(model, task, circuit, config, config.get("progress", True))
        run.write(SCORES, scores.to_dict())
    write_page(run.folder)
    return Outcome(run.folder, circuit, scores)


def _discover(run: Run, model: Model, task: Task) -> tuple[Discovery, bool]:
    """The discovery, and whether it took over decisions of an earlier start."""
    config, journal = run.config, run.journal()
    resumed = bool(journal.lines)
    settings = dict(config["algorithm"])
    try:
        found = discover(
            model,
            task,
            settings.pop("name"),
            ablation=config["ablation"],
            metric=config["metric"].get("name"),
            seed=config["seed"],
            memory=config["memory"],
            allow_chance=config["allow_chance"],
            journal=journal,
            progress=config.get("progress", True),
            **settings,
        )
    finally:
        journal.close()
    return found, resumed


def score_circuit(model: Model, task: Task, circuit: Circuit, config: Mapping[str, Any], progress: bool) -> Scores:
    """The scores of a circuit as a configuration asks for them."""
    return score(
        model,
        task,
        circuit,
        ablation=dict(config["ablation"]),
        metric=config["metric"].get("name"),
        seed=config["seed"],
        memory=config["memory"],
        progress=progress,
        **config["scoring"],
    )
