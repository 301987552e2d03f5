"""What a transfer was asked for, checked before anything runs: given circuits, joint search, donors, who may be at chance.

Its folder says it in config.json, for those who go on with it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from circuitdisc.checkpoints.joint import check_joint
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.errors import BadFile, BadRun, BadSetting, GraphMismatch, UnknownName
from circuitdisc.files import read_json, write_json
from circuitdisc.identity import package_version
from circuitdisc.runs import TRANSFER, versions


@dataclass(frozen=True)
class TransferPlan:
    """The rows beside the checkpoints' own.

    Args:
        joint: checkpoints named for a joint search.
        joint_if_able: search jointly on all checkpoints that do the task.
        donors: pairs (A, B) named.
        donors_if_able: every pair of checkpoints that do the task.
        allow_chance: True, or the names of the checkpoints that may fail the task.
    """

    joint: tuple[str, ...] = ()
    joint_if_able: bool = False
    donors: tuple[tuple[str, str], ...] = ()
    donors_if_able: bool = False
    allow_chance: bool | list[str] = True

    def may_fail(self, name: str) -> bool:
        """Whether this checkpoint may be at chance."""
        return self.allow_chance if isinstance(self.allow_chance, bool) else name in self.allow_chance


def make_plan(
    names: Sequence[str],
    given: Mapping[str, Circuit],
    algorithm: str,
    settings: Mapping[str, Any],
    joint: bool | Sequence[str] | None,
    donor: str | Sequence[str | tuple[str, str]] | None,
    allow_chance: bool | Sequence[str],
) -> TransferPlan:
    """What was asked for, with every name known.

    Raises:
        UnknownName: an algorithm, setting or checkpoint is not known.
        BadSetting: the algorithm cannot do what is asked, or a pair is none.
    """
    known = get_algorithm(algorithm).settings
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of algorithm '{algorithm}'", name, known)
    joined = [_known(checkpoint, names, "joint") for checkpoint in joint] if joint and not isinstance(joint, bool) else []
    if joined and (len(set(joined)) < 2 or len(set(joined)) < len(joined)):
        raise BadSetting(f"joint={list(joined)} must name at least two different checkpoints")
    pairs = _pairs(donor or (), names)
    if given and pairs:
        raise BadSetting("donor= starts from circuits that are found here: leave out circuits=, or donor=")
    if joint or pairs or donor == "all":
        check_joint(algorithm, dict(settings))
    may_fail = (
        allow_chance
        if isinstance(allow_chance, bool)
        else [_known(checkpoint, names, "allow_chance") for checkpoint in allow_chance]
    )
    return TransferPlan(tuple(joined), joint is True, () if donor == "all" else tuple(pairs), donor == "all", may_fail)


def _known(name: str, names: Sequence[str], where: str) -> str:
    if name not in names:
        raise UnknownName(f"checkpoint in {where}", str(name), names)
    return name


def _pairs(donor: str | Sequence[str | tuple[str, str]], names: Sequence[str]) -> list[tuple[str, str]]:
    if donor == "all":
        return list(permutations(names, 2))
    given = [donor] if isinstance(donor, str) else donor
    pairs = [_pair(entry, names) if isinstance(entry, str) else (entry[0], entry[1]) for entry in given]
    for a, b in pairs:
        _known(a, names, "donor")
        _known(b, names, "donor")
        if a == b:
            raise BadSetting(f"donor={a}:{b} names one checkpoint twice: give two, A:B")
    if len(set(pairs)) < len(pairs):
        raise BadSetting("donor= names a pair twice: name each once")
    return pairs


def _pair(text: str, names: Sequence[str]) -> tuple[str, str]:
    """`A:B`; a name may hold a colon itself."""
    places = [at for at, character in enumerate(text) if character == ":"]
    for at in places:
        if text[:at] in names and text[at + 1 :] in names:
            return text[:at], text[at + 1 :]
    if not places:
        raise BadSetting(f"donor={text!r} is no pair: write A:B for the circuit of A, completed for B, or donor=all")
    return text[: places[0]], text[places[0] + 1 :]


def read_given(circuits: Sequence[str | Path | Circuit] | Mapping[str, Circuit] | None) -> dict[str, Circuit]:
    """Given circuits by label, in order.

    Args:
        circuits: folders of runs, circuit.json files or circuits; or circuits by label.

    Raises:
        BadFile: a file is missing or is no circuit.
        GraphMismatch: two belong to different architectures.
    """
    if isinstance(circuits, Mapping):
        by_label = {str(label): entry for label, entry in circuits.items()}
    else:
        by_label = {}
        for entry in circuits or ():
            label, circuit = (entry.provenance.model or "given", entry) if isinstance(entry, Circuit) else _read(Path(entry))
            by_label[_free(label, by_label)] = circuit
    every = list(by_label.items())
    for label, circuit in every[1:]:
        if circuit.graph != every[0][1].graph:
            raise GraphMismatch(
                f"the circuits {every[0][0]} and {label} belong to different architectures: "
                f"{every[0][1].graph.describe()} and {circuit.graph.describe()}"
            )
    return by_label


def _read(path: Path) -> tuple[str, Circuit]:
    file = path / "circuit.json" if path.is_dir() else path
    if not file.is_file():
        hint = "it holds no circuit.json" if path.is_dir() else "there is no such file"
        raise BadFile(f"no circuit at {path}: {hint}. Give the folder of a finished run, or a circuit.json file")
    parent = file.resolve().parent.name
    return (parent if file.name == "circuit.json" else file.stem), Circuit.load(file)


def _free(label: str, taken: Mapping[str, Any]) -> str:
    number = 2
    free = label
    while free in taken:
        free, number = f"{label} ({number})", number + 1
    return free


# --- config.json ----------------------------------------------------------------------------------------------------------

CONFIG, LAYOUT = "config.json", 2
"""The file, and the version of what lies beside it: since 2, finished parts are registered in journal.jsonl."""


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Say in a transfer's folder what it was asked for, unless it is said there already."""
    plain = json.loads(json.dumps(settings))  # as it will be read again
    if not (folder / CONFIG).is_file() or read_settings(folder) != plain:
        data = {"format": TRANSFER, "version": LAYOUT, "settings": plain, "folder": os.getcwd(), "versions": versions()}
        write_json(folder / CONFIG, data)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a transfer's folder.

    Raises:
        BadRun: it is not the folder of a transfer, or of one that another version began.
    """
    try:
        data = read_json(folder / CONFIG)
    except BadFile as error:
        raise BadRun(f"{folder} is not the folder of a transfer: {error}") from error
    if not isinstance(data, dict) or data.get("format") != TRANSFER or not isinstance(data.get("settings"), dict):
        raise BadRun(f"{folder} is the folder of something else than a transfer: choose another with out=")
    if data.get("version") != LAYOUT:
        known = data.get("versions")
        version = str(known.get("circuitdisc", "unknown") if isinstance(known, Mapping) else "unknown")[:40]
        raise BadRun(
            f"{folder} was begun by circuitdisc {version}, which keeps finished parts in another layout than this one, "
            f"{package_version()} ({str(data.get('version'))[:40]}, here {LAYOUT}): go on with circuitdisc {version}, or begin "
            "again with another out="
        )
    return data["settings"]


def begun_in(folder: Path) -> Path:
    """The folder in which a transfer was begun, which the relative names in its settings start from."""
    data = read_json(folder / CONFIG)
    begun = data.get("folder") if isinstance(data, dict) else None
    return Path(begun) if isinstance(begun, str) and Path(begun).is_dir() else Path.cwd()
