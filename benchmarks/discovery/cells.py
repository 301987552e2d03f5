"""A cell is one row of the table: a part, a case, an ablation, a metric, an algorithm and a seed. Which there are to run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.discovery.cases import real_name, task_settings, true_case_names
from circuitdisc.ablation import get_ablation
from circuitdisc.discovery.registry import REGISTRY, get_algorithm
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import get_metric

PARTS = ("truth", "shipped", "real", "stability")
AXES = ("part", "case", "ablation", "metric", "algorithm", "seed")
FROM_FILE = "from_file"


@dataclass(frozen=True)
class Cell:
    """One row. Its text names it on Hydra's command line."""

    part: str
    case: str
    ablation: str
    metric: str
    algorithm: str
    seed: int

    def __str__(self) -> str:
        return "|".join(map(str, astuple(self)))

    @classmethod
    def parse(cls, text: str) -> "Cell":
        return cls.of(text.split("|"))

    @classmethod
    def of(cls, words: Sequence[Any]) -> "Cell":
        """From the values of the axes, in their order."""
        part, case, ablation, metric, algorithm, seed = words
        return cls(part, case, ablation, metric, algorithm, int(seed))

    @property
    def registered(self) -> str:
        """The algorithm's name in the registry; a variant is `eap_ig:gim`, a file of scores `from_file:<its name>`."""
        return self.algorithm.partition(":")[0]


def cells(config: Mapping[str, Any], axes: Mapping[str, Sequence[str]]) -> Iterator[Cell]:
    """All cells that a configuration asks for, case by case.

    Args:
        axes: what the user chose on an axis; on the others each part has its own values.

    Raises:
        UnknownName: a part, case, ablation, metric or algorithm does not exist.
        BadSetting: a seed is no number.
    """
    _check(config, axes)
    for part in axes.get("part", PARTS):
        own = config[part]
        chosen = {axis: _listed(axes.get(axis, own[axis])) for axis in AXES[1:]}
        chosen["case"] = _cases(part, chosen["case"], config, "case" in axes)
        chosen["algorithm"] = _algorithms(part, chosen["algorithm"], config, "algorithm" in axes)
        for values in product(*chosen.values()):
            yield Cell.of([part, *values])


def score_files(config: Mapping[str, Any]) -> dict[str, Path]:
    """Files of edge scores by the name of their algorithm.

    Raises:
        BadSetting: two have one name.
    """
    given = config["scores"]
    found: dict[str, Path] = {}
    for path in map(Path, [given] if isinstance(given, str) else given):
        name = f"{FROM_FILE}:{path.stem}"
        if name in found:
            raise BadSetting(f"{found[name]} and {path} would both be '{name}' in the table: rename one")
        found[name] = path
    return found


def settings_of(cell: Cell, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a cell's algorithm that differ from its defaults."""
    settings = config["settings"]
    section = "siit" if cell.part == "truth" and cell.case.startswith("siit/") else cell.part
    found: dict[str, Any] = {}
    for name in dict.fromkeys((cell.registered, cell.algorithm)):
        found |= settings[section].get(name, {}) | settings["metric"].get(cell.metric, {}).get(name, {})
    found |= config["variants"].get(cell.algorithm, {})
    if cell.registered == FROM_FILE:
        found["path"] = str(score_files(config)[cell.algorithm])
    return found


def settings_text(cell: Cell, config: Mapping[str, Any]) -> str:
    """All settings that a row depends on, in a line."""
    return " ".join(f"{key}={value}" for key, value in settings_in_all(cell, config).items())


def settings_in_all(cell: Cell, config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that a row depends on; a cell whose settings have changed is run again."""
    others = (*AXES, "slow", "bootstraps", "seeds", "slow_bootstraps", "slow_seeds", "model", "task")
    own = {key: value for key, value in config[cell.part].items() if key not in others}
    own |= {f"task.{key}": value for key, value in task_settings(cell.part, cell.case, config).items()}
    own |= dict(zip(("bootstraps", "seeds"), repeats(cell, config), strict=True)) if cell.part == "stability" else {}
    return {**own, **settings_of(cell, config)}


def repeats(cell: Cell, config: Mapping[str, Any]) -> tuple[int, int]:
    """How many bootstrap samples and seeds the stability of an algorithm is measured on."""
    own = config["stability"]
    slow = "slow_" if cell.algorithm in own["slow"] else ""
    return own[f"{slow}bootstraps"], own[f"{slow}seeds"]


def _check(config: Mapping[str, Any], axes: Mapping[str, Sequence[str]]) -> None:
    for part in axes.get("part", ()):
        if part not in PARTS:
            raise UnknownName("part", part, PARTS)
    for case in axes.get("case", ()):
        if ":" not in case and case not in true_case_names(config):
            raise UnknownName("case", case, true_case_names(config), "Cases without a ground truth are written model:task.")
    for seed in axes.get("seed", ()):
        if not seed.isdecimal():
            raise BadSetting(f"seed={seed} must be a whole number from 0")
    for ablation in axes.get("ablation", ()):
        get_ablation(ablation)
    for metric in axes.get("metric", ()):
        get_metric(metric)
    for algorithm in axes.get("algorithm", ()):
        if algorithm not in score_files(config) and algorithm not in config["variants"] and algorithm != "all":
            get_algorithm(algorithm)
    for path in score_files(config).values():
        if not path.is_file():
            raise BadSetting(f"scores={path}: there is no such file")


def _cases(part: str, names: Sequence[str], config: Mapping[str, Any], chosen: bool) -> list[str]:
    """Those of the names that belong to a part: `model:task` has no ground truth."""
    if part == "truth":
        known = true_case_names(config)
        return known if list(names) == ["all"] else [name for name in names if name in known]
    if part == "stability":
        return list(names)
    real = real_name(config)
    if part == "real" and not chosen:
        return [f"{real}:{name}" for name in names] if real else []
    mine = [name for name in names if real and name.startswith(f"{real}:")]
    return mine if part == "real" else [name for name in names if name not in mine and (":" in name or not chosen)]


def _algorithms(part: str, names: Sequence[str], config: Mapping[str, Any], chosen: bool) -> list[str]:
    """`all`: the whole registry; with files of scores and no algorithm chosen, these alone."""
    files = list(score_files(config)) if part != "stability" else []
    if list(names) != ["all"]:
        named = [name for name in names if name != FROM_FILE and name not in files]
        return [*named, *files]
    if config["scores"] and not chosen:
        return files
    return [name for name in REGISTRY.names if name != FROM_FILE] + files


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]
