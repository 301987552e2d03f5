"""The command line of `circuitdisc localise`: a few heads edited, and what that does to held-out examples."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.dcm import read_circuit
from circuitdisc.jobs.kept import finished, work_in
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word

LISTS = ("heads",)
WORDS = ("lofit", "all", "circuit")
EDIT = "edit.safetensors"
WHAT = """Edits a few heads, learned or swept on train examples, chosen on others, and measures held-out ones before and after,
beside as many random heads. Leaves result.json, arrays.npz, edit.safetensors (for HeadEdit.load) and report.html; the same
command goes on where it was killed."""


def localise_command(args: Sequence[str]) -> str:
    """`circuitdisc localise` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind.
    """
    groups = ("model", "task", "metric")
    if asks_for_help(args):
        return help_text("localise", WHAT, "localise", groups, folder="runs/localise-<kind>_<model>_<task>_<date and time>")
    config = parse("localise", "localise", args, groups, LISTS)
    config["command"] = shlex.join(["circuitdisc", "localise", *args])
    set_threads(config["threads"])
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.heads.localised.localised import localised
    from circuitdisc.jobs.discover import build_task

    own = dict(config["settings"])
    circuit, heads = read_circuit(own.pop("circuit")), own.pop("heads")
    heads = heads[0] if isinstance(heads, list) and len(heads) == 1 and heads[0] in WORDS else heads
    if (heads == "circuit") != (circuit is not None):
        raise BadSetting("heads=circuit and circuit= go together: give both, or neither")
    words = (f"localise-{own['kind']}", str(config["model"]["name"]), task_word(config))
    folder = Path(config["out"]) if config["out"] else stamped_folder(*words)
    with work_in(folder, config["command"]) as journal:
        model = load_model(**config["model"])
        task = build_task(model, config)
        shared = {key: config[key] for key in ("seed", "memory", "progress")}
        metric = config["metric"].get("name")
        found = localised(model, task, circuit or heads, metric=metric, journal=journal, **own, **shared)
        found.edit.save(folder / EDIT)
        subject = f"{model.name}, task {task_word(config)}"
        about = {"heading": "Localised intervention", "subject": subject, "format": "circuitdisc.localised"}
        return finished(folder, found, config, notes=task.notes, **about)
