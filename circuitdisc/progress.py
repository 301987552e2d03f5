"""One progress bar for everything that can take over two seconds: on stderr, with the time left."""

from typing import Any

from tqdm import tqdm


def progress_bar(total: int, description: str, unit: str, enabled: bool = True, initial: int = 0) -> "tqdm[Any]":
    """A bar that appears after a second, so that quick work stays silent."""
    return tqdm(total=total, desc=description, unit=unit, disable=not enabled, initial=initial, delay=1.0, leave=False)


def work_bar(total: float, description: str, enabled: bool = True) -> "tqdm[Any]":
    """A bar over work that is counted in any unit, and may change on the way (`bar.total`): a share, and the time left."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    total *= 1 + 1e-9  # sums of parts end above it by rounding, of which tqdm warns
    return tqdm(total=total, desc=description, disable=not enabled, delay=1.0, leave=False, smoothing=0, bar_format=form)


def time_bar(description: str, enabled: bool = True) -> "tqdm[Any]":
    """A bar over seconds, whose sum is an estimate that changes on the way (`bar.total`)."""
    return work_bar(1.0, description, enabled)


def finish(bar: "tqdm[Any]") -> None:
    """The work is done, whatever the last estimate of it was."""
    bar.total = bar.n or bar.total
    bar.refresh()
