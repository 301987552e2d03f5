"""One progress bar for everything that can take over two seconds: on stderr, with the time left.

A terminal (or a notebook) gets a bar. Anything else, such as a log, gets a line every ten seconds: no carriage returns, and
nothing of work that is over by then.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic, perf_counter, process_time
from typing import Any

from tqdm import tqdm

from circuitdisc.tracking import log_figures
from circuitdisc.wording import number

SECONDS = 10.0
"""Between two lines of a bar where stderr is no terminal."""

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


class Bar(tqdm):
    """A bar whose figures are also logged, where a command has a logger."""

    title = ""

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **figures: Any) -> None:
        log_figures(figures, f"{self.title}/")
        words = {name: number(value) if isinstance(value, float) else value for name, value in figures.items()}
        super().set_postfix(ordered_dict, bool(refresh), **words)


class Lines(Bar):
    """A bar as lines of text."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._last = monotonic()
        super().__init__(*args, **{**settings, "miniters": 0, "mininterval": SECONDS, "delay": 0, "ncols": 80, "ascii": True})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = monotonic()
        if self.disable or now < self._last + SECONDS:
            return
        self._last = now
        self.fp.write(f"{str(self).strip()}\n")
        self.fp.flush()

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing stands on the screen that a message had to wipe."""

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


class OutOfTime(Exception):
    """Work under `watching` has had its time."""


class Watch:
    """The bars of work that is measured, and stopped after some seconds: a plan reads off them how far the work has come."""

    def __init__(self, seconds: float) -> None:
        self.started, self.cpu = perf_counter(), process_time()
        self.deadline = self.started + seconds
        self.open: list[WatchedBar] = []
        self.bars: list[WatchedBar] = []

    def bar(self, name: str, total: float | None, initial: float = 0) -> "WatchedBar":
        """A bar that is not shown."""
        bar = WatchedBar(total=total, initial=initial, disable=True)
        bar.watch, bar.name, bar.opened = self, name, (perf_counter() - self.started, process_time() - self.cpu)
        self.open.append(bar)
        self.bars.append(bar)
        return bar

    def share(self, place: int = 0) -> float | None:
        """How much of the outermost open bar's work is done, by it and the bars within it; None where it does not say."""
        bar = self.open[place]
        if not bar.total:
            return None
        inner = self.share(place + 1) if place + 1 < len(self.open) else 0.0
        return min(1.0, (bar.n + (inner or 0.0)) / bar.total)


class WatchedBar(tqdm):
    """A bar that counts without being shown, and ends the work when its time is over.

    Args:
        opened: seconds and processor seconds since the watch began.
    """

    watch: Watch | None = None
    opened: tuple[float, float] = (0.0, 0.0)
    name: str = ""

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0
        if self.watch is not None and perf_counter() > self.watch.deadline:
            raise OutOfTime

    def close(self) -> None:
        if self.watch is not None and self.watch.deadline > perf_counter():  # what the end of the time closes stays to be read
            self.watch.open = [bar for bar in self.watch.open if bar is not self]  # tqdm's own == compares places
        super().close()


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching(seconds: float) -> Iterator[Watch]:
    """Watch the bars of the work within, which ends with `OutOfTime` at the first step after so many seconds."""
    watch = Watch(seconds)
    token = _WATCH.set(watch)
    try:
        yield watch
    finally:
        _WATCH.reset(token)


def progress_bar(total: int, description: str, unit: str, enabled: bool = True, initial: int = 0) -> "tqdm[Any]":
    """A bar that appears after a second, so that quick work stays silent."""
    return _bar(total, description, enabled, unit=unit, initial=initial)


def work_bar(total: float, description: str, enabled: bool = True) -> "tqdm[Any]":
    """A bar over work that is counted in any unit, and may change on the way (`bar.total`): a share, and the time left."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    total *= 1 + 1e-9  # sums of parts end above it by rounding, of which tqdm warns
    return _bar(total, description, enabled, smoothing=0, bar_format=form)


def _bar(total: float, description: str, enabled: bool, **settings: Any) -> "tqdm[Any]":
    if (watch := _WATCH.get()) is not None:
        return watch.bar(description, total, settings.get("initial", 0))
    kind = Bar if _is_screen() else Lines
    is_off = not enabled or _hidden.get()
    bar = kind(total=total, desc=description, disable=is_off, delay=1.0, leave=False, dynamic_ncols=True, **settings)
    bar.title = description  # a bar that is off has no other memory of it
    return bar


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
