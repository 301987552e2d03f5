"""A search's journal: a decision a line, flushed, bound to the identity of the search."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadRun
from circuitdisc.files import begin_file, read_bytes
from circuitdisc.identity import Identity, in_words

MARK, IDENTITY = "mark", "identity"
JOURNAL_BYTES = 2**30


class Journal:
    """The decisions of a search, one JSON object a line, flushed as they are made.

    A `mark` says that everything before it can be taken over as it is: a search that resumes replays the lines up to the last
    mark and does the rest again. The first line says which weights, examples and settings they belong to (`bind`).

    Args:
        path: the file; None keeps the journal in memory. A file that exists is replaced by its lines up to the last mark.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.identity: dict[str, Any] | None = None
        self._file = None
        if path is not None:
            found = Journal.read(path)
            last = max((index for index, line in enumerate(found.lines) if MARK in line), default=-1)
            self.lines, self.identity = found.lines[: last + 1], found.identity
            first = [] if self.identity is None else [_first_line(self.identity)]
            text = "".join(json.dumps(line) + "\n" for line in (*first, *self.lines))
            self._file = begin_file(path, text)

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """All whole lines of a journal's file, which is left as it is; without a file, or in a file of another kind, none.

        Raises:
            BadRun: it is a link, or cannot be read.
        """
        journal = cls()
        if path.is_symlink():
            raise BadRun(f"{path} is a link to another place, and a run's journal is a file of its own: remove it")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BadRun(f"cannot write {path}: it is no ordinary file, as a run's journal is: remove it")
        try:
            text = read_bytes(path, JOURNAL_BYTES).decode("utf-8", errors="replace") if path.exists() else ""
        except BadFile as error:  # no file, or one of more than any search writes
            raise BadRun(str(error)) from error
        except OSError as error:
            raise BadRun(f"cannot write {path}: {error.strerror}") from error
        for row in text.splitlines():
            try:
                line = json.loads(row)
            except (ValueError, RecursionError):
                break  # the line that was being written when the run was killed
            if not isinstance(line, dict) or not isinstance(line.get(MARK, ""), str):
                break
            journal.lines.append(line)
        if journal.lines and isinstance(journal.lines[0].get(IDENTITY), dict) and MARK in journal.lines[0]:
            journal.identity = journal.lines.pop(0)[IDENTITY]
        return journal

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """All decisions so far, without the marks."""
        return [line for line in self.lines if MARK not in line]

    @property
    def marks(self) -> list[str]:
        return [line[MARK] for line in self.lines if MARK in line]

    def bind(self, identity: Identity) -> None:
        """Say what the decisions belong to; those of an earlier start must belong to the same.

        Raises:
            BadRun: they belong to something else, or do not say to what; the message names the difference.
        """
        where = f"the journal {self.path}" if self.path is not None else "the journal"
        again = "give back what it was begun with, or begin again with another folder or file"
        if self.lines:
            mine = Identity.from_dict(self.identity)
            if mine is None:
                raise BadRun(
                    f"{where} does not say which weights, examples and settings its decisions belong to (another version of "
                    "circuitdisc wrote it?), so that it cannot be gone on with: begin again with another folder or file"
                )
            if different := mine.differences(identity):
                raise BadRun(f"{where} was begun with {in_words(different)}: {again}")
            return
        self.identity = identity.to_dict()
        if self._file is not None:
            assert self.path is not None, "a file has a path"
            self._file.close()
            self._file = begin_file(self.path, json.dumps(_first_line(self.identity)) + "\n")

    def write(self, **decision: Any) -> None:
        """Add a decision.

        Raises:
            BadRun: the disk is full or the folder has become unwritable; what was written before is kept.
        """
        self.lines.append(decision)
        if self._file is not None:
            try:
                self._file.write((json.dumps(decision) + "\n").encode())
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


def _first_line(identity: dict[str, Any]) -> dict[str, Any]:
    return {IDENTITY: identity, MARK: IDENTITY}
