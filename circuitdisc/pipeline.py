"""The main job: load, discover, score, report, in a run's folder. Plain arguments; the command line is a thin layer above."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import discover
from circuitdisc.errors import BadFile, BadRun, CircuitdiscError
from circuitdisc.exchange import write_graph_json
from circuitdisc.files import read_arrays, read_json, write_arrays
from circuitdisc.models.model import Model
from circuitdisc.patching.selfcheck import load_model
from circuitdisc.report import scores_table
from circuitdisc.report.page import write_report
from circuitdisc.runs import Run, check_free
from circuitdisc.scoring import Scores, score
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
        """The table that ends a run, and the verdict."""
        table = scores_table(self.scores, self.circuit.provenance.model, self.circuit)
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
    run = Run.open(folder)
    run.config["progress"] = progress
    model = load_model(**_section(run, "model"))
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
    run = Run.open(folder)
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    config = {**run.config}
    for name, value in changes.items():
        config[name] = _merged(config[name], value) if isinstance(value, Mapping) else value
    model = load_model(**config["model"])
    return run, Circuit.load(run.path(CIRCUIT)), config, model, build_task(model, config)


def _merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes; another task's settings replace those of the run's own."""
    another = "n" in section and changes.get("name", section["name"]) != section["name"]
    return dict(changes) if another else {**section, **changes}


def write_page(folder: str | Path) -> Path:
    """Write a run's report page from its files."""
    run = Run.open(folder)
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    scores = Scores.from_dict(read_json(run.path(SCORES))) if run.path(SCORES).exists() else None
    cost = read_json(run.path(COST)) if run.path(COST).exists() else {}
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
    circuit = Circuit.load(run.path(CIRCUIT))
    arrays = read_arrays(run.path(EDGE_SCORES)) if run.path(EDGE_SCORES).exists() else {}
    return write_report(
        run.path(PAGE),
        circuit=circuit,
        scores=scores,
        run=details,
        trace=journal.decisions,
        edge_scores=arrays.get("edge_scores"),
        judgement=_found(run, JUDGEMENT),
        stability=_found(run, STABILITY),
    )


def _found(run: Run, name: str) -> Mapping[str, Any] | None:
    """One of a run's JSON files that need not be there."""
    if not run.path(name).exists():
        return None
    data = read_json(run.path(name))
    if not isinstance(data, Mapping):
        raise BadFile(f"{run.path(name)} holds no table of names: remove it, and compute it again")
    return data


def export(folder: str | Path, path: Path) -> Path:
    """Write a run's circuit, and its edge scores if it has any, as EAP-IG and the MIB benchmark read them.

    Raises:
        BadRun: the folder is not a run, or has no circuit yet.
        GraphMismatch: its graph has no place in that layout.
    """
    run = Run.open(folder)
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    arrays = read_arrays(run.path(EDGE_SCORES)) if run.path(EDGE_SCORES).exists() else {}
    write_graph_json(path, Circuit.load(run.path(CIRCUIT)), arrays.get("edge_scores"))
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
    if run.path(SCORES).exists():
        scores = Scores.from_dict(read_json(run.path(SCORES)))
    else:
        scores = score_circuit(model, task, circuit, config, config.get("progress", True))
        run.write(SCORES, scores.to_dict())
    write_page(run.folder)
    return Outcome(run.folder, circuit, scores)


def _discover(run: Run, model: Model, task: Task) -> tuple[Discovery, bool]:
    """The discovery, and whether it took over decisions of an earlier start."""
    config, journal = run.config, run.journal()
    resumed = bool(journal.lines)
    settings = dict(_section(run, "algorithm"))
    try:
        found = discover(
            model,
            task,
            settings.pop("name"),
            ablation=_section(run, "ablation"),
            metric=_section(run, "metric").get("name"),
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


def _section(run: Run, name: str) -> dict[str, Any]:
    try:
        return dict(run.config[name])
    except (KeyError, TypeError) as error:
        raise BadRun(f"{run.folder / 'config.json'} has no section '{name}': it is not the configuration of a run") from error
