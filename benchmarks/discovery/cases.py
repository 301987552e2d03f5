"""The cases by name: compiled programs, trained ones (SIIT), programs that tracr compiled, and shipped models with a task.

induction                  a compiled program (`cd.compiled`), with distractor heads and a rotated basis
siit/NAME                  a model trained to have a known circuit (`cd.siit`)
tracr/NAME                 a folder NAME in the folder that `tracr` names
multitask/base:ioi         a model and a task, without a ground truth
smollm2-135m-instruct:ioi  the same of the folder that `real.model` names, by the folder's name alone
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import circuitdisc as cd
from benchmarks.discovery.tracr import load_tracr
from circuitdisc.errors import BadSetting
from circuitdisc.known.compiled import PROGRAMS, build
from circuitdisc.models.model import Model
from circuitdisc.scoring.truth import Truth
from circuitdisc.shipped import FOLDER
from circuitdisc.tasks.base import Task

ROTATION = 1  # seed of the rotation of compiled models


@dataclass(frozen=True)
class Case:
    """A model with a task.

    Args:
        family: `compiled`, `siit`, `tracr`, `shipped` or `real`.
        truth: object with `edges(ablation)`, the true edges by name; None if they are not known.
    """

    family: str
    model: Model
    task: Task
    truth: Any = None

    def true_circuit(self, name: str, ablation: str) -> Truth:
        """The true edges under one ablation.

        Raises:
            BadSetting: nothing is known for it.
        """
        known = getattr(self.truth, "ablations", None)
        if known is not None and ablation not in known:
            raise BadSetting(f"the true edges of '{name}' are known under {' and '.join(known)} ablation, not under {ablation}")
        return Truth(self.model.graph, {ablation: tuple(self.truth.edges(ablation))}, name)


def true_case_names(config: Mapping[str, Any]) -> list[str]:
    """Cases whose circuit is known."""
    folder = Path(config["tracr"]) if config["tracr"] else None
    if folder is not None and not folder.is_dir():
        raise BadSetting(f"tracr={folder}: there is no such folder")
    programs = sorted(path.parent.name for path in folder.glob("*/ground_truth.json")) if folder is not None else []
    return [*PROGRAMS, *(f"siit/{name}" for name in _siit_cases()), *(f"tracr/{name}" for name in programs)]


def real_name(config: Mapping[str, Any]) -> str:
    """What tables call the real model: its folder's name. Empty if there is none."""
    return Path(config["real"]["model"]).name if config["real"]["model"] else ""


def task_settings(part: str, case: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a case's task that differ from its defaults."""
    return {**config[part].get("task", {}).get(case.rpartition(":")[2], {})}


def load_case(name: str, config: Mapping[str, Any], part: str, seed: int) -> Case:
    """A case with a part's numbers of examples; the last ones loaded are kept."""
    own = config[part]
    folder = str(config["real"]["model"]) if part == "real" else ""
    settings = tuple(task_settings(part, name, config).items())
    return _load(name, own["n"], own["n_heldout"], own.get("distractors", 0), seed, str(config["tracr"]), folder, settings)


@lru_cache(maxsize=2)
def _load(
    name: str,
    n: int,
    n_heldout: int,
    distractors: int,
    seed: int,
    tracr: str,
    folder: str,
    settings: tuple[tuple[str, Any], ...],
) -> Case:
    if ":" in name:
        model_name, _, task = name.rpartition(":")
        model = cd.load_model(folder or model_name)
        examples = cd.load_task(task, model, n=n, n_heldout=n_heldout, seed=seed, **dict(settings))
        return Case("real" if folder else "shipped", model, examples)
    family, _, own = name.rpartition("/")
    if family == "tracr":
        return Case("tracr", *load_tracr(Path(tracr) / own, n, n_heldout, seed))
    if family == "siit":
        found = import_module("circuitdisc.known.siit").load(own, n=n, n_heldout=n_heldout, seed=seed)
        return Case("siit", found.model, found.task, found.truth)
    case = build(name, n=n, n_heldout=n_heldout, seed=seed, rotate=ROTATION, distractors=distractors)
    return Case("compiled", case.model, case.task, case.truth)


def _siit_cases() -> list[str]:
    """Those whose weights are shipped."""
    if find_spec("circuitdisc.known.siit") is None:
        return []
    return [name for name in import_module("circuitdisc.known.siit").CASES if (FOLDER / "siit" / name).is_dir()]
