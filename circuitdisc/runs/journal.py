"""A search's journal: a decision a line, flushed, bound to the identity of the search."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadRun, shorten
from circuitdisc.files import begin_file, read_bytes
from circuitdisc.identity import Identity, in_words
from circuitdisc.runs.calls import current_call

MARK, IDENTITY, CALL = "mark", "identity", "command"
JOURNAL_BYTES = 2**30


class Journal:
    """The decisions of a search, one JSON object a line, flushed as they are made.

    A `mark` says that everything before it can be taken over as it is: a search that resumes replays the lines up to the last
    mark and does the rest again. The first line says which weights, examples and settings they belong to (`bind`), and, where a
    command began it, which (`calls.py`).

    Args:
        path: the file; None keeps the journal in memory. A file that exists is replaced by its lines up to the last mark.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.identity: dict[str, Any] | None = None
        self.call: dict[str, Any] | None = None
        self._file = None
        if path is not None:
            earlier = Journal.read(path)
            last = max((index for index, line in enumerate(earlier.lines) if MARK in line), default=-1)
            self.lines, self.identity, self.call = earlier.lines[: last + 1], earlier.identity, earlier.call
            first = [] if self.identity is None else [self._first_line()]
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
            first = journal.lines.pop(0)
            journal.identity = first[IDENTITY]
            journal.call = first.get(CALL)
        return journal

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """All decisions so far, without the marks."""
        return [line for line in self.lines if MARK not in line]

    @property
    def marks(self) -> list[str]:
        return [line[MARK] for line in self.lines if MARK in line]

    def bind(self, identity: Identity, part: str = "") -> None:
        """Say what the decisions belong to; those of an earlier start must belong to the same.

        Args:
            part: a part of the work that has an identity of its own (one checkpoint of several); "": the whole.

        Raises:
            BadRun: they belong to something else, or do not say to what; the message names the difference.
        """
        where = f"the journal {self.path}" if self.path is not None else "the journal"
        known = self._parts.get(part) if part else self.identity
        if self.lines if not part else part in self._parts:
            begun = Identity.from_dict(known)
            if begun is None:
                raise BadRun(
                    f"{where} does not say which weights, examples and settings its decisions belong to (another version of "
                    "circuitdisc wrote it?), so that it cannot be gone on with: begin again with another folder or file"
                )
            if different := begun.differences(identity):
                older = begun.version != identity.version
                back = f"go on with circuitdisc {shorten(begun.version, 40)}" if older else "give back what it was begun with"
                again = f"{back}, or begin again with another folder or file"
                raise BadRun(f"{where} was begun with {in_words(different)}{f' ({part})' if part else ''}: {again}")
        elif part:
            self.mark(part, **{IDENTITY: identity.to_dict()})
        else:
            self.identity = identity.to_dict()
            self.call = current_call(None if self.path is None else self.path.parent) or self.call
            if self._file is not None:
                assert self.path is not None, "a file has a path"
                self._file.close()
                self._file = begin_file(self.path, json.dumps(self._first_line()) + "\n")

    @property
    def _parts(self) -> dict[str, Any]:
        return {line[MARK]: line[IDENTITY] for line in self.lines if MARK in line and IDENTITY in line}

    def _first_line(self) -> dict[str, Any]:
        return {IDENTITY: self.identity, MARK: IDENTITY, **({} if self.call is None else {CALL: self.call})}

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

    def mark(self, name: str, **more: Any) -> None:
        """Everything so far is final; make sure that it is on the disk.

        Args:
            more: what the mark says beside its name.
        """
        self.write(**{MARK: name, **more})
        if self._file is not None:
            os.fsync(self._file.fileno())

    def extend(self, lines: Iterable[dict[str, Any]]) -> None:
        """Add lines of another journal, which end with a mark; make sure that they are on the disk."""
        for line in lines:
            self.write(**line)
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses the rest of a line that `write` has already reported
                self._file.close()
            self._file = None
