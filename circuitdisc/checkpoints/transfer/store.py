"""Where a transfer keeps what it has finished: a folder, or memory.

config.json              what was asked for
checkpoints/<name>.json  a checkpoint's name, the identity of its weights and examples, and what must be known of it
circuits/<name>.json     a circuit, with the journal of its search beside it
cells/<row>.<column>.json  one cell's scores

Every file is written beside and renamed, so that a call that is killed leaves whole files alone, and the next one with the same
settings goes on from them.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadRun, BadSetting
from circuitdisc.files import make_folder, make_inner_folder, read_json, write_json
from circuitdisc.identity import package_version
from circuitdisc.runs import Journal, check_free, versions

CONFIG, FORMAT = "config.json", "circuitdisc.transfer.settings"


class Store:
    """Finished parts by name.

    Args:
        folder: None keeps them in memory.
        settings: of the call; those in the folder, if it has any, must be the same.

    Raises:
        BadRun: the folder holds something else, or cannot be written.
        BadSetting: it holds a transfer with other settings; the message names one.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder, self._memory = folder, dict[str, Any]()
        if folder is None:
            return
        plain = json.loads(json.dumps(settings))  # as it will be read again
        if not (folder / CONFIG).is_file():
            check_free(folder)
            make_folder(folder)
            data = {"format": FORMAT, "version": 1, "settings": plain, "folder": os.getcwd(), "versions": versions()}
            write_json(folder / CONFIG, data)
        else:
            _check_equal(folder, read_settings(folder), plain)
            _check_version(folder)

    def has(self, name: str) -> bool:
        """Whether this part is finished."""
        return name in self._memory if self.folder is None else (self.folder / name).is_file()

    def read(self, name: str) -> Any:
        """One finished part.

        Raises:
            BadFile: it is not there, or is not JSON.
        """
        return self._memory[name] if self.folder is None else read_json(self.folder / name)

    def write(self, name: str, data: Any) -> None:
        """Keep one part, whole or not at all."""
        if self.folder is None:
            self._memory[name] = data
            return
        make_inner_folder((self.folder / name).parent)
        write_json(self.folder / name, data)

    def journal(self, name: str) -> Journal:
        """The journal of a search, cut back to its last mark."""
        if self.folder is None:
            return Journal()
        make_inner_folder((self.folder / name).parent)
        return Journal(self.folder / name)


def has_found(folder: Path) -> bool:
    """Whether a transfer's folder holds anything that took time: a circuit, decisions of a search, a cell."""
    found = (path for part in ("circuits", "cells") for path in folder.glob(f"{part}/*"))
    return any(bool(Journal.read(path).decisions) if path.suffix == ".jsonl" else True for path in found)


def is_transfer(folder: Path) -> bool:
    """Whether a folder is that of a transfer, so that `circuitdisc resume` knows what to go on with."""
    try:
        data = read_json(folder / CONFIG)
    except BadFile:
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a transfer's folder.

    Raises:
        BadRun: it is not the folder of a transfer.
    """
    try:
        data = read_json(folder / CONFIG)
    except BadFile as error:
        raise BadRun(f"{folder} is not the folder of a transfer: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("settings"), dict):
        raise BadRun(f"{folder} is the folder of something else than a transfer: choose another with out=")
    return data["settings"]


def begun_in(folder: Path) -> Path:
    """The folder in which a transfer was begun, which the relative names in its settings start from."""
    data = read_json(folder / CONFIG)
    begun = data.get("folder") if isinstance(data, dict) else None
    return Path(begun) if isinstance(begun, str) and Path(begun).is_dir() else Path.cwd()


def _check_version(folder: Path) -> None:
    """Cells of two versions do not go together."""
    known = read_json(folder / CONFIG).get("versions")
    version = known.get("circuitdisc", "unknown") if isinstance(known, dict) else "unknown"
    if version != package_version():
        raise BadRun(
            f"{folder} was begun by circuitdisc {str(version)[:40]}, and this is {package_version()}: cells of two versions "
            "are not mixed; begin again with another out="
        )


def _check_equal(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            raise BadSetting(
                f"{folder} holds a transfer with {name}={json.dumps(old.get(name))}, and {json.dumps(new.get(name))} is asked "
                "for: give the same settings to go on with it, or another folder with out="
            )


def slug(index: int, name: str) -> str:
    """A file's name for the index-th circuit or checkpoint."""
    return f"{index:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[-60:]}"
