"""Warnings of ours as lines for people."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from circuitdisc.errors import MOST_IN_A_NOTE, CircuitdiscWarning, tidy


@contextmanager
def as_notes(quiet: bool = False) -> Iterator[None]:
    """Each text once, without the file and line that Python puts before it.

    How a warning is written is exchanged, not how it is shown, so that a caller who records warnings still gets them.

    Args:
        quiet: write none of them.
    """
    python, said = warnings.formatwarning, set[str]()

    def written(message: Any, category: type[Warning], *place: Any, **line: Any) -> str:
        if not issubclass(category, CircuitdiscWarning):
            return python(message, category, *place, **line)
        text = tidy(" ".join(str(message).split()), MOST_IN_A_NOTE)
        if quiet or text in said:
            return ""
        said.add(text)
        return f"circuitdisc: note: {text}\n"

    warnings.formatwarning = written
    try:
        yield
    finally:
        warnings.formatwarning = python
