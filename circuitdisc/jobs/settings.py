"""What the commands share: settings of a YAML file beside the groups of `circuitdisc discover`, help, and the folder of a call.

A command's own settings stand in conf/<path>.yaml, one `key: default # comment` a line. Settings of `discover` that a command
takes too (model, task, ablation, ..., seed, memory) are spelled and checked as there.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from circuitdisc.checks import THREADS
from circuitdisc.errors import BadSetting, UnknownName, shown

COMMON = ("seed", "memory", "threads", "progress", "out")


def asks_for_help(args: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(args))


def parse(
    command: str,
    path: str,
    args: Sequence[str],
    groups: Sequence[str] = ("model", "task"),
    lists: Sequence[str] = (),
    common: Sequence[str] = COMMON,
) -> dict[str, Any]:
    """The settings of one call.

    Args:
        command: as the user knows it, for example `heads roles`.
        path: of the command's own settings under conf/, without the ending.
        args: what was typed after the command.
        groups: sections of `circuitdisc discover` that the command takes.
        lists: own settings that may be written `a,b,c`, without brackets.
        common: settings at the top of conf/config.yaml that the command takes.

    Returns:
        A section for each group, the common settings, and `settings`: the command's own.

    Raises:
        UnknownName: there is no such setting.
        BadSetting: it cannot be read.
    """
    from omegaconf import OmegaConf

    from circuitdisc.jobs.config import check_overrides, compose, conf_dir, plain, rewrite

    defaults = OmegaConf.load(conf_dir() / f"{path}.yaml")
    own = [arg for arg in args if arg.partition("=")[0].partition(".")[0] in defaults and "=" in arg]
    others = [arg for arg in args if arg not in own]
    for arg in others:
        key = arg.partition("=")[0].partition(".")[0]
        if "=" in arg and key not in (*groups, *common):
            raise UnknownName(f"setting of {command}", key, [*map(str, defaults), *groups, *common])
    overrides = rewrite(list(others))
    check_overrides(overrides)
    composed = plain(compose(overrides))
    check_call(composed)
    return {key: composed[key] for key in (*groups, *common)} | {"settings": _own_settings(defaults, own, lists)}


def _own_settings(defaults: Any, args: Sequence[str], lists: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from circuitdisc.jobs.config import plain, read_dotlist

    given: Any = plain(read_dotlist(args))
    settings: Any = OmegaConf.to_container(defaults)
    for key, value in given.items():
        if key in lists and isinstance(value, str):
            value = [one.strip() for one in value.strip("[]").split(",") if one.strip()]
        settings[key] = {**settings[key], **value} if isinstance(value, dict) and isinstance(settings[key], dict) else value
    return settings


def help_text(
    command: str,
    what: str,
    path: str,
    groups: Sequence[str] = ("model", "task"),
    common: Sequence[str] = COMMON,
    folder: str = "",
) -> str:
    """A command's settings, read from conf/.

    Args:
        what: one or more sentences on what the command does and leaves.
        folder: where it writes when `out` is not given.
    """
    from circuitdisc.jobs.config import conf_dir, setting_lines

    parts = [f"circuitdisc {command} [key=value ...]", "", what, "", "settings, with their defaults:"]
    parts += setting_lines(conf_dir() / f"{path}.yaml", "")
    parts += [""] if groups else []
    parts += [f"{group}=NAME, {group}.KEY=... as for `circuitdisc discover`" for group in groups]
    known = [line for line in setting_lines(conf_dir() / "config.yaml", "") if line.strip().partition("=")[0] in common]
    parts += ["", *(line for line in known if not line.strip().startswith("out="))]
    parts += [f"    {'out=null':<40} folder; null: {folder}"] if "out" in common else []
    return "\n".join(parts)


def stamped_folder(*words: str) -> Path:
    """`runs/<word>_<word>_..._<date and time>`; a path counts as one word."""
    plain = [Path(word).as_posix().strip("./~").replace("/", "-") for word in words]
    return Path("runs") / "_".join([*plain, datetime.now().strftime("%Y-%m-%d_%H-%M-%S")])


def task_word(config: Mapping[str, Any]) -> str:
    """A task's name in a folder's name: its file's, if it is one of the user's own."""
    return Path(str(config["task"].get("path") or config["task"]["name"])).stem


def check_call(composed: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a composed configuration, without what only the command line knows; all seen to be usable.

    Raises:
        BadSetting, UnknownName: one is not.
    """
    from circuitdisc.sections import check_sections

    if composed["threads"] is not None:
        THREADS.check("threads", composed["threads"])
    if not isinstance(composed["out"], str | None):
        raise BadSetting(f"out={shown(composed['out'])} is not the name of a folder: write it as out='...'")
    sections = {name: value for name, value in composed.items() if name not in ("threads", "out", "launcher")}
    check_sections(sections)
    return sections


def set_threads(threads: int | None) -> None:
    """Tell torch how many threads to use; None leaves its own choice.

    Raises:
        BadSetting: it is not a whole number that torch can start.
    """
    if threads is None:
        return
    import torch

    torch.set_num_threads(THREADS.check("threads", threads))
