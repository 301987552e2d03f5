"""Hydra's configuration behind short spellings and clear errors.

Short spellings: `model=NAME` takes any model name or folder, `task=FILE` any .jsonl or .csv file. Names and keys are checked
before Hydra sees them, so that a slip gets the nearest names.
"""

from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting, UnknownName

GROUPS = ("task", "algorithm", "ablation", "metric", "scoring", "launcher")
FILES = (".jsonl", ".csv")


def conf_dir() -> Path:
    """The folder of Hydra groups: packed into an installed copy, at the top of a source tree."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def rewrite(args: list[str]) -> list[str]:
    """Spell out `model=NAME` and `task=FILE`."""
    return [long for arg in args for long in _spell_out(arg)]


def _spell_out(arg: str) -> list[str]:
    key, equals, value = arg.partition("=")
    if not equals:
        raise BadSetting(f"'{arg}' is not a setting: write key=value, for example algorithm.threshold=0.01")
    if key == "model":
        return [f"model.name={_quoted(value)}"]
    if key == "task" and value not in _options("task") and (value.lower().endswith(FILES) or Path(value).is_file()):
        return ["task=file", f"task.path={_quoted(value)}"]
    return [arg]


def _quoted(value: str) -> str:
    """Paths may hold characters that Hydra's grammar gives a meaning; commas stay, they separate the jobs of a multirun."""
    return value if all(char.isalnum() or char in "/._-,~" for char in value) else "'" + value.replace("'", "\\'") + "'"


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
                if key == "algorithm" and option not in _options(key):
                    enter_outside(option)
                elif option not in _options(key):
                    raise UnknownName(key, option, [name for name in _options(key) if name != "default"])
    chosen = _chosen(overrides)
    sections |= {group: _keys_of_options(group, chosen) for group in ("task", "algorithm", "ablation", "metric")}
    for override in overrides:
        key, _, _ = override.lstrip("+~").partition("=")
        head, dot, rest = key.partition(".")
        if not dot and key not in GROUPS and key not in top:
            raise UnknownName("setting", key, [*top, *GROUPS, "model"])
        if dot and head in sections and rest.split(".")[0] not in sections[head]:
            raise UnknownName(f"setting of {head}", rest, sections[head])
        if dot and head not in sections and head != "hydra":
            raise UnknownName("setting", head, [*top, *sections])


def enter_outside(name: str) -> dict[str, Any]:
    """Make an algorithm of another package an option of Hydra's group.

    Returns:
        What a file in conf/algorithm would hold: the name, and the settings with their defaults.

    Raises:
        UnknownName: no package declares it; the message offers the nearest names.
        BadSetting: it cannot be imported or called, or a default cannot be written as a setting.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf.errors import OmegaConfBaseException

    from circuitdisc.discovery.registry import get_algorithm

    node = {"name": name, **get_algorithm(name).settings}
    try:
        ConfigStore.instance().store(group="algorithm", name=name, node=node)
    except OmegaConfBaseException as error:
        words = " ".join(str(error).split())
        raise BadSetting(f"a default of algorithm '{name}' is no number, word, list or null ({words})") from error
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
    except (HydraException, OmegaConfBaseException) as error:
        raise BadSetting(f"these settings cannot be read: {' '.join(str(error).split())}") from error


def parse_changes(overrides: list[str]) -> dict[str, Any]:
    """Overrides as nested sections, for `circuitdisc score RUN key=value`; a group's option stands for its settings."""
    from omegaconf import OmegaConf

    changes = OmegaConf.create()
    for override in overrides:
        key, _, value = override.partition("=")
        if key in GROUPS:
            path = conf_dir() / key / f"{value}.yaml"
            changes = OmegaConf.merge(changes, {key: OmegaConf.load(path) if path.exists() else enter_outside(value)})
        else:
            changes = OmegaConf.merge(changes, OmegaConf.from_dotlist([override.replace("'", "")]))
    plain: Any = OmegaConf.to_container(changes)
    return plain


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
        parts += ["  and those that other packages declare: `circuitdisc list algorithms`"] if group == "algorithm" else []
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
        found |= set(_keys(f"{group}/{option}") if option in _options(group) else enter_outside(option))
    return sorted(found)
