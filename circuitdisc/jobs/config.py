"""Every command's settings: Hydra configurations in conf/, with names and keys checked first, so that a slip gets the nearest.

conf/NAME.yaml holds a command's own settings, one `key: default # comment` a line, and in its defaults list the groups that it
takes (`model`, `task`, `algorithm`, ...) and conf/common.yaml. A command of another package names such a file by its path.
"""

import re
from collections.abc import Collection, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.jobs.spelling import as_overrides

Config = str | Path
"""A configuration: a name in conf/, or the file of another package."""

DISCOVER, CELLS = "discover", "cells"
"""The configuration that has all groups, and that of the launcher."""


def conf_dir() -> Path:
    """The folder of Hydra groups: packed into an installed copy, at the top of a source tree."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_file(config: Config) -> Path:
    """The file of a configuration."""
    return config if isinstance(config, Path) else conf_dir() / f"{config}.yaml"


# --- what there is --------------------------------------------------------------------------------------------------------


@cache
def groups_of(config: Config) -> dict[str, str]:
    """Group -> its default option, from a configuration's defaults list."""
    entries = re.findall(r"^  - (\w+): (\w+)$", _text(config), re.MULTILINE)
    return {group: option for group, option in entries if group != "launcher"}


def options_of(group: str) -> list[str]:
    """The files of a group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def own_keys(config: Config) -> list[str]:
    """The keys in a configuration's own file."""
    lines = [line for line in _text(config).splitlines() if ":" in line and not line.startswith((" ", "#", "-"))]
    return [key for key in (line.partition(":")[0] for line in lines) if key not in ("defaults", "hydra")]


def common_keys(config: Config) -> list[str]:
    """The keys that a configuration has from conf/common.yaml."""
    return own_keys("common") if "  - common\n" in _text(config) else []


def _text(config: Config) -> str:
    return conf_file(config).read_text(encoding="utf-8")


# --- what was typed -------------------------------------------------------------------------------------------------------


def read_overrides(
    args: Sequence[str], config: Config = DISCOVER, what: str = "setting", lists: Collection[str] = (), multirun: bool = False
) -> list[str]:
    """Arguments as Hydra's overrides; every group, option and key in them exists.

    Args:
        config: the configuration that they are of.
        what: for messages: what a key is called.
        lists: own settings that may be written `a,b,c`, without brackets.

    Raises:
        UnknownName: one does not exist; the nearest are offered.
        BadSetting: an argument is no setting.
    """
    overrides = as_overrides(args, tasks=options_of("task"), lists=lists, multirun=multirun)
    groups, own = groups_of(config), list(dict.fromkeys([*own_keys(config), *common_keys(config)]))
    chosen = {group: [option] for group, option in groups.items()}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in groups or (key == "launcher" and config == CELLS):
            chosen[key] = value.split(",")
            for option in chosen[key]:
                check_option(key, option)
    sections = {group: sorted({key for option in chosen[group] for key in _keys_of(group, option)}) for group in groups}
    for override in overrides:
        key, _, _ = override.lstrip("+~").partition("=")
        head, dot, rest = key.partition(".")
        if not dot and key not in own and key not in chosen:
            raise UnknownName(what, key, [*own, *chosen])
        if dot and head in sections and rest.split(".")[0] not in sections[head]:
            raise UnknownName(f"setting of {head}", rest, sections[head])
        if dot and head in own:
            raise BadSetting(f"{key} is not a setting: '{head}' is one itself, with a single value")
        if dot and head not in sections and head != "hydra":
            raise UnknownName(what, head, [*own, *sections])
    return overrides


def check_option(group: str, option: str) -> None:
    """A group has this member.

    Raises:
        UnknownName: it has not; the message offers the nearest names.
    """
    if option not in options_of(group):
        enter_outside(group, option)


def _keys_of(group: str, option: str) -> list[str]:
    return own_keys(f"{group}/{option}") if option in options_of(group) else list(enter_outside(group, option))


REGISTRIES = {"algorithm": "discovery.registry", "ablation": "ablation.registry", "metric": "metrics", "task": "tasks.registry"}
"""Groups to which other packages may add, and the modules that know what they declare."""


def enter_outside(group: str, name: str) -> dict[str, Any]:
    """Make an algorithm, metric or task of another package an option of Hydra's group.

    Returns:
        What a file in the group's folder would hold: the name, and the settings with their defaults.

    Raises:
        UnknownName: no package declares it; the message offers the nearest names.
        BadSetting: it cannot be imported or used, or a default cannot be written as a setting.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf.errors import OmegaConfBaseException

    registry = import_module(f"circuitdisc.{REGISTRIES[group]}").REGISTRY if group in REGISTRIES else None
    if registry is None or name not in registry.names:
        known = {*options_of(group), *(registry.names if registry else ())} - {"default"}
        raise UnknownName(group, name.strip("'\""), known)
    node = registry.settings(name)
    try:
        ConfigStore.instance().store(group=group, name=name, node=node)
    except OmegaConfBaseException as error:
        words = " ".join(str(error).split())
        raise BadSetting(f"a default of {group} '{name}' is no number, word, list or null ({words})") from error
    return node


# --- what Hydra makes of it -----------------------------------------------------------------------------------------------


def compose(overrides: list[str], config: Config = DISCOVER) -> Any:
    """Hydra's configuration for one job.

    Raises:
        BadSetting: Hydra cannot make sense of an override, or of another package's file.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        if isinstance(config, Path):  # Hydra finds a file elsewhere as a stored node, and its groups in conf/
            stored = f"of_{config.resolve().as_posix().strip('/').replace('/', '_')}"
            ConfigStore.instance().store(stored, OmegaConf.load(config))
            config = stored
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            return hydra_compose(config, overrides=overrides)
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError, YAMLError) as error:
        raise _unreadable(error) from error


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain sections, with `${...}` filled in.

    Raises:
        BadSetting: a reference leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        sections: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        raise _unreadable(error) from error
    return sections


def _unreadable(error: Exception) -> BadSetting:
    """A sentence of what Hydra or OmegaConf say."""
    words = re.sub(r"See https?://\S+( for details)?|LexerNoViableAltException: |full_key: .*|object_type=\S+", "", str(error))
    quotes = " Words with other than English letters or with quotes in them: key='...'" if "ViableAlt" in str(error) else ""
    return BadSetting(f"these settings cannot be read: {' '.join(words.split())}.{quotes}")


def changes_of(overrides: list[str], config: Config, asked: Sequence[str]) -> dict[str, Any]:
    """What some overrides of a configuration change, as nested sections; a group's option stands for all its settings.

    Args:
        overrides: all of them.
        asked: those whose changes are wanted.
    """
    composed, changes = plain(compose(overrides, config)), dict[str, Any]()
    for override in asked:
        head, dot, rest = override.partition("=")[0].partition(".")
        if not dot and head in composed:
            changes[head] = composed[head]
        elif dot:
            key = rest.partition(".")[0]
            changes.setdefault(head, {})[key] = composed[head][key]
    return changes
