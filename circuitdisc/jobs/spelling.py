"""What a person types for a setting, as Hydra's grammar takes it: short forms, lists without brackets, any letters."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from circuitdisc.errors import BadSetting, shown

MOST_CHARACTERS, MOST_BRACKETS = 100_000, 50  # of one argument
TASK_FILES = (".jsonl", ".csv")
NAMES = ("out", "base", "tuned", "circuit", "text")
"""Settings whose value is a name or a path, whatever letters are in it."""

_PLAIN_WORD = re.compile(r"[A-Za-z_/.~][A-Za-z0-9_/.~-]*")
_NUMBER = re.compile(r"-?[0-9.]+(e-?[0-9]+)?")
_FOREIGN_WORD = re.compile(r"[^\[\]{},:'\"\s]*[^\x00-\x7f][^\[\]{},:'\"\s]*")


def as_overrides(
    args: Sequence[str], *, tasks: Collection[str], lists: Collection[str] = (), multirun: bool = False
) -> list[str]:
    """Arguments as Hydra reads them.

    Args:
        tasks: names that are no files.
        lists: settings that may be written `a,b,c`, without brackets.
        multirun: commas separate the values of several jobs.

    Raises:
        BadSetting: an argument is not `key=value`, or is no setting by its length or depth.
    """
    return [override for arg in args for override in _spell_out(arg, tasks, lists, multirun)]


def _spell_out(arg: str, tasks: Collection[str], lists: Collection[str], multirun: bool) -> list[str]:
    check_argument(arg)
    key, equals, value = arg.partition("=")
    if not equals:
        raise BadSetting(f"{shown(arg)} is not a setting: write key=value, for example algorithm.threshold=0.01")
    if key == "model":
        return [f"model.name={_name(value, multirun)}"]
    if key == "task" and value not in tasks and (value.lower().endswith(TASK_FILES) or _is_file(value)):
        return ["task=file", f"task.path={_name(value, multirun)}"]
    if key in lists and value[:1] not in ("[", "{") and value != "null" and not _NUMBER.fullmatch(value):
        value = f"[{value}]"
    if key in NAMES and value[:1] != "[" and value != "null":
        return [f"{key}={_name(value, multirun)}"]
    return [f"{key}={_readable(value)}"]


def check_argument(arg: str) -> None:
    """What is typed for a setting can be read at all.

    Raises:
        BadSetting: it is too long, or nested too deeply, or holds half a character.
    """
    if len(arg) > MOST_CHARACTERS:
        raise BadSetting(f"{shown(arg)} has {len(arg):,} characters, and a setting {MOST_CHARACTERS:,} at most")
    if arg.count("[") + arg.count("{") + arg.count("(") > MOST_BRACKETS:
        raise BadSetting(f"{shown(arg)} has too many brackets to be a setting")
    if not arg.isprintable() or arg.encode("utf-8", "ignore").decode() != arg:
        raise BadSetting(f"{shown(arg)} has a character in it that cannot be printed: leave it out")


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


def _name(value: str, multirun: bool) -> str:
    """A name or a path as a word; several of them, with commas, in a multirun."""
    if value[:1] in ("'", '"'):
        return value
    return ",".join(map(_quoted, value.split(","))) if multirun else _quoted(value)


def _readable(value: str) -> str:
    """A value with quotes around the words that Hydra's grammar has no letters for."""
    if value.isascii() and "'" not in value and '"' not in value:
        return value
    if value[:1] in "['\"{" and (value.isascii() or "'" in value or '"' in value):
        return value  # a list, a table or a quoted word: written in Hydra's own way
    if value[:1] in "[{":
        return _FOREIGN_WORD.sub(lambda word: _quoted(word[0]), value)
    return ",".join(_quoted(name) for name in value.split(","))


def _quoted(value: str) -> str:
    if _PLAIN_WORD.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    return in_quotes(value)


def in_quotes(value: str) -> str:
    """Any text as a word of Hydra's grammar."""
    inside = re.sub(r"(\\*)(')", r"\1\1\\\2", value)  # backslashes count only before a quote
    backslashes = len(inside) - len(inside.rstrip("\\"))
    return f"'{inside}{chr(92) * backslashes}'"
