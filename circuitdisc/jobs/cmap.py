"""The command line of `circuitdisc cmap`: parts of one checkpoint's run put into another's."""

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.jobs.kept import new_folder
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word

GROUPS = ("task", "metric")
COMMON = ("seed", "memory", "threads", "progress", "out")
LISTS = ("what", "positions", "keys", "steps")
RESULT, ARRAYS, PAGE = "cmap.json", "arrays.npz", "cmap.html"
WHAT = """Cross-model activation patching: which heads, MLPs or weights carry the difference between two checkpoints. Parts of
the tuned model's run are put into the base's (or the other way round), on the same prompts; the patch score is the share of the
gap between the two metrics that this closes. One model is in memory at a time. Prints tables and leaves a folder with
cmap.json, arrays.npz (every example's values) and cmap.html.

  circuitdisc cmap base=tpp/base tuned=tpp/lightweight task=tpp
  circuitdisc cmap base=tpp/base tuned=tpp/lightweight task=tpp what=output,value,pattern circuit=runs/mine direction=both
  circuitdisc cmap base=FOLDER tuned=FOLDER task=entity_tracking model.dtype=bfloat16 plan=true"""
FOLDER = "runs/cmap_<base>_<tuned>_<task>_<date and time>"


def cmap_command(args: Sequence[str]) -> str:
    """`circuitdisc cmap` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind.
    """
    if asks_for_help(args):
        return help_text("cmap", WHAT, "cmap", (*GROUPS, "model"), COMMON, FOLDER)
    config = parse("cmap", "cmap", args, (*GROUPS, "model"), LISTS, COMMON)
    if any(arg.startswith(("model=", "model.name=")) for arg in args):
        raise BadSetting("cmap takes two checkpoints: write base=NAME tuned=NAME, and no model=")
    for which in ("base", "tuned"):
        if not config["settings"][which]:
            raise BadSetting(f"which {which} checkpoint? `circuitdisc cmap base=NAME tuned=NAME` takes two names or folders")
    if config["settings"]["plan"]:
        return plan_text(config)
    return run_cmap(config, shlex.join(["circuitdisc", "cmap", *args]))


def run_cmap(config: Mapping[str, Any], command: str) -> str:
    """Patch, write the folder, and return the tables.

    Args:
        config: as `parse` gives it.
    """
    base, tuned = (str(config["settings"][which]) for which in ("base", "tuned"))
    folder = Path(config["out"]) if config["out"] else stamped_folder("cmap", base, tuned, task_word(config))
    set_threads(config["threads"])
    with new_folder(folder, command):
        return _run_cmap(config, command, folder)


def _run_cmap(config: Mapping[str, Any], command: str, folder: Path) -> str:
    from circuitdisc.checkpoints.cmap.cmap import cmap
    from circuitdisc.files import write_arrays, write_json
    from circuitdisc.jobs.discover import build_task
    from circuitdisc.pages.cmap import describe_cmap
    from circuitdisc.pages.description import description_text, write_description
    from circuitdisc.runs import versions

    settings, started = dict(config["settings"]), datetime.now().astimezone()
    settings.pop("plan")
    base, tuned = (str(settings.pop(which)) for which in ("base", "tuned"))
    groups = read_groups(settings.pop("circuit"), settings.pop("groups"))
    model_settings = {name: config["model"][name] for name in ("dtype", "device")}
    shared = {name: config[name] for name in ("seed", "memory", "progress")} | {"metric": config["metric"].get("name")}
    notes: tuple[str, ...] = ()

    def make_task(model: Any) -> Any:
        nonlocal notes
        task = build_task(model, config)
        notes = task.notes
        return task

    found = cmap(
        base,
        tuned,
        make_task,
        groups=groups,
        cache_folder=folder.parent,
        **settings,
        **shared,
        **model_settings,
    )
    description, subject = describe_cmap(found).noted(notes), f"{base} and {tuned}, task {found.task}"
    record = {**{key: value for key, value in config.items() if key != "out"}, "command": command}
    record |= {"started": started.isoformat(timespec="seconds"), "seconds": found.cost["seconds"], "versions": versions()}
    write_json(folder / RESULT, {"format": "circuitdisc.cmap", "version": 1, **record, "result": found.to_dict()})
    write_arrays(folder / ARRAYS, found.arrays())
    write_description(folder / PAGE, description, heading="Cross-model patching", subject=subject, settings=record)
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"


def read_groups(circuit: str | None, groups: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]] | None:
    """Named groups of heads, from a circuit or as they were written.

    Raises:
        BadSetting: both are given, or the groups are not written as names with lists.
        BadRun: the folder has no circuit.
    """
    if circuit is not None and groups is not None:
        raise BadSetting("circuit= and groups= both say which heads are patched together: give one of them")
    if circuit is not None:
        from circuitdisc.checkpoints.cmap.sets import groups_of
        from circuitdisc.circuit import Circuit

        path = Path(circuit)
        path = path / "circuit.json" if path.is_dir() else path
        if not path.is_file():
            raise BadRun(f"{circuit} is neither the folder of a finished run nor a circuit.json")
        return groups_of(Circuit.load(path))
    if groups is None:
        return None
    if not isinstance(groups, Mapping) or not all(isinstance(heads, list) for heads in groups.values()):
        raise BadSetting("groups= is not a table of lists: write it as groups={A: [a3.h1], B: [a2.h0,a2.h4]}")
    return {str(name): tuple(map(str, heads)) for name, heads in groups.items()}


def plan_text(config: Mapping[str, Any]) -> str:
    """What the call will take, from the configurations and the prompts' lengths; no weights are read."""
    from circuitdisc.checkpoints.cmap.plan import plan_from_settings
    from circuitdisc.pages.cmap import plan_table

    settings = dict(config["settings"])
    groups = read_groups(settings.pop("circuit"), settings.pop("groups"))
    plan, model, n = plan_from_settings({**config, "settings": settings}, groups)
    return f"{model}, {n} prompts, no weights read\n\n{plan_table(plan)}\n\n{json.dumps(plan.to_dict())}"
