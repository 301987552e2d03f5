"""Named positions: `s2`, `subject`, `query_label`, so that plans, attention tables and patches speak of roles, not of indices.

A task names the positions that matter when it fills in its templates. A position is then written as a role with an optional
offset (`s2`, `s2+1`, `end-2`), as `end` or `last` (where the last answer is read), `first` (token 0), or as an index that may
count from the end (`-3`). A word of several tokens stands at its last one.
"""

import re
from collections.abc import Sequence
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple

from circuitdisc.errors import BadSetting, BadTask, UnknownName

if TYPE_CHECKING:
    from circuitdisc.tasks.base import Example

BUILT_IN = ("end", "last", "first")
_POSITION = re.compile(r"(?P<role>[A-Za-z_]\w*)(?P<offset>[+-]\d+)?")


class Filled(NamedTuple):
    """A template with its words in place, and the characters (first, one past the last) at which each of them stands."""

    text: str
    roles: dict[str, tuple[int, int]]


def fill(template: str, **words: str) -> Filled:
    """Fill in a template; every field becomes a role, but those whose name begins with an underscore.

    Args:
        template: text with fields, as in `When {io} and {s1} met`. A field named twice stands at its second place.
        words: what each field is filled with; spaces at its ends do not belong to the role.

    Raises:
        KeyError: a field has no word.
    """
    text, roles = "", {}
    for before, name, _, _ in Formatter().parse(template):
        text += before
        if name is None:
            continue
        word = words[name]
        if not name.startswith("_"):
            start = len(text) + len(word) - len(word.lstrip())
            roles[name] = (start, start + len(word.strip()))
        text += word
    return Filled(text, roles)


def position_of(example: "Example", position: str | int) -> int:
    """The token index of a position in an example's prompts.

    Args:
        position: a role with an optional offset, `end`, `last`, `first`, or an index.

    Raises:
        UnknownName: the example has no such role; the message lists those it has.
        BadSetting: the position is not written as one.
        BadTask: it lies outside the prompt.
    """
    if isinstance(position, bool) or not isinstance(position, int | str):
        raise BadSetting(f"{position!r} is not a position: give a role such as end, a role with an offset (end-1), or an index")
    if isinstance(position, int) or re.fullmatch(r"[+-]?\d+", position):
        index = int(position)
        index = index if index >= 0 else len(example) + index
    else:
        match = _POSITION.fullmatch(position)
        if match is None:
            raise BadSetting(
                f"'{position}' is not a position: give a role such as end, a role with an offset (end-1), or an index"
            )
        index = _role_index(example, match["role"]) + int(match["offset"] or 0)
    if not 0 <= index < len(example):
        raise BadTask(f"position '{position}' is outside a prompt of {len(example)} tokens ({example.text[:40]!r})")
    return index


def _role_index(example: "Example", role: str) -> int:
    if role in example.roles:  # a task may name its own `end`
        return example.roles[role]
    if role in ("end", "last"):
        return max(example.positions)
    if role == "first":
        return 0
    raise UnknownName("position", role, (*BUILT_IN, *example.roles), "This example has no other.")


def role_names(examples: "Sequence[Example]") -> tuple[str, ...]:
    """The roles that all the examples have, in the order of the first one; without the built-in ones."""
    if not examples:
        return ()
    return tuple(role for role in examples[0].roles if all(role in example.roles for example in examples))
