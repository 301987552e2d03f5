"""A run's folder: configuration, journal, circuit, scores, report. Killed at any moment, nothing is lost.

config.json     what was asked for: every setting, the command, versions, seed
journal.jsonl   the search as it went: a decision a line, flushed; `mark` lines are the points to resume from
circuit.json, scores.json, report.html   written beside and renamed
edge_scores.npz  scores of all edges [receivers, senders] (`ranking` if they only ordered a search) or of all nodes
"""

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadRun
from circuitdisc.files import read_bytes, read_json, write_json

PACKAGES = ("circuitdisc", "torch", "transformer-lens", "transformers", "numpy")
MARK = "mark"
JOURNAL_BYTES = 2**30


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Journal:
    """The decisions of a search, one JSON object a line, flushed as they are made.

    A `mark` says that everything before it can be taken over as it is: a search that resumes replays the lines up to the last
    mark and does the rest again.

    Args:
        path: the file; None keeps the journal in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._file = None
        if path is not None:
            try:
                self.lines = _read_up_to_last_mark(path)
                _truncate(path, self.lines)
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise BadRun(f"cannot write {path}: {error.strerror}") from error
            except BadFile as error:  # no file, or one of more than any search writes
                raise BadRun(str(error)) from error

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """All decisions so far, without the marks."""
        return [line for line in self.lines if MARK not in line]

    @property
    def marks(self) -> list[str]:
        return [line[MARK] for line in self.lines if MARK in line]

    def write(self, **decision: Any) -> None:
        """Add a decision.

        Raises:
            BadRun: the disk is full or the folder has become unwritable; what was written before is kept.
        """
        self.lines.append(decision)
        if self._file is not None:
            try:
                self._file.write(json.dumps(decision) + "\n")
                self._file.flush()
            except OSError as error:
                raise BadRun(
                    f"cannot write {self.path}: {error.strerror}. Free some space, then `circuitdisc resume` the run"
                ) from error

    def mark(self, name: str) -> None:
        """Everything so far is final; make sure that it is on the disk."""
        self.write(**{MARK: name})
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses the rest of a line that `write` has already reported
                self._file.close()
            self._file = None


def _read_up_to_last_mark(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in read_bytes(path, JOURNAL_BYTES).decode("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break  # the line that was being written when the run was killed
        if not isinstance(line, dict) or not isinstance(line.get(MARK, ""), str):
            break
        lines.append(line)
    last = max((index for index, line in enumerate(lines) if MARK in line), default=-1)
    return lines[: last + 1]


def _truncate(path: Path, lines: list[dict[str, Any]]) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    beside.replace(path)


def check_free(folder: Path) -> None:
    """A new run may go into this folder: it does not exist, or is empty.

    Raises:
        BadRun: it is taken, or cannot be looked at.
    """
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise BadRun(f"cannot make the run folder {folder}: {error.strerror}") from error
    if taken:
        what = "`circuitdisc resume` continues it" if (folder / "config.json").exists() else "it is not empty"
        raise BadRun(f"the run folder {folder} already exists ({what}): choose another with out=, or remove it")


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
        write_json(path / "config.json", run.config)
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
