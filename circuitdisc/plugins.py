"""Things of one kind by name, this package's own and those of other packages: algorithms, metrics, tasks, scores, commands.

Another package declares its own as an entry point, and nothing of it is imported before it is asked for or listed:

    [project.entry-points."circuitdisc.metrics"]
    my_metric = "my_package.metrics:my_metric"

Source: the entry points of Python packages, https://packaging.python.org/en/latest/specifications/entry-points/.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import CodeType
from typing import Any, Generic, Protocol, TypeVar

from circuitdisc.errors import BadSetting, CircuitdiscError, UnknownName


class Unfit(ValueError):
    """What is wrong with an object that another package declares, as the end of a sentence: `is no function`."""


class Named(Protocol):
    """What a registry holds."""

    @property
    def summary(self) -> str:
        """One line for `circuitdisc list`."""
        ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Everything of one kind that can be called by name.

    Args:
        kind: what one is called in messages, `algorithm`; the group of entry points is `circuitdisc.algorithms`.
        own: those of this package.
        adopt: makes one from the name and the object that another package declares; raises `Unfit` where that cannot be.
        wanted: what such an object must be, in words.
        defaults: an object's own settings with their defaults.
        hint: what else may be given in place of a name.
    """

    kind: str
    own: Mapping[str, T]
    adopt: Callable[[str, Any], T]
    wanted: str
    defaults: Callable[[T], Mapping[str, Any]] = lambda _: {}
    hint: str = ""

    @property
    def names(self) -> list[str]:
        """This package's names, then those of others; nothing is imported."""
        return list(dict.fromkeys([*self.own, *(entry.name for entry in self._entries())]))

    def get(self, name: str) -> T:
        """The object with this name, imported now if it is another package's.

        Raises:
            UnknownName: there is none; the message offers the nearest names.
            BadSetting: two packages declare this name, or what is declared cannot be imported or used.
        """
        entries = [entry for entry in self._entries() if entry.name == name]
        if name not in self.own and not entries:
            raise UnknownName(self.kind, name, self.names, self.hint)
        self._refuse_clash(name, [package_of(entry) for entry in entries])
        return self.own[name] if name in self.own else self._load(entries[0])

    def packages(self) -> dict[str, str]:
        """Name -> package, of what other packages declare; nothing is imported."""
        return {entry.name: package_of(entry) for entry in self._entries()}

    def settings(self, name: str) -> dict[str, Any]:
        """What a file in conf/ would hold: the name, and its own settings with their defaults.

        Raises:
            UnknownName, BadSetting: as `get`.
        """
        return {"name": name, **self.defaults(self.get(name))}

    def versions(self, name: str) -> dict[str, str]:
        """Package and version of what another package declares, on which results depend; none for this package's own."""
        dists = [entry.dist for entry in self._entries() if entry.name == name and name not in self.own]
        return {dist.name: dist.version for dist in dists if dist is not None}

    def described(self) -> list[tuple[str, str]]:
        """Name and summary of each; one that cannot be used says why."""
        return [(name, self._described(name)) for name in self.names]

    def _described(self, name: str) -> str:
        try:
            words = self.get(name).summary
        except CircuitdiscError as error:
            return f"cannot be used: {error}"
        package = self.packages().get(name)
        source = f"of package '{package}'"
        return words if package is None else f"{words} ({source})" if words else source

    def _entries(self) -> tuple[EntryPoint, ...]:
        return _declared(f"circuitdisc.{self.kind}s", tuple(sys.path))

    def _refuse_clash(self, name: str, packages: Sequence[str]) -> None:
        thing = f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind} '{name}'"
        if packages and name in self.own:
            raise BadSetting(
                f"package '{packages[0]}' declares {thing}, which is the name of one of circuitdisc's own: "
                "rename its entry point, or uninstall that package"
            )
        if len(packages) > 1:
            raise BadSetting(
                f"packages {' and '.join(map(repr, packages))} both declare {thing}: "
                "rename one entry point, or uninstall one package"
            )

    def _load(self, entry: EntryPoint) -> T:
        where = f"{self.kind} '{entry.name}' of package '{package_of(entry)}' ({entry.value})"
        try:
            declared = entry.load()
        except Exception as error:  # importing another package's code can fail in any way
            words = " ".join(str(error).split())
            raise BadSetting(
                f"{where} cannot be imported ({type(error).__name__}: {words}): mend or uninstall that package"
            ) from error
        try:
            return self.adopt(entry.name, declared)
        except Unfit as problem:
            raise BadSetting(f"{where} {problem}: it must be {self.wanted}") from problem


MARK = "#"  # before the hash in the name of a user's function; no name of a registry has it


def name_of(function: Callable[..., Any]) -> str:
    """The name of a user's function in results: `module.function#3f2a91c0`, where the end changes with its code.

    Two functions of one name are told apart by it, so that nothing goes on from another one's results. What is no plain
    function (an object that can be called) counts as another one in each process.
    """
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    held = [getattr(inner, part, None) for part in ("__defaults__", "__kwdefaults__")]
    held += [cell.cell_contents for cell in getattr(inner, "__closure__", None) or ()]
    parts = [repr(function) if code is None else _code(code), repr([part for part in held if part is not None])]
    where: Any = inner if hasattr(inner, "__qualname__") else type(inner)
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()
    return f"{where.__module__}.{where.__qualname__}{MARK}{digest}"


def _code(code: CodeType) -> str:
    """What a function does, without where it stands in its file."""
    inner = [_code(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return repr((code.co_code.hex(), inner, code.co_names, code.co_varnames))


def refuse_mark(kind: str, name: str) -> None:
    """A name of `name_of` names nothing that can be found again.

    Raises:
        BadSetting: this is one.
    """
    if MARK in name:
        raise BadSetting(
            f"the {kind} {name} was a function of your own, which no name finds again: give the function itself as {kind}="
        )


def package_of(entry: EntryPoint) -> str:
    """The name of the package that declares an entry point."""
    return entry.dist.name if entry.dist is not None else "unknown"


def versions_behind(names: Container[str]) -> list[str]:
    """Package and version of whatever other packages declare under these names, of any kind; nothing is imported."""
    path = tuple(sys.path)
    dists = [entry.dist for group in _groups(path) for entry in _declared(group, path) if entry.name in names]
    return sorted({f"{dist.name} {dist.version}" for dist in dists if dist is not None})


@lru_cache(maxsize=16)
def _groups(path: tuple[str, ...]) -> tuple[str, ...]:
    """The groups in which installed packages declare something for this one."""
    return tuple(sorted(group for group in entry_points().groups if group.startswith("circuitdisc.")))


@lru_cache(maxsize=16)
def _declared(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What installed packages declare; `path` is where Python looks for packages, so that a change of it counts."""
    return tuple(entry_points(group=group))


def check_function(function: object, arguments: Sequence[str], keywords: Sequence[str] = ()) -> str:
    """Make sure that something can be called with these arguments, and has defaults for all others.

    Args:
        arguments: given by position.
        keywords: given by name.

    Returns:
        The first line of its docstring.

    Raises:
        Unfit: it cannot.
    """
    if not callable(function):
        raise Unfit("is no function")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise Unfit("has no signature that can be read") from None
    if any(param.kind is param.VAR_KEYWORD for param in parameters):
        keywords = ()
    named = [
        param
        for param in parameters
        if param.name in keywords and param.kind in (param.KEYWORD_ONLY, param.POSITIONAL_OR_KEYWORD)
    ]
    if missing := [name for name in keywords if name not in [param.name for param in named]]:
        raise Unfit(f"does not take '{missing[0]}'")
    rest = [param for param in parameters if param not in named]
    first = [param for param in rest if param.kind in (param.POSITIONAL_ONLY, param.POSITIONAL_OR_KEYWORD)]
    needed = [param for param in first if param.default is param.empty]
    takes_any = any(param.kind is param.VAR_POSITIONAL for param in rest)
    if len(needed) > len(arguments) or (len(first) < len(arguments) and not takes_any):
        raise Unfit(f"takes {len(needed)} positional arguments")
    if bare := [param.name for param in rest if param.kind is param.KEYWORD_ONLY and param.default is param.empty]:
        raise Unfit(f"has no default for its setting '{bare[0]}'")
    return (inspect.getdoc(function) or "").strip().partition("\n")[0]
