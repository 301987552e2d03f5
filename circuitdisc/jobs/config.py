"""Hydra's configuration behind short spellings and clear errors.

Short spellings: `model=NAME` takes any model name or folder, `task=FILE` any .jsonl or .csv file. Names and keys are checked
before Hydra sees them, so that a slip gets the nearest names.
"""

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting, UnknownName, shown

MOST_CHARACTERS, MOST_BRACKETS = 100_000, 50  # of one argument
_PLAIN_WORD = re.compile(r"[A-Za-z_/.~][A-Za-z0-9_/.~-]*")
_FOREIGN_WORD = re.compile(r"[^\[\]{},:'\"\s]*[^\x00-\x7f][^\[\]{},:'\"\s]*")
GROUPS = ("task", "algorithm", "ablation", "metric", "scoring", "launcher")
FILES = (".jsonl", ".csv")


def conf_dir() -> Path:
    """The folder of Hydra groups: packed into an installed copy, at the top of a source tree."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def rewrite(args: list[str]) -> list[str]:
    """Spell out `model=NAME` and `task=FILE`, and quote what Hydra's grammar has no letters for.

    Raises:
        BadSetting: an argument is not `key=value`, or is no setting by its length or depth.
    """
    return [long for arg in args for long in _spell_out(arg)]


def _spell_out(arg: str) -> list[str]:
    check_argument(arg)
    key, equals, value = arg.partition("=")
    if not equals:
        raise BadSetting(f"{shown(arg)} is not a setting: write key=value, for example algorithm.threshold=0.01")
    if key == "model":
        return [f"model.name={_names(value)}"]
    if key == "task" and value not in _options("task") and (value.lower().endswith(FILES) or _is_file(value)):
        return ["task=file", f"task.path={_names(value)}"]
    return [f"{key}={_readable(value)}"]


def check_argument(arg: str) -> None:
    """What is typed for a setting can be read at all.

    Raises:
        BadSetting: it is too long, or nested too deeply, or holds half a character.
    """
    if len(arg) > MOST_CHARACTERS:
        raise BadSetting(f"{shown(arg)} has {len(arg):,} characters, and a setting {MOST_CHARACTERS:,} at most")
    if arg.count("[") + arg.count("{") + arg.count("(") > MOST_BRACKETS:
        raise BadSetting(f"{shown(arg)} has too many brackets to be a setting")
    if not arg.isprintable() or arg.encode("utf-8", "ignore").decode() != arg:
        raise BadSetting(f"{shown(arg)} has a character in it that cannot be printed: leave it out")


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


def _names(value: str) -> str:
    """Names and paths, as words whatever is in them; commas stay, they separate the jobs of a multirun."""
    return value if value[:1] in ("'", '"') else ",".join(_quoted(name) for name in value.split(","))


def _readable(value: str) -> str:
    """A value with quotes around the words that Hydra's grammar has no letters for."""
    if value.isascii() and "'" not in value and '"' not in value:
        return value
    if value[:1] in "['\"{" and (value.isascii() or "'" in value or '"' in value):
        return value  # a list, a table or a quoted word: written in Hydra's own way
    if value[:1] in "[{":
        return _FOREIGN_WORD.sub(lambda word: _quoted(word[0]), value)
    return ",".join(_quoted(name) for name in value.split(","))


def _quoted(value: str) -> str:
    if _PLAIN_WORD.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    inside = re.sub(r"(\\*)(')", r"\1\1\\\2", value)  # backslashes count only before a quote
    backslashes = len(inside) - len(inside.rstrip("\\"))
    return f"'{inside}{chr(92) * backslashes}'"


def check_overrides(overrides: list[str]) -> None:
    """Every group, option and key exists.

    Raises:
        UnknownName: one does not; the nearest are offered.
    """
    top, sections = _keys("config"), {"model": _keys("model/default"), "scoring": _keys("scoring/default")}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in GROUPS:
            for option in value.split(","):
                if option not in _options(key):
                    enter_outside(key, option)
    chosen = _chosen(overrides)
    sections |= {group: _keys_of_options(group, chosen) for group in ("task", "algorithm", "ablation", "metric")}
    for override in overrides:
        key, _, _ = override.lstrip("+~").partition("=")
        head, dot, rest = key.partition(".")
        if not dot and key not in GROUPS and key not in top:
            raise UnknownName("setting", key, [*top, *GROUPS, "model"])
        if dot and head in sections and rest.split(".")[0] not in sections[head]:
            raise UnknownName(f"setting of {head}", rest, sections[head])
        if dot and head in top:
            raise BadSetting(f"{key} is not a setting: '{head}' is one itself, with a single value")
        if dot and head not in sections and head != "hydra":
            raise UnknownName("setting", head, [*top, *sections])


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
        known = {*_options(group), *(registry.names if registry else ())} - {"default"}
        raise UnknownName(group, name.strip("'\""), known)
    node = registry.settings(name)
    try:
        ConfigStore.instance().store(group=group, name=name, node=node)
    except OmegaConfBaseException as error:
        words = " ".join(str(error).split())
        raise BadSetting(f"a default of {group} '{name}' is no number, word, list or null ({words})") from error
    return node


def compose(overrides: list[str]) -> Any:
    """Hydra's configuration for one job.

    Raises:
        BadSetting: Hydra cannot make sense of an override.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            return hydra_compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError) as error:
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


def read_dotlist(args: Sequence[str]) -> Any:
    """`key=value` settings, each value as YAML reads it.

    Raises:
        BadSetting: one cannot be read.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for arg in args:
        check_argument(arg)
    try:
        return OmegaConf.from_dotlist(list(args))
    except (OmegaConfBaseException, YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> BadSetting:
    """A sentence of what Hydra, OmegaConf or YAML say."""
    words = re.sub(r"See https?://\S+( for details)?|LexerNoViableAltException: |full_key: .*|object_type=\S+", "", str(error))
    quotes = " Words with other than English letters or with quotes in them: key='...'" if "ViableAlt" in str(error) else ""
    return BadSetting(f"these settings cannot be read: {' '.join(words.split())}.{quotes}")


def parse_changes(overrides: list[str]) -> dict[str, Any]:
    """Overrides as nested sections, for `circuitdisc score RUN key=value`; a group's option stands for its settings."""
    from omegaconf import OmegaConf

    changes = OmegaConf.create()
    for override in overrides:
        key, _, value = override.partition("=")
        if key in GROUPS:
            path = conf_dir() / key / f"{value}.yaml"
            changes = OmegaConf.merge(changes, {key: OmegaConf.load(path) if path.exists() else enter_outside(key, value)})
        else:
            changes = OmegaConf.merge(changes, read_dotlist([override]))
    return plain(changes)


def discover_help() -> str:
    """Every setting of `circuitdisc discover`, read from the files of conf/."""
    parts = ["circuitdisc discover [key=value ...]", "", "settings, with their defaults:"]
    parts += setting_lines(conf_dir() / "config.yaml", "")
    parts += ["", "model=NAME      a shipped model, a Hugging Face name, or a folder"]
    parts += setting_lines(conf_dir() / "model/default.yaml", "model.")
    for group in GROUPS:
        options = [name for name in _options(group) if name != "default"]
        parts += ["", f"{group}={'|'.join(options)}" if options else f"{group}:"]
        if group == "task":
            parts[-1] += "|FILE.jsonl|FILE.csv"
        for option in _options(group) if group in ("task", "algorithm") else _options(group)[:1]:
            lines = setting_lines(conf_dir() / group / f"{option}.yaml", f"{group}.")
            parts += [f"  {option}:", *lines] if len(options) > 1 and group in ("task", "algorithm") else lines
        parts += [f"  and those that other packages declare: `circuitdisc list {group}s`"] if group in REGISTRIES else []
    parts += ["", "-m runs every combination of comma-separated values, for example algorithm.threshold=0.01,0.03"]
    return "\n".join(parts)


def setting_lines(path: Path, prefix: str) -> list[str]:
    """The `key: value # comment` lines of a YAML file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", " ", "-", "defaults", "hydra", "name:")) or ":" not in line:
            continue
        setting, _, comment = line.partition(" # ")
        key, _, value = setting.partition(":")
        found.append(f"    {prefix + key + '=' + value.strip():<40} {comment.strip()}".rstrip())
    return found


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _keys(name: str) -> list[str]:
    lines = (conf_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    keys = [line.partition(":")[0] for line in lines if ":" in line and not line.startswith((" ", "#", "-"))]
    return [key for key in keys if key not in ("defaults", "hydra")]


def _chosen(overrides: list[str]) -> dict[str, list[str]]:
    chosen = {"task": ["tpp"], "algorithm": ["acdc"], "ablation": ["mean"], "metric": ["default"]}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in chosen:
            chosen[key] = value.split(",")
    return chosen


def _keys_of_options(group: str, chosen: dict[str, list[str]]) -> list[str]:
    found = set()
    for option in chosen[group]:
        found |= set(_keys(f"{group}/{option}") if option in _options(group) else enter_outside(group, option))
    return sorted(found)
