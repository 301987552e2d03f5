"""The command line of `circuitdisc dcm`: what heads, groups or edges carry, by masks learned for each desideratum."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.errors import BadFile, BadSetting
from circuitdisc.jobs.kept import finished, work_in
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word

if TYPE_CHECKING:
    from circuitdisc.circuit import Circuit
    from circuitdisc.models.model import Model
    from circuitdisc.tasks.desiderata import Desideratum

LISTS = ("desiderata", "positions")
WHAT = """Which components carry the value, the position, the label? Masks are learned for each desideratum of a task
(task=entity_tracking has three), of another task (its target is the first wrong answer), or of a file of yours
(task=FILE.jsonl, lines with a field `desideratum`). Trained on task.n examples, chosen on n_choose others, reported on
task.n_heldout others. Leaves result.json, arrays.npz and report.html; the same command goes on where it was killed."""


def dcm_command(args: Sequence[str]) -> str:
    """`circuitdisc dcm` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind.
    """
    if asks_for_help(args):
        return help_text("dcm", WHAT, "dcm", folder="runs/dcm_<model>_<task>_<date and time>")
    config = parse("dcm", "dcm", args, lists=LISTS)
    config["command"] = shlex.join(["circuitdisc", "dcm", *args])
    set_threads(config["threads"])
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.heads.dcm.dcm import dcm

    own = dict(config["settings"])
    circuit = read_circuit(own.pop("circuit"))
    names, n_choose = own.pop("desiderata"), own.pop("n_choose")
    own["positions"] = "all" if own["positions"] == ["all"] else own["positions"]
    folder = Path(config["out"]) if config["out"] else stamped_folder("dcm", str(config["model"]["name"]), task_word(config))

    with work_in(folder, config["command"]) as journal:
        model = load_model(**config["model"])
        found = desiderata_of(model, config, names, n_choose)
        shared = {key: config[key] for key in ("seed", "memory", "progress")}
        result = dcm(model, found, circuit=circuit, journal=journal, **own, **shared)
        subject = f"{model.name}, task {task_word(config)}"
        return finished(folder, result, config, heading="Desiderata", subject=subject, format="circuitdisc.dcm")


def desiderata_of(model: "Model", config: Mapping[str, Any], names: Any, n_choose: int | None) -> "Sequence[Desideratum]":
    """The desiderata that a configuration asks for.

    Raises:
        UnknownName, BadFile, BadSetting, BadTask: as `load_desiderata`.
    """
    from circuitdisc.jobs.discover import build_task
    from circuitdisc.tasks.desiderata import SHIPPED, load_desiderata, of_task

    task = dict(config["task"])
    name, n, n_heldout = task.pop("name"), task.pop("n"), task.pop("n_heldout")
    n_choose = n if n_choose is None else n_choose
    corruption = task.get("corruption", "query")
    if name in SHIPPED:
        if task.pop("corruption", "query") != "query":
            raise BadSetting(f"task.corruption={corruption} cannot be set here: name it with desiderata={corruption}")
    elif name == "file":
        name = task.pop("path")
    else:
        if names is not None:
            raise BadSetting(
                f"desiderata={names} cannot be chosen: task '{name}' stands for one, whose target is its first wrong answer"
            )
        both = {**config, "task": {**config["task"], "n": n + n_choose}}
        return [of_task(build_task(model, both), n_choose)]
    sizes = {"n_train": n, "n_choose": n_choose, "n_report": n_heldout}
    return load_desiderata(name, model, names=names, seed=config["seed"], **sizes, **task)


def read_circuit(path: str | None) -> "Circuit | None":
    """The circuit of a run's folder, or of a file.

    Raises:
        BadFile: there is none.
    """
    if path is None:
        return None
    from circuitdisc.circuit import Circuit

    file = Path(path) / "circuit.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise BadFile(f"circuit={path} is neither the folder of a finished run nor a circuit.json")
    return Circuit.load(file)
