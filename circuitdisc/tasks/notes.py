"""Notes: what a reader must know of a task's examples, said by whoever sees it and collected by `load_task`."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from circuitdisc.errors import CircuitdiscWarning

_collecting: ContextVar[list[str] | None] = ContextVar("notes that are being collected", default=None)


def note(sentence: str) -> None:
    """Hand a sentence to the task that is being loaded; where none is, it is a warning at once."""
    notes = _collecting.get()
    if notes is None:
        warnings.warn(sentence, CircuitdiscWarning, stacklevel=3)
    else:
        notes.append(sentence)


@contextmanager
def collect_notes() -> Iterator[list[str]]:
    """A list that every `note` of the block is added to."""
    notes: list[str] = []
    token = _collecting.set(notes)
    try:
        yield notes
    finally:
        _collecting.reset(token)
