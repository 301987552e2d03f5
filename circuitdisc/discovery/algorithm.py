"""A discovery algorithm that can be called by name: one of this package, or one that another package declares."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

from circuitdisc.errors import BadSetting
from circuitdisc.plugins import Unfit, check_function, name_of

if TYPE_CHECKING:
    from circuitdisc.discovery.base import Discovery


@dataclass(frozen=True)
class Algorithm:
    """A discovery algorithm that can be called by name.

    Args:
        name: also the name of its module in `circuitdisc.discovery` and of its function.
        summary: one line for `circuitdisc list algorithms`.
        by_mean: its edge scores are means over examples of the metric's change, or estimates of them.
        by_unit: it can keep what each unit of the examples adds to the scores (`UnitScores`).
        declared: the function, if it is another package's.
    """

    name: str
    summary: str
    by_mean: bool = field(default=False, kw_only=True)
    by_unit: bool = field(default=False, kw_only=True)
    declared: "Callable[..., Discovery] | None" = field(default=None, kw_only=True, repr=False)

    @property
    def function(self) -> "Callable[..., Discovery]":
        return self.declared or getattr(import_module(f"circuitdisc.discovery.{self.name}"), self.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword-only parameters and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def adopt_algorithm(name: str, function: Any) -> Algorithm:
    """A function of another package as an algorithm.

    Raises:
        Unfit: it cannot be called as an algorithm is.
    """
    return Algorithm(name, check_function(function, ("model", "task", "ablation", "context")), declared=function)


def algorithm_of(function: Any) -> Algorithm:
    """A user's own function as an algorithm; it may do without the search's context.

    Raises:
        BadSetting: it cannot be called as an algorithm is.
    """
    arguments = ("model", "task", "ablation", "context")
    try:
        try:
            return Algorithm(name_of(function), check_function(function, arguments), declared=function)
        except Unfit:
            summary = check_function(function, arguments[:3])
    except Unfit as problem:
        raise BadSetting(
            f"the algorithm {name_of(function) if callable(function) else repr(function)} {problem}: it must be a function "
            "(model, task, ablation, *, setting=default, ...)"
        ) from problem

    @wraps(function)
    def without_context(model: Any, task: Any, ablation: Any, context: Any, **settings: Any) -> Any:
        return function(model, task, ablation, **settings)

    return Algorithm(name_of(function), summary, declared=without_context)
