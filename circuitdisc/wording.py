"""Numbers as people read them: three significant digits, percentages where they are natural, never a bare NaN."""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports NumPy, which the command line's help does without
    from circuitdisc.stats import Partition

ACCURACIES = {
    "accuracy": "the most likely token of the whole vocabulary is right",
    "pair_accuracy": "a right answer's logit lies above that of every wrong one, whatever other tokens have",
}
"""What each kind of accuracy counts."""

SHARES = frozenset({"faithfulness", "ratio", "accuracy_ratio", *ACCURACIES, *(f"full_{name}" for name in ACCURACIES)})
"""Scores that are shares of a whole, shown as percentages."""

SPLIT_WORDS = {"train": "search examples", "heldout": "held-out examples"}


def intervals_over(over: "Partition | None") -> str:
    """`intervals over 300 examples in 16 groups`."""
    return "intervals over examples" if over is None else f"intervals over {over.words}"


def is_number(value: object) -> bool:
    """False for NaN, infinities and what is larger than any float, and for what is no number."""
    return isinstance(value, Real) and value <= sys.float_info.max and not value < -sys.float_info.max


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float | None) -> str:
    """Three significant digits; integers in full; `3.2 × 10⁻⁹` of what is very small or large."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if value is None or not math.isfinite(value):
        return "undefined"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}".replace("-", "−")
    decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share as a percentage: one decimal from 10 % on, two digits below."""
    if value is None or not math.isfinite(value):
        return "undefined"
    hundred = 100 * value
    if abs(hundred) >= 10:
        text = f"{hundred:,.1f}"
    elif abs(hundred) < 0.01:
        text = f"{round(hundred, 4) + 0.0:.4f}"  # no -0, and no power of ten for what rounding leaves
    else:
        text = f"{hundred:.{1 - math.floor(math.log10(abs(hundred)))}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{text} %".replace("-", "−")


def share(part: int, whole: int) -> str:
    """`12.7 %`; `0 %` of nothing."""
    return percent(part / whole if whole else 0.0)


def score_value(name: str, value: float | None) -> str:
    """A score's value: a percentage where the score is a share."""
    return percent(value) if name in SHARES else number(value)


def interval(low: float | None, high: float | None, words: Callable[[float | None], str] = number) -> str:
    """An interval, `[0.13, 0.79]`; nothing if an end is undefined."""
    return f"[{words(low)}, {words(high)}]" if is_number(low) and is_number(high) else ""


def span(name: str, low: float | None, high: float | None) -> str:
    """The interval of a score, `[94 %, 99 %]`; nothing if an end is undefined."""
    return interval(low, high, partial(score_value, name))


def drawn_between(name: str, low: float | None, high: float | None) -> str:
    """From the lowest to the highest of what was drawn, `94 % to 99 %`: no interval."""
    return f"{score_value(name, low)} to {score_value(name, high)}"


def task_words(task: object) -> str:
    """What a task is called, from its name or its settings: of a user's file the file's name, never `file`."""
    if isinstance(task, Mapping):
        return Path(str(task["path"])).name if task.get("path") else str(task.get("name") or "")
    return str(task or "")


def undefined(note: str) -> str:
    """What stands in place of a value that could not be computed."""
    return f"undefined: {note}" if note else "undefined"


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if not math.isfinite(seconds):
        return "undefined"
    if seconds < 60:
        return f"{number(float(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
