"""Which command began a piece of work: journals that are begun inside `recorded` say it in their first line."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_current: ContextVar[dict[str, Any] | None] = ContextVar("call", default=None)


@contextmanager
def recorded(job: str, words: Sequence[str]) -> Iterator[None]:
    """Journals that are begun inside say that this command began them, and in which folder it was typed.

    Args:
        job: its name, for example `dcm`.
        words: the command as it was typed, for example `["circuitdisc", "dcm", "model=gpt2"]`.
    """
    token = _current.set({"job": job, "words": list(words), "begun_in": os.getcwd()})
    try:
        yield
    finally:
        _current.reset(token)


def current_call(folder: Path | None) -> dict[str, Any] | None:
    """The command that runs, as a journal in this folder records it; None where there is none (a call from Python)."""
    call = _current.get()
    return None if call is None or folder is None else {**call, "folder": str(folder.resolve())}
