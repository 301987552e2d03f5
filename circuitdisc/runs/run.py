"""A run's folder: configuration, journal, circuit, scores, report. Killed at any moment, nothing is lost.

config.json     what was asked for: every setting, the command, versions, seed
journal.jsonl   the search as it went: a decision a line, flushed; `mark` lines are the points to resume from
circuit.json, scores.json, report.html   written beside and renamed
edge_scores.npz  scores of all edges [receivers, senders] or of all nodes, for algorithms that have them
"""

import os
import platform
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadRun, CircuitdiscWarning
from circuitdisc.files import read_json, write_json
from circuitdisc.identity import package_version
from circuitdisc.runs.folders import check_free
from circuitdisc.runs.journal import Journal

PACKAGES = ("torch", "transformer-lens", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version(), "circuitdisc": package_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


class Run:
    """A run's folder.

    Args:
        folder: made by `create`, or an existing run for `open`.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def create(cls, folder: str | os.PathLike[str], config: Mapping[str, Any]) -> "Run":
        """Make a new run folder and write its configuration.

        Raises:
            BadRun: the folder exists and holds something, or cannot be written.
        """
        path = Path(folder)
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadRun(f"cannot make the run folder {path}: {error.strerror}") from error
        run = cls(path, {**config, "versions": versions()})
        try:
            write_json(path / "config.json", run.config)
        except BadRun:
            with suppress(OSError):  # unless something else lies in it
                path.rmdir()
            raise
        return run

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Run":
        """An existing run.

        Raises:
            BadRun: the folder is not a run.
        """
        path = Path(folder)
        if not path.is_dir():
            raise BadRun(f"there is no run folder {path}")
        try:
            config = read_json(path / "config.json")
        except BadFile as error:
            raise BadRun(f"{path} is not a run: {error}") from error
        if not isinstance(config, dict):
            raise BadRun(f"{path} is not a run: {path / 'config.json'} holds no settings")
        recorded = config.get("versions")
        made_by = str(recorded.get("circuitdisc", "unknown") if isinstance(recorded, Mapping) else "unknown")
        if made_by != package_version():
            warnings.warn(
                f"{path} is a run of circuitdisc {made_by[:40]}, and this is {package_version()}: what it says may differ from "
                "what this version would find",
                CircuitdiscWarning,
                stacklevel=2,
            )
        return cls(path, config)

    def journal(self) -> Journal:
        """The run's journal, cut back to its last mark."""
        return Journal(self.folder / "journal.jsonl")

    def path(self, name: str) -> Path:
        """Path of one of the run's files."""
        return self.folder / name

    def write(self, name: str, data: Any) -> None:
        """Write one of the run's JSON files, whole or not at all."""
        write_json(self.folder / name, data)
