"""Algorithms of other packages, which declare them as entry points; nothing is imported until one is asked for or listed.

    [project.entry-points."circuitdisc.algorithms"]
    my_algorithm = "my_package.search:my_algorithm"

The function is called as those here are, `my_algorithm(model, task, ablation, context, *, setting=default, ...) -> Discovery`.

Source: the entry points of Python packages, https://packaging.python.org/en/latest/specifications/entry-points/.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from circuitdisc.discovery.algorithm import Algorithm
from circuitdisc.errors import BadSetting, CircuitdiscError

if TYPE_CHECKING:
    from circuitdisc.discovery.base import Discovery

GROUP = "circuitdisc.algorithms"
ARGUMENTS = ("model", "task", "ablation", "context")


@dataclass(frozen=True)
class OutsideAlgorithm(Algorithm):
    """An algorithm of another package.

    Args:
        entry: where it is.
    """

    entry: EntryPoint = field(repr=False)

    @property
    def package(self) -> str:
        return package_of(self.entry)

    @property
    def versions(self) -> dict[str, str]:
        return {self.entry.dist.name: self.entry.dist.version} if self.entry.dist is not None else {}

    @property
    def function(self) -> "Callable[..., Discovery]":
        """The function, imported now.

        Raises:
            BadSetting: it cannot be imported, or cannot be called as an algorithm is.
        """
        where = f"algorithm '{self.name}' of package '{self.package}' ({self.entry.value})"
        try:
            function = self.entry.load()
        except Exception as error:  # importing another package's code can fail in any way
            words = " ".join(str(error).split())
            raise BadSetting(
                f"{where} cannot be imported ({type(error).__name__}: {words}): mend or uninstall that package"
            ) from error
        problem = _problem(function)
        if problem:
            raise BadSetting(
                f"{where} {problem}: it must be a function (model, task, ablation, context, *, setting=default, ...)"
            )
        return function


def outside_algorithms() -> dict[str, OutsideAlgorithm]:
    """All that other packages declare, by name; where two declare one name, the message of `refuse_clash` says so."""
    found: dict[str, OutsideAlgorithm] = {}
    for entry in _entries(tuple(sys.path)):
        found.setdefault(entry.name, OutsideAlgorithm(entry.name, f"of package '{package_of(entry)}'", entry))
    return found


def refuse_clash(name: str, shipped: Mapping[str, Algorithm]) -> None:
    """Make sure that a name means one algorithm.

    Raises:
        BadSetting: another package declares an algorithm of this package's name, or two packages declare one name.
    """
    packages = [package_of(entry) for entry in _entries(tuple(sys.path)) if entry.name == name]
    if packages and name in shipped:
        raise BadSetting(
            f"package '{packages[0]}' declares an algorithm '{name}', which is the name of one of circuitdisc's own: "
            "rename its entry point, or uninstall that package"
        )
    if len(packages) > 1:
        raise BadSetting(
            f"packages {' and '.join(repr(one) for one in packages)} both declare an algorithm '{name}': "
            "rename one entry point, or uninstall one package"
        )


def summary_of(algorithm: Algorithm, shipped: Mapping[str, Algorithm]) -> str:
    """One line about an algorithm; of another package's the first line of its docstring, or why it cannot be used."""
    try:
        refuse_clash(algorithm.name, shipped)
        if not isinstance(algorithm, OutsideAlgorithm):
            return algorithm.summary
        words = (inspect.getdoc(algorithm.function) or "").strip().partition("\n")[0]
        return f"{words} ({algorithm.summary})" if words else algorithm.summary
    except CircuitdiscError as error:
        return f"cannot be used: {error}"


def package_of(entry: EntryPoint) -> str:
    """The name of the package that declares an entry point."""
    return entry.dist.name if entry.dist is not None else "unknown"


@lru_cache(maxsize=1)
def _entries(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What installed packages declare; `path` is where Python looks for packages, so that a change of it counts."""
    return tuple(entry_points(group=GROUP))


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
