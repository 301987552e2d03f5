"""Checks of settings: each refuses what cannot be used with a sentence, and hands back what can."""

import math
from numbers import Integral

from circuitdisc.errors import BadSetting, UnknownName


def check_number(name: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within bounds.

    Raises:
        BadSetting: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadSetting(f"{name}={value!r} is not a number")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise BadSetting(f"{name}={value!r} must be {bounds}")
    return float(value)


def check_whole(name: str, value: object, low: int = 1) -> int:
    """A whole number from `low`.

    Raises:
        BadSetting: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise BadSetting(f"{name}={value!r} must be a whole number from {low}")
    return int(value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """One of the allowed words.

    Raises:
        UnknownName: it is not.
    """
    if value not in choices:
        raise UnknownName(f"value of {name}", str(value), choices)
    return value


def check_confidence(value: object) -> float:
    """The coverage of an interval.

    Raises:
        BadSetting: it does not lie between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise BadSetting(f"confidence={value!r} must lie between 0 and 1")
    return float(value)
