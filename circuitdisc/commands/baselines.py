"""The command line of `circuitdisc baselines`."""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from circuitdisc.commands.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word
from circuitdisc.errors import BadSetting

RESULT, PAGE = "baselines.json", "report.html"
LISTS = ("checkpoints", "others")
FOLDER = "runs/baselines_<task>_<date and time>"
WHAT = """How well checkpoints do a task, and what they have forgotten: log-probability, share correct and logit difference on
held-out examples, on their corrupted prompts, on other tasks and on a text. Leaves baselines.json and report.html.

  circuitdisc baselines checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp task.n_heldout=3000
  circuitdisc baselines checkpoints=runs/mine task=entity_tracking task.boxes=7 text=book.txt"""


def baselines_command(args: Sequence[str]) -> str:
    """`circuitdisc baselines` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind.
    """
    if asks_for_help(args):
        return help_text("baselines", WHAT, "baselines", folder=FOLDER)
    config = parse("baselines", "baselines", args, lists=LISTS)
    settings = config.pop("settings")
    checkpoints = settings.pop("checkpoints")
    if not checkpoints:
        raise BadSetting("which checkpoints? Give checkpoints=[tpp/base,tpp/lightweight], or the folder of a ladder")
    return _run(config, checkpoints, settings, shlex.join(["circuitdisc", "baselines", *args]))


def _run(config: dict[str, Any], checkpoints: list[str], settings: dict[str, Any], command: str) -> str:
    from circuitdisc.checkpoints.baselines import baselines
    from circuitdisc.files import make_folder, write_json
    from circuitdisc.report.baselines import describe
    from circuitdisc.report.heads import description_text, write_description
    from circuitdisc.runs import check_free, versions

    folder = Path(config["out"]) if config["out"] else stamped_folder("baselines", task_word(config))
    check_free(folder)
    set_threads(config["threads"])
    started = datetime.now().astimezone()
    model = {name: value for name, value in config["model"].items() if name != "name"}
    shared = {name: config[name] for name in ("seed", "memory", "progress")}
    found = baselines(checkpoints, config["task"], model_settings=model, **settings, **shared)
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
    make_folder(folder)
    write_json(folder / RESULT, {**found.to_dict(), **record})
    subject = f"{', '.join(found.checkpoints)}; task {task_word(config)}"
    write_description(folder / PAGE, description, heading="Baselines of checkpoints", subject=subject, settings=record)
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"
