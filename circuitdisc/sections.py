"""The sections of a configuration: seen to be of their kind and within bounds before a model is loaded."""

import os
from collections.abc import Mapping
from typing import Any

from circuitdisc.ablation import get_ablation
from circuitdisc.checks import SEED, Whole, check_values
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.engine.memory import parse_memory
from circuitdisc.errors import BadRun, BadSetting, shown
from circuitdisc.runs import Run, versions
from circuitdisc.schemas import RunConfig, Sections, validate
from circuitdisc.scoring import score
from circuitdisc.tasks.registry import REGISTRY as TASKS
from circuitdisc.tasks.registry import load_task

STABILITY = Whole(0, 100_000)


def check_sections(config: Mapping[str, Any], kind: type[Sections] = Sections) -> None:
    """Every section has what the code that takes it expects, and its numbers lie within that code's bounds.

    Args:
        config: sections `model`, `task`, `algorithm`, `ablation`, `metric`, `scoring`, and the settings beside them.
        kind: `RunConfig` if none of them may be missing.

    Raises:
        BadSetting: a section or a value is of another kind, or out of bounds.
        UnknownName: there is no such algorithm, or no such kind of ablation or setting of it.
    """
    validate(kind, config, "settings", error=BadSetting)
    if config.get("seed") is not None:
        SEED.check("seed", config["seed"])
    STABILITY.check("stability", config.get("stability", 0))
    if config.get("stability") == 1:
        raise BadSetting("stability=1 compares no two circuits: give 0 for none, or two samples at least (50 are usual)")
    if config.get("memory") is not None:
        parse_memory(config["memory"])
    check_values(score, config.get("scoring", {}))
    if ablation := config.get("ablation"):
        get_ablation(ablation)
    if task := config.get("task"):
        check_values(load_task, task)
        if task["name"] in TASKS.names:
            check_values(TASKS.get(task["name"]).build, task)
    if algorithm := config.get("algorithm"):
        check_values(get_algorithm(algorithm["name"]).function, algorithm)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """An existing run, with a configuration that this version knows.

    Raises:
        BadRun: the folder is not a run, or its configuration lacks a section, has one more, or one with another content.
    """
    run = Run.open(folder)
    by = run.config.get("versions")
    written = f"the file says {shown(by.get('circuitdisc'))}" if isinstance(by, dict) else "the file does not say which"
    remedy = f"was it changed, or written by another version (this is {versions()['circuitdisc']}, {written})?"
    validate(RunConfig, run.config, str(run.path("config.json")), error=BadRun, closed=True, remedy=remedy)
    return run
