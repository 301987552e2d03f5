"""What the files of a run's folder belong to: each says so itself, and is taken with what it belongs to alone.

circuit.json     the weights, train examples and settings of its search (`provenance.identity`)
edge_scores.npz  a hash of the same
scores.json, judgement.json, stability.json, certify.json   the weights, the examples of both splits, the settings,
                 and the circuit

A file without an identity is one of an older version: it opens, with a note that what it belongs to is not known.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitdisc.ablation import get_ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.registry import search_identity
from circuitdisc.errors import BadFile, BadRun, CircuitdiscWarning
from circuitdisc.files import read_arrays, read_json, write_arrays
from circuitdisc.identity import Identity, hash_circuit, identity_of, in_words
from circuitdisc.metrics import REGISTRY, get_metric
from circuitdisc.models.model import Model
from circuitdisc.shipped import shipped_models
from circuitdisc.tasks.base import Task

KEY = "identity"
TRAIN, HELDOUT = "train examples", "held-out examples"


def at_home(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose files and folders are found from anywhere: relative paths are made absolute."""
    settings = {name: dict(section) if isinstance(section, Mapping) else section for name, section in config.items()}
    model, task, algorithm = (settings.get(name) or {} for name in ("model", "task", "algorithm"))
    if str(model.get("name")) not in shipped_models():
        _resolve(model, "name", Path.is_dir)
    _resolve(task, "path", Path.is_file)
    for name in [name for name, value in algorithm.items() if isinstance(value, str) and Path(value).suffix]:
        _resolve(algorithm, name, Path.is_file)
    return settings


def _resolve(section: dict[str, Any], name: str, is_there: Any) -> None:
    value = section.get(name)
    path = Path(value).expanduser() if isinstance(value, str) else None
    if path is not None and is_there(path):
        section[name] = str(path.resolve())


# --- identities of a configuration ------------------------------------------------------------------------------------


def identity_of_search(config: Mapping[str, Any], model: Model, task: Task) -> Identity:
    """Of the search that a configuration asks for."""
    settings = dict(config["algorithm"])
    name, metric = settings.pop("name"), config["metric"].get("name")
    return search_identity(model, task, name, dict(config["ablation"]), metric, config["seed"], settings)


def identity_of_scores(config: Mapping[str, Any], model: Model, task: Task, circuit: Circuit) -> Identity:
    """Of the scores of a circuit that a configuration asks for."""
    metric = get_metric(config["metric"].get("name") or task.metric).name
    settings = {
        "ablation": get_ablation(dict(config["ablation"])).to_dict(),
        "metric": metric,
        "scoring": dict(config["scoring"]),
        "seed": config["seed"],
    }
    identity = identity_of(model, {TRAIN: task.train, HELDOUT: task.heldout}, settings, circuit)
    return identity.with_packages(REGISTRY.versions(metric))


# --- checks ---------------------------------------------------------------------------------------------------------------


def check_circuit(
    path: Path,
    circuit: Circuit,
    config: Mapping[str, Any],
    model: Model,
    task: Task,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Make sure that a circuit was found on this model, with these examples and settings.

    Args:
        path: of the circuit, for messages.
        changes: sections of the configuration that were changed on purpose, and so may differ.

    Raises:
        BadRun: it was not; the message names the difference.
    """
    changes, parts = changes or {}, {"weights", "examples", "settings"}
    found_with = Identity.from_dict(circuit.provenance.identity)
    if found_with is None:
        warnings.warn(
            f"{path} does not say which weights and examples it was found with (an older version wrote it): whether they are "
            "those of now is not known",
            CircuitdiscWarning,
            stacklevel=2,
        )
        return
    if set(changes.get("model", ())) - {"device"}:
        parts -= {"weights", "examples"}
    if {"task", "seed"} & changes.keys():
        parts -= {"examples"}
    but = {*changes, *(("metric",) if "task" in changes else ())}
    if different := found_with.differences(identity_of_search(config, model, task), parts, but):
        raise BadRun(
            f"{path} was found with {in_words(different)}: nothing is written. Give back what it was found with, name what is "
            "meant instead (`circuitdisc score RUN model=...` prints and saves nothing), or search again in a new folder"
        )


def check_written(path: Path, now: Identity, parts: tuple[str, ...] = ("weights", "examples", "settings")) -> None:
    """Make sure that a file of scores, if it is there and says so, belongs to what it would be taken or replaced for.

    Raises:
        BadRun: it belongs to something else; the message names the difference.
    """
    if not path.exists():
        return
    try:
        data = read_json(path)
    except BadFile:  # nothing that could be lost
        return
    written_for = Identity.from_dict(data.get(KEY) if isinstance(data, Mapping) else None)
    if written_for is not None and (different := written_for.differences(now, parts)):
        raise BadRun(
            f"{path} was computed with {in_words(different)}, and is left as it is: give back what it was computed with, or "
            "move it elsewhere to compute it again"
        )


def check_together(path: Path, data: object, circuit: Circuit) -> None:
    """Make sure that a file of scores belongs to the circuit that lies beside it.

    Raises:
        BadRun: it belongs to another circuit, or to one that was found elsewhere.
    """
    mine = Identity.from_dict(data.get(KEY) if isinstance(data, Mapping) else None)
    if mine is None:
        return
    found_with = Identity.from_dict(circuit.provenance.identity)
    different = [] if mine.settings.get("circuit") == hash_circuit(circuit) else ["another circuit"]
    if found_with is not None:
        theirs = Identity(found_with.weights, {**mine.examples, **found_with.examples})
        different += mine.differences(theirs, ("weights", "examples"))
    if different:
        raise BadRun(
            f"{path} was computed with {in_words(different)} than circuit.json: move it elsewhere and compute it again"
        )


# --- edge scores ------------------------------------------------------------------------------------------------------


def write_edge_scores(path: Path, arrays: Mapping[str, np.ndarray], circuit: Circuit) -> None:
    """Write a search's scores with a hash of what they belong to."""
    write_arrays(path, {**arrays, KEY: np.array(_digest(circuit))})


def read_own_edge_scores(path: Path, circuit: Circuit) -> np.ndarray | None:
    """The scores of all edges that were found with a circuit; None if there are none.

    Raises:
        BadFile: the file is damaged.
        BadRun: they were found in another search.
    """
    if not path.exists():
        return None
    shape = circuit.mask.shape
    arrays = read_arrays(path, most=4 * 8 * circuit.mask.size + 2**16)
    scores, digest = arrays.get("edge_scores"), _digest(circuit)
    if scores is not None and (scores.shape != shape or scores.dtype.kind != "f"):
        raise BadFile(f"{path}: it has scores of shape {scores.shape}, and the circuit's graph needs {shape}: remove it")
    if digest and KEY in arrays and str(arrays[KEY]) != digest:
        raise BadRun(f"{path} belongs to another search than circuit.json beside it: move it elsewhere")
    return scores


def _digest(circuit: Circuit) -> str:
    identity = Identity.from_dict(circuit.provenance.identity)
    return "" if identity is None else identity.digest
