"""Long work, unit by unit: each unit is written down when it is done, so that a call that was killed goes on where it was.

    {"unit": NAME, "value": ...}   {"mark": NAME}      a value, in the journal itself
    {"mark": NAME, "files": {".": HASH}}               a file beside the journal, under its name
    {"mark": NAME, "files": {"a.json": HASH, ...}}     a folder beside it

Numbers are written with all their digits, so that what went on is what was never stopped, bit for bit. What lies beside the
journal counts once its mark is on the disk; what has other bytes by then is damaged, and never taken over.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile
from circuitdisc.files import make_inner_folder, read_json, sync, write_json
from circuitdisc.identity import Identity, hash_file
from circuitdisc.runs.journal import MARK, Journal

UNIT, VALUE, FILES = "unit", "value", "files"


class Memo:
    """Finished units of one computation, by name.

    Args:
        journal: where they are kept: a file, or a journal that is open; None keeps them in memory.
        identity: what the units belong to; None: what the journal is bound to already.

    Raises:
        BadRun: the journal belongs to another computation, or cannot be written.
    """

    def __init__(self, journal: "Journal | str | Path | None", identity: Identity | None = None) -> None:
        self._own = not isinstance(journal, Journal)
        self._journal = journal if isinstance(journal, Journal) else Journal(None if journal is None else Path(journal))
        try:
            if identity is not None:
                self._journal.bind(identity)
        except BaseException:
            self.close()
            raise
        lines = self._journal.lines
        self._done: dict[str, Any] = {
            line[UNIT]: line[VALUE] for line in lines if isinstance(line.get(UNIT), str) and VALUE in line
        }
        self._files: dict[str, Mapping[str, str]] = {
            line[MARK]: line[FILES] for line in lines if MARK in line and isinstance(line.get(FILES), dict)
        }

    def bind(self, part: str, identity: Identity) -> None:
        """Say what a part of the work belongs to, where parts have identities of their own.

        Raises:
            BadRun: an earlier start was begun with something else; the message names the difference.
        """
        self._journal.bind(identity, part)

    def close(self) -> None:
        """Close the journal, unless it was given open."""
        if self._own:
            self._journal.close()

    # --- values -----------------------------------------------------------------------------------------------------------

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """A unit's value, plain JSON: that of an earlier start, or computed and written down."""
        if name not in self._done:
            value = compute()
            self._journal.write(**{UNIT: name, VALUE: value})
            self._journal.mark(name)
            self._done[name] = value
        return self._done[name]

    # --- files and folders beside the journal -----------------------------------------------------------------------------

    def get_file(self, name: str, compute: Callable[[], Any]) -> Any:
        """As `get`, for a value that has a JSON file of its own; one that was removed is computed again.

        Raises:
            BadFile: the file is not as it was written.
        """
        path = self.path(name)
        if path is None:
            return self.get(name, compute)
        if not self.has(name):
            write_json(path, compute())
            self.register(name)
        elif why := self.damage(name):
            raise BadFile(f"{path} is damaged ({why}): remove it, and the same call makes it again")
        return read_json(path)

    def path(self, name: str) -> Path | None:
        """Where a file beside the journal lies, in a folder that is made; None in memory.

        Raises:
            BadRun: its folder is a link, or cannot be made.
        """
        if self._journal.path is None:
            return None
        path = self._journal.path.parent / name
        make_inner_folder(path.parent)
        return path

    def journal(self, name: str) -> Journal:
        """The journal of a search that is a unit, cut back to its last mark."""
        return Journal(self.path(name))

    def knows(self, name: str) -> bool:
        """Whether a unit was finished, wherever its file or folder is."""
        return name in self._done or name in self._files

    def has(self, name: str) -> bool:
        """Whether a unit is finished, and, if it is a file or folder, there."""
        return name in self._done or (name in self._files and (path := self.path(name)) is not None and path.exists())

    def register(self, name: str, at: Path | None = None) -> None:
        """Mark a file or folder as finished, once all its bytes are on the disk.

        Args:
            at: where it lies until it is put in its place; None: there.
        """
        at = at or self.path(name)
        assert at is not None, "files lie beside a journal that is a file"
        files = sorted(path for path in at.rglob("*") if path.is_file()) if at.is_dir() else [at]
        for path in (*files, at, at.parent):
            sync(path)
        self._files[name] = {str(path.relative_to(at)): hash_file(path) for path in files}
        self._journal.mark(name, files=self._files[name])

    def damage(self, name: str, at: Path | None = None) -> str | None:
        """How a finished file or folder differs from what it was; None if it does not.

        Args:
            at: where it lies; None: in its place.
        """
        at = at or self.path(name)
        assert at is not None, "files lie beside a journal that is a file"
        for inner, known in self._files[name].items():
            path = at / inner
            if not path.is_file():
                return f"{path.name} is missing"
            if hash_file(path) != known:
                return f"{path.name} has other bytes than were written"
        return None
