"""What results share: plain data for a file and back, a table for pandas, one readable line, and themselves in a notebook.

    class Effects(ValuesOverExamples):
        KEYS = ("mean", "low", "high", "metric", "n")   # what a file has of it, in order
        values: Float[np.ndarray, "L H B"]              # a value for each example: arrays() has them, a file their mean

A result says once which of its fields and properties go into a file (`KEYS`); `to_dict`, `from_dict`, `arrays`, `to_frame` and
what a notebook shows follow from that and from `table`.

Shape letters: B examples, X quantities.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from html import escape
from importlib import import_module
from inspect import ismethod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

import numpy as np
from jaxtyping import Float

from circuitdisc.errors import BadFile, BadSetting
from circuitdisc.schemas import check_format, validate_fields
from circuitdisc.wording import number

if TYPE_CHECKING:
    import pandas

    from circuitdisc.figures.paper import PaperFigure

Row = dict[str, Any]
"""One line of a result's table: column -> text, number or None."""

LONGEST = 180
"""Characters of the line that stands for a result."""

SHOWN = 20
"""Rows of a table that a notebook shows."""


class Shown:
    """What has a table: a frame of it for pandas, and itself in a notebook."""

    def _rows(self) -> list[Row]:
        return self.table()  # pyright: ignore[reportAttributeAccessIssue] - every class has one, and says what a row is

    def to_frame(self) -> "pandas.DataFrame":
        """The rows of `table` as a data frame.

        Raises:
            BadSetting: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BadSetting("to_frame() needs pandas: pip install pandas, or take the rows of table() as they are") from error
        return pandas.DataFrame(self._rows())

    def plot(self, path: "str | PathLike[str] | None" = None, **settings: Any) -> "PaperFigure":
        """Draw it for a paper, as `circuitdisc.plot` does; in a notebook the drawing shows itself.

        Args:
            path: also write it there, as PDF, SVG or PNG.
            settings: `width` in centimetres, and those of the kind of figure.

        Raises:
            BadSetting: there is no figure of such a result, matplotlib is not installed, or a setting cannot be used.
            BadRun: the file cannot be written.
        """
        return import_module("circuitdisc.figures").plot(self, path, **settings)  # above this floor: it knows all results

    def _repr_html_(self) -> str:
        rows, n = self._first_rows()
        more = f" (the first {SHOWN} of {n:,} rows)" if n > SHOWN else ""
        return f"<div><p>{escape(repr(self))}{more}</p>{self._drawn()}{html_table(rows)}</div>"

    def _drawn(self) -> str:
        """HTML that stands above a notebook's table."""
        return ""

    def _first_rows(self) -> tuple[list[Row], int]:
        """What a notebook shows, and how many rows there are."""
        rows = self._rows()
        return rows[:SHOWN], len(rows)


class Result(Shown):
    """Base of the results that are dataclasses.

    Args:
        FORMAT, VERSION: what a file of it says it is; empty for what stands inside another file.
        KEYS: what `to_dict` gives, in order: fields, properties and methods without arguments by name, as `key=name` where
            the two differ; `*`, or none: all fields. An array with a value for each example is given as its mean.
        WHERE: what messages call a file of it.
    """

    FORMAT: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1
    KEYS: ClassVar[tuple[str, ...]] = ()
    WHERE: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; numbers that are not finite are None."""
        head = {"format": self.FORMAT, "version": self.VERSION} if self.FORMAT else {}
        named = ((key, name, getattr(self, name)) for key, name in _keys(type(self)).items())
        values = ((key, name, value() if ismethod(value) else value) for key, name, value in named)
        means = _by_example(type(self))
        return head | {key: plain(value.mean(-1) if name in means else value) for key, name, value in values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **more: Any) -> Self:
        """The inverse of `to_dict`.

        Args:
            more: the fields that a file does not hold, as values of each example (`arrays` has them) and `over`.

        Raises:
            BadFile: the data is of something else, a key of it is missing or wrong, or a field is neither there nor in `more`.
        """
        where = cls.WHERE or f"not a {cls.__name__}"
        if cls.FORMAT:
            check_format(data, cls.FORMAT, where, cls.VERSION)
        names = {name: key for key, name in _keys(cls).items() if name not in _by_example(cls)}
        own = [name for name in field_names(cls) if name not in more]
        missing = [name for name in own if name not in names]
        if missing:
            raise BadFile(f"{where}: a file holds no '{missing[0]}' of it: give {missing[0]}=, or measure again")
        given = {name: data[names[name]] for name in own if isinstance(data, Mapping) and names[name] in data}
        return cls(**validate_fields(cls, own, given, where), **more)

    def _rows(self) -> list[Row]:
        """Those of its table; of a result without one itself, as one row."""
        return self.table() if hasattr(self, "table") else [self.to_dict()]  # pyright: ignore[reportAttributeAccessIssue]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the result by name; those of a result within it with its name before theirs."""
        arrays: dict[str, np.ndarray] = {}
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                arrays[name] = value
            elif isinstance(value, Result):
                arrays |= {f"{name}_{inner}": array for inner, array in value.arrays().items()}
        return arrays

    def __repr__(self) -> str:
        simple = [(name, getattr(self, name)) for name in ("n", *field_names(self)) if hasattr(self, name)]
        said = {name: value for name, value in simple if isinstance(value, str | int | float) and value != ""}
        words = ", ".join(f"{name}={value!r}" for name, value in said.items())
        return f"{type(self).__name__}({words if len(words) <= LONGEST - 40 else words[: LONGEST - 40] + '...'})"


class OverExamples(Result):
    """A result that keeps a value for each example."""

    @property
    def n(self) -> int:
        """Examples."""
        return getattr(self, _by_example(type(self))[0]).shape[-1]


class ValuesOverExamples(OverExamples):
    """A result whose `values` are those of each example."""

    values: np.ndarray  # [*X, B]

    @property
    def mean(self) -> Float[np.ndarray, "*X"]:
        """Mean over the examples."""
        return self.values.mean(-1)


@cache
def _keys(kind: type) -> dict[str, str]:
    """Key in a file -> name of the field or property."""
    keys = getattr(kind, "KEYS", ()) or ("*",)
    named = [name for key in keys for name in (field_names(kind) if key == "*" else [key])]
    return {key: name or key for key, _, name in (entry.partition("=") for entry in named)}


@cache
def _by_example(kind: type) -> tuple[str, ...]:
    """The fields that hold a value for each example: arrays whose last axis is B."""
    own = field_names(kind)
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in own}
    return tuple(name for name, hint in hints.items() if getattr(hint, "dim_str", "").split()[-1:] == ["B"])


def field_names(kind: Any) -> list[str]:
    """Names of a dataclass's fields, in order."""
    return [field.name for field in fields(kind)]


def plain(value: Any) -> Any:
    """A value as JSON has it; a number that is not finite becomes None."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in field_names(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, np.integer) else value


def plain_rows(rows: Iterable[Row]) -> list[Row]:
    """The lines of a table with Python's own numbers; a number that is not finite becomes None."""
    return [plain(row) for row in rows]


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table; all text is escaped."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
    lines = ("".join(f"<td>{escape(_cell(row.get(name)))}</td>" for name in names) for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)
