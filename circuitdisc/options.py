"""Settings that many functions share, documented once: a table of options, and `takes`, which gives a function all of it.

    class Working(TypedDict, total=False):
        memory: Annotated[str | int, Option("4GiB", "budget for activations, as `4GiB`.")]

    @takes(Working)
    def measure(model, task, **options: Unpack[Working]): ...

Each key of a table has its type, its default, one line of documentation and, for a number, its bounds. A call of the function
looks as if all were written in its own signature: `inspect.signature`, `help` and completion show them, defaults are filled in,
bounds are checked, and an unknown keyword is a TypeError. A function may have another default
(`@takes(Working, memory="1GiB")`) and may say more: what its own docstring says of a key stands in place of the shared line.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

from typing_extensions import NoExtraItems, TypedDict

from circuitdisc.checks import CONFIDENCE, SEED, Bounds, bounded

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
WIDTH = 124


@dataclass(frozen=True)
class Option:
    """What is to be known of one key of a table.

    Args:
        default: its value where none is given.
        words: what it means, for docstrings.
        bounds: of a number.
    """

    default: Any
    words: str
    bounds: Bounds | None = None


class Working(TypedDict, total=False):
    """How a call works; no figure depends on these."""

    memory: Annotated[str | int, Option("4GiB", "budget for activations, as `4GiB`.")]
    progress: Annotated[bool, Option(False, "show a progress bar on stderr.")]


class Drawing(Working, total=False):
    """What is drawn at random, for intervals among others."""

    confidence: Annotated[float, Option(0.95, "coverage of the intervals.", CONFIDENCE)]
    seed: Annotated[int, Option(0, "of the bootstrap.", SEED)]


class OnSplit(Drawing, total=False):
    """Which examples are measured."""

    split: Annotated[str, Option("heldout", "of the task: `train` or `heldout`.")]


def options_of(table: Any) -> dict[str, tuple[Any, Option]]:
    """Type and option of every key of a table, its own before those that every call has."""
    hints = get_type_hints(table, include_extras=True)
    names = sorted(hints, key=lambda name: name in Drawing.__annotations__)
    return {name: get_args(hints[name])[:2] for name in names}


def takes(table: Any, **defaults: Any) -> Callable[[F], F]:
    """Give a function with `**options: Unpack[table]` all keys of the table.

    A table with `extra_items` lets further keywords through, for functions that hand them on.

    Args:
        defaults: of this function, where they differ from the table's.
    """
    known = options_of(table)
    if foreign := set(defaults) - set(known):
        raise TypeError(f"{table.__name__} has no key {sorted(foreign)[0]}")
    filled = {name: defaults.get(name, option.default) for name, (_, option) in known.items()}
    is_open = getattr(table, "__extra_items__", NoExtraItems) is not NoExtraItems

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        *own, rest = signature.parameters.values()
        shared = [inspect.Parameter(name, rest.KEYWORD_ONLY, default=filled[name], annotation=known[name][0]) for name in known]
        last = [inspect.Parameter("settings", rest.VAR_KEYWORD, annotation=Any)] if is_open else []

        @wraps(function)
        def complete(*args: Any, **given: Any) -> Any:
            return function(*args, **{**filled, **given})

        described = {name: option.words for name, (_, option) in known.items()}
        complete.__dict__["__signature__"] = signature.replace(parameters=[*own, *shared, *last])
        complete.__doc__ = with_args(inspect.getdoc(function) or "", described)
        bounds = {name: option.bounds for name, (_, option) in known.items() if option.bounds is not None}
        return cast(F, bounded(**bounds)(complete))

    return decorate


def with_args(text: str, described: Mapping[str, str]) -> str:
    """A docstring whose section `Args:` has a line for each of these names, but for those that it describes itself.

    Args:
        described: name -> what it means.
    """
    head, heading, rest = text.partition("Args:\n")
    if not heading:
        head, sections, rest = _split_at(text, r"^(?:Returns|Raises|Source):")
        head, rest = f"{head.rstrip()}\n\n", f"\n{sections}{rest}" if sections else ""
    own, sections, rest = _split_at(rest, r"^\S")
    said = {name.strip() for names in re.findall(r"^    ([\w, ]+):", own, re.MULTILINE) for name in names.split(",")}
    lines = [
        textwrap.fill(f"{name}: {words}", WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, words in described.items()
        if name not in said
    ]
    block = "\n".join([*([own.rstrip()] if own.strip() else []), *lines])
    return f"{head}Args:\n{block}\n" + (f"\n{sections}{rest}" if sections else "")


def _split_at(text: str, pattern: str) -> tuple[str, str, str]:
    """A text before the first line like this, the match, and what comes after it."""
    match = re.search(pattern, text, re.MULTILINE)
    return (text, "", "") if match is None else (text[: match.start()], match[0], text[match.end() :])


def of_others(table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that a table with `extra_items` has let through."""
    known = options_of(table)
    return {name: value for name, value in options.items() if name not in known}


def from_options(kind: type[T], options: Mapping[str, Any], **more: Any) -> T:
    """A dataclass whose fields are filled by options of their names, and by `more`."""
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: options[name] for name in names if name in options and name not in more}, **more)
