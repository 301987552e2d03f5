"""The command line of `circuitdisc drift`."""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from circuitdisc.commands.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word
from circuitdisc.errors import BadSetting

RESULT, ARRAYS, PAGE = "drift.json", "arrays.npz", "report.html"
LISTS = ("checkpoints", "roles")
FOLDER = "runs/drift_<task>_<date and time>"
WHAT = """How heads change along a ladder of checkpoints: attention from one named position to another, head roles, weights,
what each head adds to the logit difference, and how alike it writes. Leaves drift.json, arrays.npz (every example's values) and
report.html.

  circuitdisc drift checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp key=c1"""


def drift_command(args: Sequence[str]) -> str:
    """`circuitdisc drift` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind.
    """
    if asks_for_help(args):
        return help_text("drift", WHAT, "drift", folder=FOLDER)
    config = parse("drift", "drift", args, lists=LISTS)
    settings = config.pop("settings")
    checkpoints = settings.pop("checkpoints")
    if not checkpoints:
        raise BadSetting("which checkpoints? Give the ladder in its order, as in checkpoints=[tpp/base,tpp/lightweight]")
    return _run(config, checkpoints, settings, shlex.join(["circuitdisc", "drift", *args]))


def _run(config: dict[str, Any], checkpoints: list[str], settings: dict[str, Any], command: str) -> str:
    from circuitdisc.checkpoints.drift import drift
    from circuitdisc.files import make_folder, write_arrays, write_json
    from circuitdisc.report.drift import describe
    from circuitdisc.report.heads import description_text, write_description
    from circuitdisc.runs import check_free, versions

    folder = Path(config["out"]) if config["out"] else stamped_folder("drift", task_word(config))
    check_free(folder)
    set_threads(config["threads"])
    started = datetime.now().astimezone()
    model = {name: value for name, value in config["model"].items() if name != "name"}
    shared = {name: config[name] for name in ("seed", "memory", "progress")}
    found = drift(checkpoints, config["task"], model_settings=model, **settings, **shared)
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
    make_folder(folder)
    write_json(folder / RESULT, {"format": "circuitdisc.drift", "version": 1, **record, "result": found.to_dict()})
    arrays = {name: getattr(found, name) for name in ("attention", "attribution", "logit_diff", "cosine")}
    write_arrays(folder / ARRAYS, {**arrays, **{f"weights_{name}": values for name, values in found.weights.items()}})
    description = describe(found)
    subject = f"{', '.join(found.checkpoints)}; task {task_word(config)}"
    write_description(folder / PAGE, description, heading="Drift of heads", subject=subject, settings=record)
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"
