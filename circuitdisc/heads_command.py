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

from circuitdisc.errors import BadRun, BadSetting, UnknownName


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
COMMON = ("seed", "memory", "threads", "progress", "out")
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
    asks = {"-h", "--help"} & set(args)
    if not args or args[0].startswith("-"):
        if args and not asks:
            raise UnknownName("tool of heads", args[0], TOOLS, "`circuitdisc heads --help` describes them.")
        return heads_help()
    if args[0] not in TOOLS:
        raise UnknownName("tool of heads", args[0], TOOLS, "`circuitdisc heads --help` describes them.")
    if asks:
        return tool_help(args[0])
    config = parse(args[0], args[1:])
    config["command"] = shlex.join(["circuitdisc", "heads", *args])
    return run_tool(args[0], config)


def heads_help() -> str:
    """The tools."""
    return HELP.format(tools="\n".join(f"  {name:<10} {tool.summary}" for name, tool in TOOLS.items()))


def tool_help(name: str) -> str:
    """A tool's settings, read from conf/heads."""
    from circuitdisc.config import conf_dir, setting_lines

    tool = TOOLS[name]
    parts = [
        f"circuitdisc heads {name} [key=value ...]",
        "",
        f"{tool.heading}: {tool.summary}.",
        "",
        "settings, with their defaults:",
    ]
    parts += setting_lines(conf_dir() / "heads" / f"{name}.yaml", "")
    parts += ["", "model=NAME, model.KEY=..., task=NAME, task.KEY=... as for `circuitdisc discover`"]
    parts += [f"{group}=NAME, {group}.KEY=... as for `circuitdisc discover`" for group in tool.groups]
    common = setting_lines(conf_dir() / "config.yaml", "")
    parts += [
        "",
        *(line for line in common if line.strip().partition("=")[0] in COMMON and not line.strip().startswith("out=")),
    ]
    parts += [f"    {'out=null':<40} folder; null: runs/heads-{name}_<model>_<task>_<date and time>"]
    return "\n".join(parts)


def parse(name: str, args: Sequence[str]) -> dict[str, Any]:
    """Sections `model`, `task`, `settings` (the tool's own), its groups, and the common settings.

    Raises:
        UnknownName: there is no such setting.
        BadSetting: it cannot be read, or a tool does not take it.
    """
    from omegaconf import OmegaConf

    from circuitdisc.config import check_overrides, compose, conf_dir, rewrite

    defaults = OmegaConf.load(conf_dir() / "heads" / f"{name}.yaml")
    own = [arg for arg in args if arg.partition("=")[0] in defaults and "=" in arg]
    others = [arg for arg in args if arg not in own]
    sections = ("model", "task", *TOOLS[name].groups)
    for arg in others:
        key = arg.partition("=")[0].partition(".")[0]
        if "=" in arg and key not in (*sections, *COMMON):
            raise UnknownName(f"setting of heads {name}", key, [*map(str, defaults), *sections, *COMMON])
    overrides = rewrite(list(others))
    check_overrides(overrides)
    plain: Any = OmegaConf.to_container(compose(overrides), resolve=True)
    return {key: plain[key] for key in (*sections, *COMMON)} | {"settings": _own_settings(defaults, own)}


def _own_settings(defaults: Any, args: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(args)), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise BadSetting(f"these settings cannot be read: {' '.join(args)} ({' '.join(str(error).split())})") from error
    settings: Any = OmegaConf.to_container(defaults)
    for key, value in given.items():
        several = key in LISTS and isinstance(value, str) and "," in value
        settings[key] = [one.strip() for one in value.split(",")] if several else value
    return settings


def run_tool(name: str, config: Mapping[str, Any]) -> str:
    """Run a tool and write its folder; returns the table.

    Args:
        config: as `parse` gives it, with the `command`.
    """
    from circuitdisc.files import write_arrays, write_json
    from circuitdisc.report.heads import describe, description_text, write_description
    from circuitdisc.runs import check_free, versions

    tool, started = TOOLS[name], datetime.now().astimezone()
    folder = Path(config["out"]) if config["out"] else default_folder(name, config)
    check_free(folder)
    _set_threads(config["threads"])
    clock = time.perf_counter()
    found, subject = _call(name, config)
    description = describe(found)
    record = {
        "tool": name,
        **{key: value for key, value in config.items() if key != "out"},
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
        "versions": versions(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRun(f"cannot make the folder {folder}: {error.strerror}") from error
    write_json(folder / RESULT, {"format": "circuitdisc.heads", "version": 1, **record, "result": found.to_dict()})
    write_arrays(folder / ARRAYS, arrays_of(found))
    write_description(folder / PAGE, description, heading=tool.heading, subject=subject, settings=record)
    return f"{subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {folder / PAGE}"


def _call(name: str, config: Mapping[str, Any]) -> tuple[Any, str]:
    """The tool's result, and what it is about."""
    import circuitdisc.heads
    from circuitdisc.patching.selfcheck import load_model
    from circuitdisc.pipeline import build_task

    settings = dict(config["settings"])
    shared = {key: config[key] for key in ("seed", "memory", "progress")}
    if "ablation" in config:
        shared |= {"ablation": dict(config["ablation"]), "metric": config["metric"].get("name")}
    model = load_model(**config["model"])
    without_task = name == "roles" and settings["prompts"] == "repeated"
    task = None if without_task else build_task(model, config)
    found = getattr(circuitdisc.heads, TOOLS[name].function)(model, task, **settings, **shared)
    return found, f"{model.name}, {'random tokens said twice' if task is None else f'task {task.name}'}"


def default_folder(name: str, config: Mapping[str, Any]) -> Path:
    """`runs/heads-<tool>_<model>_<task>_<date and time>`."""
    task = config["task"].get("path") or config["task"]["name"]
    parts = (f"heads-{name}", Path(str(config["model"]["name"])).as_posix(), Path(str(task)).stem)
    words = [part.strip("./~").replace("/", "-") for part in parts]
    return Path("runs") / "_".join([*words, datetime.now().strftime("%Y-%m-%d_%H-%M-%S")])


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


def _set_threads(threads: object) -> None:
    if threads is None:
        return
    import torch

    if not isinstance(threads, int) or threads < 1:
        raise BadSetting(f"threads={threads!r} must be a whole number from 1, or null")
    torch.set_num_threads(threads)
