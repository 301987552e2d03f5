"""Long work, unit by unit: each unit is written down when it is done, so that a call that was killed goes on where it was.

    {"unit": NAME, "value": ...}   {"mark": NAME}      a value, in the journal itself
    {"mark": NAME, "files": {".": HASH}}               a file beside the journal, under its name
    {"mark": NAME, "files": {"a.json": HASH, ...}}     a folder beside it

Numbers are written with all their digits, so that what went on is what was never stopped, bit for bit. What lies beside the
journal counts once its mark is on the disk; what has other bytes by then is damaged, and never taken over.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from circuitdisc.errors import BadFile, BadRun
from circuitdisc.files import make_inner_folder, read_json, sync, write_json
from circuitdisc.identity import Identity, hash_file
from circuitdisc.runs.calls import current_call
from circuitdisc.runs.cells import Cells
from circuitdisc.runs.journal import IDENTITY, MARK, Journal
from circuitdisc.runs.shares import ShareComputed, UnitsToCompute, current_hand_out, current_share, is_journal_of_a_share

UNIT, VALUE, FILES = "unit", "value", "files"
Keep = Callable[[str, Callable[[], Any]], Any]
"""Keeps a unit under its name: `get` or `get_file`."""


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
        self._journal = journal if isinstance(journal, Journal) else _open(None if journal is None else Path(journal))
        self._n_known = len(self._journal.lines)
        try:
            if identity is not None:
                self._journal.bind(identity)
        except BaseException:
            self.close()
            raise
        self._done: dict[str, Any] = {}
        self._files: dict[str, Mapping[str, str]] = {}
        for line in self._journal.lines:
            self._know(line)

    def _know(self, line: Mapping[str, Any]) -> None:
        """Take a line of a journal for what it says is finished."""
        if isinstance(line.get(UNIT), str) and VALUE in line:
            self._done[line[UNIT]] = line[VALUE]
        elif MARK in line and isinstance(line.get(FILES), dict):
            self._files[line[MARK]] = line[FILES]

    def bind(self, part: str, identity: Identity) -> None:
        """Say what a part of the work belongs to, where parts have identities of their own.

        Raises:
            BadRun: an earlier start was begun with something else; the message names the difference.
        """
        self._journal.bind(identity, part)

    def close(self) -> None:
        """Close the journal, unless it was given open.

        Raises:
            ShareComputed: this process has a share of the work, and what comes now is the business of the call that waits.
        """
        if self._own:
            self._journal.close()
            place = self._journal.path
            if place is not None and is_journal_of_a_share(place) and sys.exception() is None:
                raise ShareComputed

    # --- values -----------------------------------------------------------------------------------------------------------

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """A unit's value, plain JSON: that of an earlier start, or computed and written down."""
        if name not in self._done:
            value = compute()
            self._journal.write(**{UNIT: name, VALUE: value})
            self._journal.mark(name)
            self._done[name] = value
        return self._done[name]

    # --- units that other processes compute -------------------------------------------------------------------------------

    def spread(self, units: Mapping[str, Callable[[], Any]], keep: Keep | None = None, may_fail: bool = False) -> None:
        """Have those of some units that are missing computed by the processes of a launcher, if one was asked for.

        In one of these processes: compute what is its share of them, and end the call.

        Args:
            units: by name; none needs another.
            keep: `get` (None) or `get_file`.
            may_fail: whether the call goes on without units that ended in a sentence.

        Raises:
            BadRun: some of them were not finished.
        """
        path, keep = self._journal.path, keep or self.get
        share, hand_out = current_share(), current_hand_out()
        if path is not None and share is not None and is_journal_of_a_share(path) and not units.keys().isdisjoint(share.names):
            self._compute(units, keep, share, Cells(path.parent))
        missing = [name for name in units if not self.has(name)]
        if path is None or share is not None or hand_out is None or not missing:
            return
        cells = Cells(path.parent)
        with cells.listing():
            call = current_call(path.parent)
            cells.enter("" if call is None else shlex.join(call["words"]), dict.fromkeys(units, ()))
        hand_out(path, missing)
        for name in missing:
            self._take_over(name, self._aside(cells, name))
        left = [cells.state(name) for name in missing if not self.has(name)]
        failed = [state for state in left if state.error]
        if left and not (may_fail and len(failed) == len(left)):
            why = f" ({failed[0].name}: {failed[0].error})" if failed else ""
            raise BadRun(
                f"{len(left)} of {len(units)} cells are not finished{why}: `circuitdisc status {path.parent}` lists them, and "
                "the same command goes on"
            )

    def _compute(self, units: Mapping[str, Callable[[], Any]], keep: Keep, share: UnitsToCompute, cells: Cells) -> NoReturn:
        for name in share.names:
            with cells.claim(name) as state:
                aside = self._aside(cells, name)
                if name not in units or state is None or self.has(name) or self._is_whole(name, aside):
                    continue
                cells.begin(name)
                clock = time.perf_counter()
                try:
                    keep(name, units[name])
                except Exception as error:  # whatever it is, it ends this unit alone
                    cells.fail(name, error)
                    continue
                self._put_aside(aside)
                cells.finish(name, time.perf_counter() - clock)
        raise ShareComputed

    def _aside(self, cells: Cells, name: str) -> Path:
        """Where another process keeps a unit until it is taken over."""
        identity = Identity.from_dict(self._journal.identity)
        return cells.place(name) / f"unit.{'' if identity is None else identity.digest[:8]}.jsonl"

    def _is_whole(self, name: str, aside: Path) -> bool:
        journal = Journal.read(aside)
        return journal.identity == self._journal.identity and any(line.get(MARK) == name for line in journal.lines)

    def _put_aside(self, aside: Path) -> None:
        identity = Identity.from_dict(self._journal.identity)
        assert identity is not None, "what is spread belongs to something"
        aside.unlink(missing_ok=True)
        with closing(Journal(aside)) as journal:
            journal.bind(identity)
            journal.extend(self._journal.lines[self._n_known :])

    def _take_over(self, name: str, aside: Path) -> None:
        """Write a unit of another process down as one of this call's.

        Raises:
            BadRun: a part of the work belongs to something else there.
        """
        if not self._is_whole(name, aside):
            return
        lines = Journal.read(aside).lines
        for line in lines:
            if (part := Identity.from_dict(line.get(IDENTITY))) is not None:
                self.bind(line[MARK], part)
        new = [line for line in lines if IDENTITY not in line and not self.knows(line.get(UNIT, line.get(MARK, "")))]
        self._journal.extend(new)
        for line in new:
            self._know(line)
        aside.unlink()

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


def _open(path: Path | None) -> Journal:
    """A journal's file, to be gone on with; that of another process which has handed out its units is read alone."""
    if path is None or not is_journal_of_a_share(path):
        return Journal(path)
    if not path.is_file():  # the call is over
        raise ShareComputed
    journal = Journal.read(path)
    journal.path = path
    return journal
