"""The main job: load, discover, score, report, in a run's folder. Plain arguments; the command line is a thin layer above."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from circuitdisc.ablation import get_ablation
from circuitdisc.ablation.settings import SHARED
from circuitdisc.bound import (
    KEY,
    at_home,
    check_circuit,
    check_together,
    check_written,
    identity_of_scores,
    read_own_edge_scores,
    write_edge_scores,
)
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.lines import check_lines
from circuitdisc.discovery.registry import discover
from circuitdisc.engine.patching import Cost
from circuitdisc.engine.selfcheck import load_model
from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.exchange import write_graph_json
from circuitdisc.files import read_json
from circuitdisc.heads.explored import Explored, explored
from circuitdisc.jobs.job import stamped_folder
from circuitdisc.jobs.output import Output
from circuitdisc.models.model import Model
from circuitdisc.pages.certainty import SHOWN as CERTAINTY
from circuitdisc.pages.page import write_report
from circuitdisc.pages.stability import stability_verdict
from circuitdisc.pages.tables import scores_alone
from circuitdisc.pages.verdict import verdict
from circuitdisc.runs import Journal, Run, check_free, stoppable, workspace, writing
from circuitdisc.schemas import CertificateFile, CostFile, GroupsFile, RunConfig, StabilityFile, validate
from circuitdisc.scoring import Scores, score
from circuitdisc.scoring.judged import JudgementFile
from circuitdisc.scoring.stability import by_chance, stability_of_units
from circuitdisc.scoring.work import AUTO, Works, n_controls
from circuitdisc.sections import check_sections, open_run
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import metric_for

CIRCUIT, SCORES, COST, PAGE, JOURNAL = "circuit.json", "scores.json", "cost.json", "report.html", "journal.jsonl"
EDGE_SCORES = "edge_scores.npz"
UNSTEADY = "no stability"  # in cost.json: why it was not computed along with the search
JUDGEMENT, STABILITY, CERTIFICATE = "judgement.json", "stability.json", "certify.json"
CONFIG = "config.json"
EXPLORER, GROUPS = "explorer.json", "groups.json"
UNSCORED = "scores.partial.jsonl"  # values of circuits while a score is under way


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: its folder, and what is in it.

    Args:
        stability: as `stability.json` has it; None if there is none.
    """

    folder: Path
    circuit: Circuit
    scores: Scores
    stability: dict[str, Any] | None = None

    @property
    def output(self) -> Output:
        """The table that ends a run, and the verdict, in the page's words."""
        page, said = self.folder / PAGE, verdict(self.scores, self.circuit)
        if self.stability is not None:
            said += stability_verdict(self.stability, self.circuit)
        text = f"{scores_alone(self.scores, self.circuit.provenance.model)}\n\n{said.text}"
        data = {"folder": self.folder, "page": page, **said.data, "result": self.scores.to_dict()}
        return Output(f"{text}\n\nrun     {self.folder}\nreport  {page}", data)


def default_folder(config: Mapping[str, Any]) -> Path:
    """`runs/<model>_<task>_<algorithm>_<date and time>`."""
    task = config["task"].get("path") or config["task"]["name"]
    return stamped_folder(str(config["model"]["name"]), Path(str(task)).stem, config["algorithm"]["name"])


def start(config: Mapping[str, Any], folder: Path | None = None) -> Outcome:
    """Run the main job in a new folder.

    Args:
        config: sections `model`, `task`, `algorithm`, `ablation`, `metric`, `scoring`, and `seed`, `memory`, `allow_chance`,
            `progress`; as in conf/discover.yaml.
        folder: the run's folder; None makes one under runs/.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind unless the search had begun; then it can be resumed.
        Stopped: Ctrl-C; it says what goes on.
    """
    check_sections(config, RunConfig)
    folder = folder or default_folder(config)
    check_free(folder)
    config = at_home(config)

    def kept() -> bool:
        return any((folder / name).exists() for name in (CIRCUIT, CONFIG)) and _has_begun(folder)

    with stoppable(f"circuitdisc resume {shlex.quote(str(folder))}", kept), workspace(folder, lambda: _has_begun(folder)):
        model = load_model(**config["model"])
        task = build_task(model, config)
        return _finish(Run.create(folder, config), model, task)


def _has_begun(folder: Path) -> bool:
    """Whether a search has decided anything, so that the folder is worth keeping."""
    return (folder / CIRCUIT).exists() or bool(Journal.read(folder / JOURNAL).decisions)


def resume(folder: str | Path, progress: bool = True) -> Outcome:
    """Go on with a run that was killed; a finished part is not done again.

    Raises:
        BadRun: the folder is not a run, another process writes in it, or the weights, examples or settings are no longer those
            that it was begun with.
        Stopped: Ctrl-C.
    """
    run = open_run(folder)
    run.config["progress"] = progress
    check_sections(run.config, RunConfig)
    with stoppable(f"circuitdisc resume {shlex.quote(str(folder))}", lambda: True), writing(run.folder):
        model = load_model(**run.config["model"])
        return _finish(run, model, build_task(model, run.config))


def build_task(model: Model, config: Mapping[str, Any]) -> Task:
    """The task of a configuration."""
    settings = dict(config["task"])
    return load_task(settings.pop("name"), model, **{"seed": config["seed"], **settings})


def rescore(folder: str | Path, changes: Mapping[str, Any], progress: bool = True) -> Scores:
    """Score a run's circuit, with some settings changed (another model, more held-out examples, another ablation).

    Args:
        changes: sections as in the configuration; what is not given stays as the run had it. With changes nothing is saved.

    Raises:
        BadRun: the weights or examples have changed since the circuit was found, though `changes` does not say so.
        Stopped: Ctrl-C; without changes it says what goes on.
    """

    def kept() -> bool:
        return not changes and (Path(folder) / UNSCORED).exists()

    again = f"circuitdisc score {shlex.quote(str(folder))}"
    with stoppable(again, kept), nullcontext() if changes else writing_run(folder):
        run, circuit, config, model, task = changed_run(folder, changes)
        identity = identity_of_scores(config, model, task, circuit)
        if not changes:
            check_written(run.path(SCORES), identity, ("weights", "examples"))
        scores = score_circuit(model, task, circuit, config, progress, None if changes else run.path(UNSCORED))
        if not changes:
            run.write(SCORES, {**scores.to_dict(), KEY: identity.to_dict()})
            run.path(UNSCORED).unlink(missing_ok=True)
        return scores


def writing_run(folder: str | Path) -> AbstractContextManager[None]:
    """Be the only process that writes in a run's folder.

    Raises:
        BadRun: there is no such folder, or another process writes in it.
    """
    if not Path(folder).is_dir():
        raise BadRun(f"there is no run folder {folder}")
    return writing(Path(folder))


def changed_run(folder: str | Path, changes: Mapping[str, Any]) -> tuple[Run, Circuit, dict[str, Any], Model, Task]:
    """A run with its circuit, and its configuration, model and task with some settings changed.

    Raises:
        BadRun: the folder is not a run, has no circuit yet, or the weights, examples or settings are no longer those that the
            circuit was found with, though `changes` does not say so.
    """
    run = open_run(folder)
    circuit = read_circuit(run)
    config = {**run.config}
    if "algorithm" in changes:
        raise BadSetting(f"the search of {run.folder} is over: leave algorithm= out, or start another run with it")
    for name, value in changes.items():
        config[name] = _merged(config[name], value) if isinstance(value, Mapping) else value
    check_sections(config, RunConfig)
    model = load_model(**config["model"])
    task = build_task(model, config)
    check_circuit(run.path(CIRCUIT), circuit, config, model, task, changes)
    _fix_controls(run, config, model, task, written=not changes)
    return run, circuit, config, model, task


def _fix_controls(run: Run, config: dict[str, Any], model: Model, task: Task, written: bool = True) -> None:
    """Put a number in place of `scoring.n_random=auto`, and into the run's config.json, so that it is this run's for good.

    What is known of a search that was resumed is the cost of its end alone, as good as nothing.

    Args:
        written: False leaves config.json as it is.
    """
    if config["scoring"].get("n_random", AUTO) != AUTO:
        return
    n = n_controls(model, task, search_cost(run))
    config["scoring"] = {**config["scoring"], "n_random": n}
    if written:
        kept = read_json(run.path(CONFIG))
        run.write(CONFIG, {**kept, "scoring": {**kept["scoring"], "n_random": n}})


def search_cost(run: Run) -> Cost | None:
    """What the search of a run has cost; None where that is not known, as of a search that was resumed."""
    cost = _record(run, COST, CostFile, "remove it") or {}
    names = {} if "counted" in cost else {one.name: cost.get(one.name) for one in fields(Cost)}
    known = {name: float(value) for name, value in names.items() if isinstance(value, int | float)}
    return Cost(**known) if known else None  # pyright: ignore[reportArgumentType] - counts may be floats


def read_circuit(run: Run) -> Circuit:
    """The circuit of a run.

    Raises:
        BadRun: it has none yet.
    """
    if not run.path(CIRCUIT).exists():
        raise BadRun(f"{run.folder} has no circuit yet: `circuitdisc resume {run.folder}` finishes the search")
    return Circuit.load(run.path(CIRCUIT))


def _merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes; another task's settings, or another ablation's, replace those of the run's own."""
    if changes.get("kind", section.get("kind")) != section.get("kind"):
        section = {key: value for key, value in section.items() if key in SHARED}
    another = "n" in section and changes.get("name", section["name"]) != section["name"]
    return dict(changes) if another else {**section, **changes}


def write_page(folder: str | Path) -> Path:
    """Write a run's report page from its files.

    Raises:
        BadRun: the folder is not a run, has no circuit yet, or holds scores of another circuit.
        BadFile: one of its files is not what its schema says.
    """
    run = open_run(folder)
    circuit = read_circuit(run)
    cost = _record(run, COST, CostFile, "remove it") or {}
    scores = _record(run, SCORES, Scores, "`circuitdisc score RUN` writes it again", circuit)
    details = {
        "command": run.config.get("command", ""),
        "started": run.config.get("started", ""),
        "seconds": cost.get("seconds"),
        "cost": {name: value for name, value in cost.items() if name not in ("seconds", UNSTEADY)},
        "model": run.config["model"]["name"],
        "task": run.config["task"],
        "folder": str(run.folder),
    }
    decisions = Journal.read(run.path(JOURNAL)).decisions
    check_lines(run.config["algorithm"]["name"], circuit.graph, decisions, run.path(JOURNAL))
    with writing(run.folder):
        return write_report(
            run.path(PAGE),
            circuit=circuit,
            scores=None if scores is None else Scores.from_dict(scores),
            run=details,
            trace=decisions,
            edge_scores=read_own_edge_scores(run.path(EDGE_SCORES), circuit),
            judgement=_record(run, JUDGEMENT, JudgementFile, "`circuitdisc score RUN --all` writes it again", circuit),
            unsteady=str(cost.get(UNSTEADY, "")),
            stability=_stability(run, circuit),
            certificate=_record(run, CERTIFICATE, CertificateFile, "`circuitdisc certify RUN` writes it again", circuit),
            explored=_record(run, EXPLORER, Explored, "remove it, and `circuitdisc resume RUN` writes it again", circuit),
            groups=_record(run, GROUPS, GroupsFile, "save it again from the page"),
            certainty=_certainty(run, circuit),
        )


def _stability(run: Run, circuit: Circuit) -> dict[str, Any] | None:
    return _record(run, STABILITY, StabilityFile, "`circuitdisc stability RUN` writes it again", circuit)


def _certainty(run: Run, circuit: Circuit) -> dict[str, Any]:
    """What `rivals`, `specificity`, `backups`, `mixtures` and `positions` have left."""
    records = {
        name: _record(run, f"{name}.json", shown.kind, f"`circuitdisc {name} RUN` writes it again", circuit)
        for name, shown in CERTAINTY.items()
    }
    return {name: record for name, record in records.items() if record is not None}


def _record(run: Run, name: str, kind: Any, remedy: str, circuit: Circuit | None = None) -> Any:
    """One of a run's JSON files that need not be there, as it is; seen to be what its schema says, and of this circuit."""
    if not run.path(name).exists():
        return None
    data = read_json(run.path(name))
    validate(kind, data, str(run.path(name)), remedy=remedy)
    if circuit is not None:
        check_together(run.path(name), data, circuit)
    return data


def export(folder: str | Path, path: Path, prune: bool = False) -> Path:
    """Write a run's circuit, and its edge scores if it has any, as EAP-IG and the MIB benchmark read them.

    Args:
        prune: leave out the edges that EAP-IG drops before it evaluates a circuit.

    Raises:
        BadRun: the folder is not a run, has no circuit yet, or its edge scores are those of another search.
        GraphMismatch: its graph has no place in that layout.
    """
    run = open_run(folder)
    circuit = read_circuit(run)
    width = circuit.graph.d_model  # a circuit of an older version does not name it
    if width is None:
        check_sections(run.config, RunConfig)
        width = load_model(**run.config["model"]).graph.d_model
    write_graph_json(path, circuit, read_own_edge_scores(run.path(EDGE_SCORES), circuit), d_model=width, prune=prune)
    return path


def _finish(run: Run, model: Model, task: Task) -> Outcome:
    config, found = run.config, None
    if run.path(CIRCUIT).exists():
        circuit = Circuit.load(run.path(CIRCUIT))
        check_circuit(run.path(CIRCUIT), circuit, config, model, task)
    else:
        found, resumed = _discover(run, model, task)
        circuit = found.circuit
        arrays = {"edge_scores": found.edge_scores, "node_scores": found.node_scores, "ranking": found.ranking}
        if scored := {name: values for name, values in arrays.items() if values is not None}:
            write_edge_scores(run.path(EDGE_SCORES), scored, circuit)
        circuit.save(run.path(CIRCUIT))
        counted = {"counted": "since the run was resumed"} if resumed else {}
        run.write(COST, found.cost_dict() | counted | ({UNSTEADY: found.no_units} if found.no_units else {}))
    _fix_controls(run, config, model, task)
    identity = identity_of_scores(config, model, task, circuit)
    if found is not None and found.units is not None:
        steady = stability_of_units(found, config["stability"], seed=config["seed"])
        run.write(STABILITY, {**steady.to_dict(), "random": by_chance(circuit, seed=config["seed"]), KEY: identity.to_dict()})
        del steady, found
    if run.path(SCORES).exists():
        check_written(run.path(SCORES), identity)
        scores = Scores.from_dict(_record(run, SCORES, Scores, "`circuitdisc score RUN` writes it again"))
    else:
        scores = score_circuit(model, task, circuit, config, config.get("progress", True), run.path(UNSCORED))
        run.write(SCORES, {**scores.to_dict(), KEY: identity.to_dict()})
        run.path(UNSCORED).unlink(missing_ok=True)
    if config.get("explorer") and not run.path(EXPLORER).exists():
        run.write(EXPLORER, {**asdict(_explored(model, task, circuit, config)), KEY: identity.to_dict()})
    write_page(run.folder)
    return Outcome(run.folder, circuit, scores, _stability(run, circuit))


def _explored(model: Model, task: Task, circuit: Circuit, config: Mapping[str, Any]) -> Explored:
    """What the page's explorer shows beside the graph."""
    ablation, metric = get_ablation(dict(config["ablation"])), metric_for(model, task, config["metric"].get("name"))
    return explored(model, task, circuit, ablation=ablation, metric=metric, memory=config["memory"])


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
            keep_units=bool(config.get("stability")),
            **settings,
        )
    finally:
        journal.close()
    return found, resumed


def score_circuit(
    model: Model,
    task: Task,
    circuit: Circuit,
    config: Mapping[str, Any],
    progress: bool,
    journal: Path | None = None,
    on_pace: Callable[[float, Works], object] | None = None,
) -> Scores:
    """The scores of a circuit as a configuration asks for them.

    Args:
        journal: where the values of each circuit are kept; None: nowhere.
        on_pace: as in `score`.
    """
    return score(
        model,
        task,
        circuit,
        ablation=dict(config["ablation"]),
        metric=config["metric"].get("name"),
        seed=config["seed"],
        memory=config["memory"],
        progress=progress,
        journal=journal,
        on_pace=on_pace,
        **config["scoring"],
    )
