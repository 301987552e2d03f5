"""Algorithms of other packages, which declare them as entry points; nothing is imported until one is asked for or listed.

    [project.entry-points."circuitdisc.algorithms"]
    my_algorithm = "my_package.search:my_algorithm"

The function is called as those here are, `my_algorithm(model, task, ablation, context, *, setting=default, ...) -> Discovery`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitdisc.discovery.algorithm import Algorithm
from circuitdisc.errors import BadSetting, CircuitdiscError
from circuitdisc.outside import OutsideNames, package_of, versions_of

if TYPE_CHECKING:
    from circuitdisc.discovery.base import Discovery

OUTSIDE = OutsideNames("circuitdisc.algorithms", "algorithm")
ARGUMENTS = ("model", "task", "ablation", "context")


@dataclass(frozen=True)
class OutsideAlgorithm(Algorithm):
    """An algorithm of another package."""

    @property
    def versions(self) -> dict[str, str]:
        return versions_of(OUTSIDE.entries()[self.name])

    @property
    def function(self) -> "Callable[..., Discovery]":
        """The function, imported now.

        Raises:
            BadSetting: it cannot be imported, or cannot be called as an algorithm is.
        """
        function = OUTSIDE.load(self.name)
        problem = _problem(function)
        if problem:
            raise BadSetting(
                f"{OUTSIDE.where(self.name)} {problem}: it must be a function (model, task, ablation, context, *, "
                "setting=default, ...)"
            )
        return function


def outside_algorithms() -> dict[str, OutsideAlgorithm]:
    """All that other packages declare, by name."""
    return {name: OutsideAlgorithm(name, f"of package '{package_of(entry)}'") for name, entry in OUTSIDE.entries().items()}


def summary_of(algorithm: Algorithm, shipped: Mapping[str, Algorithm]) -> str:
    """One line about an algorithm; of another package's the first line of its docstring, or why it cannot be used."""
    try:
        OUTSIDE.refuse_clash(algorithm.name, shipped)
        if not isinstance(algorithm, OutsideAlgorithm):
            return algorithm.summary
        words = (inspect.getdoc(algorithm.function) or "").strip().partition("\n")[0]
        return f"{words} ({algorithm.summary})" if words else algorithm.summary
    except CircuitdiscError as error:
        return f"cannot be used: {error}"


def _problem(function: object) -> str:
    """Why something cannot be called as an algorithm is; nothing if it can."""
    if not callable(function):
        return "is no function"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return "has no signature that can be read"
    first = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.VAR_POSITIONAL)]
    needed = [one for one in first if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    takes_any = any(one.kind is one.VAR_POSITIONAL for one in first)
    if len(needed) > len(ARGUMENTS) or (len(first) < len(ARGUMENTS) and not takes_any):
        return f"takes {len(needed)} positional arguments"
    bare = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    return f"has no default for its setting '{bare[0]}'" if bare else ""
