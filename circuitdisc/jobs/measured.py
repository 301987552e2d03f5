"""Commands that measure a list of checkpoints on one task: settings read, checkpoints measured, a folder left."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.kept import new_folder
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word

ARRAYS, PAGE = "arrays.npz", "report.html"


@dataclass(frozen=True)
class Measure:
    """One such command.

    Args:
        name: of the command, its function and file in `checkpoints`, its description in `report`, and its result's file.
        heading: of the page.
        what: what it does and leaves, for its help.
        lists: settings that are lists.
    """

    name: str
    heading: str
    what: str
    lists: tuple[str, ...]


def measure_checkpoints(measure: Measure, args: Sequence[str]) -> str:
    """Run the command with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind.
    """
    name = measure.name
    if asks_for_help(args):
        return help_text(name, measure.what, name, folder=f"runs/{name}_<task>_<date and time>")
    config = parse(name, name, args, lists=measure.lists)
    settings = config.pop("settings")
    checkpoints = settings.pop("checkpoints")
    if not checkpoints:
        raise BadSetting("which checkpoints? Give checkpoints=[tpp/base,tpp/lightweight], or the folder of a ladder")
    return _run(measure, config, checkpoints, settings, shlex.join(["circuitdisc", name, *args]))


def _run(measure: Measure, config: dict[str, Any], checkpoints: list[str], settings: dict[str, Any], command: str) -> str:
    folder = Path(config["out"]) if config["out"] else stamped_folder(measure.name, task_word(config))
    set_threads(config["threads"])
    with new_folder(folder, command):
        return _measure(measure, config, checkpoints, settings, command, folder)


def _measure(
    measure: Measure, config: dict[str, Any], checkpoints: list[str], settings: dict[str, Any], command: str, folder: Path
) -> str:
    from circuitdisc.files import write_arrays, write_json
    from circuitdisc.pages.description import description_text, write_description
    from circuitdisc.runs import versions

    function = getattr(import_module(f"circuitdisc.checkpoints.{measure.name}"), measure.name)
    describe = import_module(f"circuitdisc.pages.{measure.name}").describe
    started = datetime.now().astimezone()
    model = {name: value for name, value in config["model"].items() if name != "name"}
    shared = {name: config[name] for name in ("seed", "memory", "progress")}
    found = function(checkpoints, config["task"], model_settings=model, **settings, **shared)
    record = {
        "command": command,
        **{name: value for name, value in config.items() if name not in ("out", "model")},
        "model": model,
        "checkpoints": list(found.checkpoints),
        "settings": settings,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now().astimezone() - started).total_seconds(), 3),
        "versions": versions(),
    }
    description = describe(found)
    write_json(folder / f"{measure.name}.json", {**found.to_dict(), **record})
    if arrays := getattr(found, "arrays", dict)():
        write_arrays(folder / ARRAYS, arrays)
    subject = f"{', '.join(found.checkpoints)}; task {task_word(config)}"
    write_description(folder / PAGE, description, heading=measure.heading, subject=subject, settings=record)
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"
