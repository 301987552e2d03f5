"""Units of one call that several processes compute: the call that hands them out, and a process that has a share of them.

A command whose units do not depend on each other says which they are (`Memo.spread`). Where a launcher was asked for, other
processes run the same command up to that line, compute their share beside the journal, and end there; the command that
waits takes their units over and goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

HandOut = Callable[[Path, Sequence[str]], None]
"""Has units of a journal computed by other processes, and waits for these."""


@dataclass(frozen=True)
class Share:
    """What a process computes of another call's work.

    Args:
        journal: of the other call, which writes it, and has locked its folder.
        names: the units.
    """

    journal: Path
    names: tuple[str, ...]


class ShareComputed(BaseException):
    """Ends a call whose share is computed; no error, so that nothing takes it for one."""


_share: ContextVar[Share | None] = ContextVar("share", default=None)
_hand_out: ContextVar[HandOut | None] = ContextVar("hand_out", default=None)


def current_share() -> Share | None:
    return _share.get()


def is_of_a_share(folder: Path) -> bool:
    """Whether this process has a share of the work in a folder, which is given resolved."""
    share = _share.get()
    return share is not None and share.journal.parent == folder


def is_journal_of_a_share(path: Path) -> bool:
    """Whether a journal is that of the call of whose work this process has a share."""
    share = _share.get()
    return share is not None and share.journal == path.resolve()


@contextmanager
def computing(journal: Path, names: Sequence[str]) -> Iterator[None]:
    """Commands inside compute these units of a journal alone."""
    token = _share.set(Share(journal.resolve(), tuple(names)))
    try:
        yield
    except ShareComputed:
        pass
    finally:
        _share.reset(token)


def current_hand_out() -> HandOut | None:
    return _hand_out.get()


@contextmanager
def handing_out(hand_out: HandOut | None) -> Iterator[None]:
    """Commands inside hand out their units; None: they compute them."""
    token = _hand_out.set(hand_out)
    try:
        yield
    finally:
        _hand_out.reset(token)
