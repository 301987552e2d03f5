"""Bounds of settings as data beside the function that takes them, and the check of what is given.

    @bounded(steps=Whole(1, 1_000_000), learning_rate=Real(0, 100, open_low=True))
    def search(model, task, *, steps: int = 500, learning_rate: float = 0.1): ...

A call outside the bounds is refused with a sentence before the function runs. `bounds_of` gives the bounds to whoever wants to
check earlier (a command, before it loads a model) or to make bad values of them (the tests). Where a parameter's default or
type says so, None is let through.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from numbers import Integral
from numbers import Real as AnyReal
from typing import Any, TypeVar, cast, get_args

from circuitdisc.errors import BadSetting, UnknownName, shown

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Real:
    """A finite number within bounds.

    Args:
        low, high: the bounds.
        open_low, open_high: the bound itself is outside.
        many: a list of such numbers will do, too.
        words: that stand for a number found later.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    many: bool = False
    words: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> Any:
        """The value, if it can be used.

        Raises:
            BadSetting: it is not a number, or lies outside.
        """
        if isinstance(value, str) and value in self.words:
            return value
        if self.many and isinstance(value, Iterable) and not isinstance(value, str | Mapping):
            return [self._check_number(name, number) for number in value]
        return self._check_number(name, value)

    def _check_number(self, name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, AnyReal) or not _is_finite(value):
            a_number = "finite" if isinstance(value, float) else "a number"
            raise BadSetting(f"{name}={shown(value)} is not {a_number}: it must be {self.describe()}")
        number: Any = value if isinstance(value, int | float) else float(value)
        if not self.holds(number):
            raise BadSetting(f"{name}={shown(value)} must be {self.describe()}")
        return number

    def holds(self, value: float) -> bool:
        """Whether a number lies within the bounds."""
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def describe(self) -> str:
        """The bounds in words."""
        return self._describe_number() + "".join(f", or {word}" for word in self.words)

    def _describe_number(self) -> str:
        low, high = (f"{end:,.0f}" if float(end).is_integer() else f"{end:g}" for end in (self.low, self.high))
        if self.open_low:
            return f"a number above {low} and {'below' if self.open_high else 'at most'} {high}"
        return f"a number from {low} to {'below ' if self.open_high else ''}{high}"

    def bad_values(self) -> list[Any]:
        """Values just outside, far outside, and of other kinds."""
        step = max(1e-9, abs(self.high) * 1e-9)
        outside = [self.low if self.open_low else self.low - 1e-9, self.high if self.open_high else self.high + step]
        return [*outside, -1e99, 1e99, 10**400, math.nan, math.inf, -math.inf, "word", True, {}]


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds.

    Args:
        low, high: the bounds, both inside.
        many: a list of such numbers will do, too.
        words: that stand for a number found later.
        kinds: of values that may stand in a number's place; they are not looked at.
    """

    low: int
    high: int
    many: bool = False
    words: tuple[str, ...] = ()
    kinds: tuple[type, ...] = ()

    def check(self, name: str, value: Any) -> Any:
        """The value as an int, if it can be used.

        Raises:
            BadSetting: it is not a whole number, or lies outside.
        """
        if isinstance(value, str) and value in self.words:
            return value
        if isinstance(value, self.kinds):
            return value
        if self.many and isinstance(value, Iterable) and not isinstance(value, str | Mapping):
            return [self._check_number(name, number) for number in value]
        return self._check_number(name, value)

    def _check_number(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not self.low <= int(value) <= self.high:
            raise BadSetting(f"{name}={shown(value)} must be {self.describe()}")
        return int(value)

    def describe(self) -> str:
        """The bounds in words."""
        return f"a whole number from {self.low:,} to {self.high:,}" + "".join(f", or {word}" for word in self.words)

    def bad_values(self) -> list[Any]:
        """Values just outside, far outside, and of other kinds."""
        return [self.low - 1, self.high + 1, -(10**30), 10**400, self.low + 0.5, 1e99, math.nan, math.inf, "word", True, {}]


Bounds = Real | Whole

# what many calls take
SEED = Whole(0, 2**32 - 1)  # NumPy's legacy generator, which the trainer seeds, takes no more
CONFIDENCE = Real(0, 1, open_low=True, open_high=True)
N_RANDOM = Whole(0, 100_000)
N_RANDOM_OR_AUTO = Whole(0, 100_000, words=("auto",))
EXAMPLES = Whole(1, 1_000_000)
BATCH = Whole(1, 1_000_000)
THREADS = Whole(1, 1024)  # far above what torch's thread pool can start, the process ends without a word
SHARE = Real(0, 1)
FRACTION = Real(0, 1, open_low=True)
THRESHOLD = Real(0, 1e9)
THRESHOLD_OR_AUTO = Real(0, 1e9, words=("auto",))
KEEP = Real(0, 1, open_low=True, open_high=True)
STEPS = Whole(1, 1_000_000)
EPOCHS = Whole(1, 100_000)
RATE = Real(0, 100, open_low=True)
EDGES = Whole(1, 2**31 - 1)


def bounded(**bounds: Bounds) -> Callable[[F], F]:
    """Check the named parameters of a function at every call."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        if foreign := set(bounds) - set(signature.parameters):
            raise TypeError(f"{function.__name__} has no parameter {sorted(foreign)[0]}")

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.arguments.update(check_values(checked, given.arguments))
            return function(*given.args, **given.kwargs)

        checked.__dict__["bounds"] = {**bounds_of(function), **bounds}
        return cast(F, checked)

    return decorate


def bounds_of(function: Callable[..., Any]) -> Mapping[str, Bounds]:
    """The bounds that `bounded` gave a function; none for a function without."""
    return getattr(function, "bounds", {})


def takes_none(function: Callable[..., Any], name: str) -> bool:
    """Whether a parameter may be None, by its default or its type."""
    parameter = inspect.signature(function).parameters[name]
    return parameter.default is None or type(None) in get_args(parameter.annotation)


def check_values(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values for which a function has bounds.

    Raises:
        BadSetting: one lies outside them.
    """
    checked: dict[str, Any] = {}
    for name, bounds in bounds_of(function).items():
        if name in given:
            value = given[name]
            checked[name] = value if value is None and takes_none(function, name) else bounds.check(name, value)
    return checked


def check_number(name: str, value: object, *, low: float = -1e9, high: float = 1e9) -> float:
    """A finite number within bounds.

    Raises:
        BadSetting: it is not.
    """
    return float(Real(low, high).check(name, value))


def check_whole(name: str, value: object, low: int = 1, high: int = 2**31 - 1) -> int:
    """A whole number within bounds.

    Raises:
        BadSetting: it is not.
    """
    return Whole(low, high).check(name, value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """One of the allowed words.

    Raises:
        UnknownName: it is not.
    """
    if value not in choices:
        raise UnknownName(f"value of {name}", value, choices)
    return value


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold is a number all the same
        return True
