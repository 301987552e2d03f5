"""One progress bar for everything that can take over two seconds: on stderr, with the time left.

A terminal (or a notebook) gets a bar. Anything else, such as a log, gets a line every ten seconds: no carriage returns, and
nothing of work that is over by then.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any

from tqdm import tqdm

SECONDS = 10.0
"""Between two lines of a bar where stderr is no terminal."""

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


class Lines(tqdm):
    """A bar as lines of text."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._last = monotonic()
        super().__init__(*args, **{**settings, "miniters": 0, "mininterval": SECONDS, "delay": 0, "ncols": 80, "ascii": True})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = monotonic()
        if self.disable or now < self._last + SECONDS:
            return False
        self._last = now
        self.fp.write(f"{str(self).strip()}\n")
        self.fp.flush()
        return True

    def close(self) -> None:
        self.sp = None  # nothing stands on the screen that had to be wiped
        super().close()


@contextmanager
def hidden(wanted: bool = True) -> Iterator[None]:
    """No bars within."""
    token = _hidden.set(wanted or _hidden.get())
    try:
        yield
    finally:
        _hidden.reset(token)


def progress_bar(total: int, description: str, unit: str, enabled: bool = True, initial: int = 0) -> "tqdm[Any]":
    """A bar that appears after a second, so that quick work stays silent."""
    return _bar(total, description, enabled, unit=unit, initial=initial)


def work_bar(total: float, description: str, enabled: bool = True) -> "tqdm[Any]":
    """A bar over work that is counted in any unit, and may change on the way (`bar.total`): a share, and the time left."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    total *= 1 + 1e-9  # sums of parts end above it by rounding, of which tqdm warns
    return _bar(total, description, enabled, smoothing=0, bar_format=form)


def _bar(total: float, description: str, enabled: bool, **settings: Any) -> "tqdm[Any]":
    kind = tqdm if _is_screen() else Lines
    is_off = not enabled or _hidden.get()
    return kind(total=total, desc=description, disable=is_off, delay=1.0, leave=False, dynamic_ncols=True, **settings)


def _is_screen() -> bool:
    """Whether what is written to stderr can be written over."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def time_bar(description: str, enabled: bool = True) -> "tqdm[Any]":
    """A bar over seconds, whose sum is an estimate that changes on the way (`bar.total`)."""
    return work_bar(1.0, description, enabled)


def finish(bar: "tqdm[Any]") -> None:
    """The work is done, whatever the last estimate of it was."""
    bar.total = bar.n or bar.total
    bar.refresh()
