"""The command line of `circuitdisc heads`: its tools, their settings (conf/heads), and the folder that a call leaves.

Light to import; torch and Hydra are loaded when a tool runs.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from circuitdisc.errors import UnknownName
from circuitdisc.jobs.kept import new_folder
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word


@dataclass(frozen=True)
class Tool:
    """A tool that can be called by name.

    Args:
        function: its name in `circuitdisc.heads`.
        summary: one line for `circuitdisc heads --help`.
        heading: of its page.
        groups: the groups of settings that it takes beside model and task.
    """

    function: str
    summary: str
    heading: str
    groups: tuple[str, ...] = ()


TOOLS = {
    "roles": Tool(
        "head_roles",
        "which heads attend by a simple pattern: to the previous token, to the first one, by induction",
        "Head roles",
    ),
    "attention": Tool("attention_to", "average attention of every head from one position to another", "Attention"),
    "logits": Tool("logit_attribution", "what every head, MLP and bias adds to the logit difference", "Logit attribution"),
    "effects": Tool("head_effects", "the metric with every head ablated alone", "Head effects", ("ablation", "metric")),
    "knockout": Tool(
        "knockout_curve",
        "heads ablated one after the other, in the order of their effect and at random",
        "Knock-out curve",
        ("ablation", "metric"),
    ),
    "neurons": Tool(
        "neuron_analysis",
        "the neurons that the answer, or what heads do for it, depends on",
        "Neurons",
        ("ablation", "metric"),
    ),
}
LISTS = ("roles", "order", "knock_out", "layers", "sizes", "steps")
RESULT, ARRAYS, PAGE = "result.json", "arrays.npz", "report.html"

HELP = """circuitdisc heads TOOL [key=value ...]

Heads and neurons one by one. Prints a table and leaves a folder with result.json, arrays.npz (every example's values) and
report.html, one page that opens offline.

tools:
{tools}

examples:
  circuitdisc heads roles model=toys/induction task=induction task.length=8
  circuitdisc heads attention model=tpp/lightweight task=tpp query=end key=first
  circuitdisc heads knockout model=tpp/lightweight task=tpp ablation=mean steps=9
  circuitdisc heads neurons model=tpp/lightweight task=tpp knock_out=[a3.h1]

`circuitdisc heads TOOL --help` lists a tool's settings."""


def heads_command(args: Sequence[str]) -> str:
    """`circuitdisc heads` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind.
    """
    asks = asks_for_help(args)
    if not args or args[0].startswith("-"):
        if args and not asks:
            raise UnknownName("tool of heads", args[0], TOOLS, "`circuitdisc heads --help` describes them.")
        return heads_help()
    if args[0] not in TOOLS:
        raise UnknownName("tool of heads", args[0], TOOLS, "`circuitdisc heads --help` describes them.")
    if asks:
        return tool_help(args[0])
    config = tool_settings(args[0], args[1:])
    config["command"] = shlex.join(["circuitdisc", "heads", *args])
    return run_tool(args[0], config)


def heads_help() -> str:
    """The tools."""
    return HELP.format(tools="\n".join(f"  {name:<10} {tool.summary}" for name, tool in TOOLS.items()))


def tool_help(name: str) -> str:
    """A tool's settings, read from conf/heads."""
    tool = TOOLS[name]
    folder = f"runs/heads-{name}_<model>_<task>_<date and time>"
    what = f"{tool.heading}: {tool.summary}."
    return help_text(f"heads {name}", what, f"heads/{name}", ("model", "task", *tool.groups), folder=folder)


def tool_settings(name: str, args: Sequence[str]) -> dict[str, Any]:
    """Sections `model`, `task`, `settings` (the tool's own), its groups, and the common settings.

    Raises:
        UnknownName: there is no such setting.
        BadSetting: it cannot be read, or a tool does not take it.
    """
    return parse(f"heads {name}", f"heads/{name}", args, ("model", "task", *TOOLS[name].groups), LISTS)


def run_tool(name: str, config: Mapping[str, Any]) -> str:
    """Run a tool and write its folder; returns the table.

    Args:
        config: as `parse` gives it, with the `command`.
    """
    folder = Path(config["out"]) if config["out"] else default_folder(name, config)
    set_threads(config["threads"])
    with new_folder(folder, config.get("command", "")):
        return _run_tool(name, config, folder)


def _run_tool(name: str, config: Mapping[str, Any], folder: Path) -> str:
    from circuitdisc.files import write_arrays, write_json
    from circuitdisc.pages.description import describe, description_text, write_description
    from circuitdisc.runs import versions

    tool, started = TOOLS[name], datetime.now().astimezone()
    clock = time.perf_counter()
    found, subject, notes = _call(name, config)
    description = describe(found).noted(notes)
    record = {
        "tool": name,
        **{key: value for key, value in config.items() if key != "out"},
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
        "versions": versions(),
    }
    write_json(folder / RESULT, {"format": "circuitdisc.heads", "version": 1, **record, "result": found.to_dict()})
    write_arrays(folder / ARRAYS, arrays_of(found))
    write_description(folder / PAGE, description, heading=tool.heading, subject=subject, settings=record)
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"


def _call(name: str, config: Mapping[str, Any]) -> tuple[Any, str, tuple[str, ...]]:
    """The tool's result, what it is about, and the notes of its task."""
    import circuitdisc.heads
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.jobs.discover import build_task

    settings = dict(config["settings"])
    shared = {key: config[key] for key in ("seed", "memory", "progress")}
    if "ablation" in config:
        shared |= {"ablation": dict(config["ablation"]), "metric": config["metric"].get("name")}
    model = load_model(**config["model"])
    without_task = name == "roles" and settings["prompts"] == "repeated"
    task = None if without_task else build_task(model, config)
    found = getattr(circuitdisc.heads, TOOLS[name].function)(model, task, **settings, **shared)
    subject = f"{model.name}, {'random tokens said twice' if task is None else f'task {task.name}'}"
    return found, subject, () if task is None else task.notes


def default_folder(name: str, config: Mapping[str, Any]) -> Path:
    """`runs/heads-<tool>_<model>_<task>_<date and time>`."""
    return stamped_folder(f"heads-{name}", str(config["model"]["name"]), task_word(config))


def arrays_of(found: Any) -> dict[str, Any]:
    """The arrays of a result by name; those of a result within it with its name before theirs."""
    import numpy as np

    arrays: dict[str, Any] = {}
    for key, value in vars(found).items():
        if isinstance(value, np.ndarray):
            arrays[key] = value
        elif hasattr(value, "to_dict"):
            arrays |= {f"{key}_{name}": array for name, array in arrays_of(value).items()}
    return arrays
