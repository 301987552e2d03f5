"""A result in words, tables and figures: for the terminal, and as a page that opens offline.

What a kind of result says stands beside its kind (`pages/heads.py`, `pages/dcm.py`, ...), registered with `describe`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, singledispatch
from os import PathLike
from pathlib import Path

from circuitdisc.files import write_text
from circuitdisc.pages.page import Picture, render
from circuitdisc.pages.tables import text_table
from circuitdisc.pages.verdict import Verdict, as_sentences, plain_text
from circuitdisc.results import Row
from circuitdisc.wording import interval, number

PRINTED_AT_MOST = 20
"""Lines of a table in the terminal; the page and the JSON file have more, or all."""

LISTED_AT_MOST = 500
"""Lines of a table on the page."""


@dataclass(frozen=True)
class Section:
    """A part of a page: a figure, a table, or both.

    Args:
        rows: the table's lines.
        note: what the table shows.
        caption: of the figure.
        ends_last: of more lines than a terminal gets the last are printed, as of a table by layer; else the first.
    """

    title: str
    rows: Sequence[Row] = ()
    note: str = ""
    picture: Picture | None = None
    caption: str = ""
    ends_last: bool = False

    @cached_property
    def lines(self) -> list[Row]:
        """The rows, each interval in a column of its own."""
        return [with_intervals(row) for row in self.rows]

    @property
    def headers(self) -> list[str]:
        return list(self.lines[0]) if self.lines else []

    @property
    def words(self) -> set[int]:
        """Columns that hold text."""
        return {at for at, name in enumerate(self.headers) if any(isinstance(row[name], str) for row in self.lines)}

    def cells(self, at_most: int) -> list[list[str]]:
        """The first lines, as people read them."""
        return [[cell(value) for value in row.values()] for row in self.lines[:at_most]]


@dataclass(frozen=True)
class Description:
    """A result in words, and its parts."""

    said: Verdict
    sections: tuple[Section, ...]

    def noted(self, notes: Iterable[str]) -> "Description":
        """With what a reader must know of the task, among the caveats."""
        return replace(self, said=self.said + Verdict((), as_sentences(notes)))


def with_intervals(row: Row) -> Row:
    """A line with `low` and `high` as one column, `[0.13, 0.79]`; so of `change low` and `change high`."""
    line: Row = {}
    for name, value in row.items():
        of, is_low, is_high = name.removesuffix("low").removesuffix("high"), name.endswith("low"), name.endswith("high")
        if "random" in name or not (is_low or is_high) or not {f"{of}low", f"{of}high"} <= row.keys():
            line[name] = value
        elif is_low:
            line[f"{of}interval"] = interval(value, row[f"{of}high"]) or None
    return line


def cell(value: object) -> str:
    """A value in a table."""
    if value is None:
        return "n/a"
    return number(value) if isinstance(value, int | float) else str(value)


@singledispatch
def describe(result: object) -> Description:
    """Words, figures and tables of a result."""
    raise TypeError(f"there is no description of {type(result).__name__}")


def description_text(description: Description) -> str:
    """The result for the terminal: tables, then what they say."""
    parts = []
    for section in description.sections:
        if section.rows:
            align = "".join("l" if at in section.words else "r" for at in range(len(section.headers)))
            more, cells = len(section.rows) - PRINTED_AT_MOST, section.cells(LISTED_AT_MOST)
            shown = cells[-PRINTED_AT_MOST:] if section.ends_last else cells[:PRINTED_AT_MOST]
            parts.append(text_table(section.headers, shown, align))
            if more > 0:
                parts[-1] += f"\n... {more:,} {'earlier' if section.ends_last else 'more'} lines on the page"
            parts[-1] += f"\n{section.note}" if section.note else ""
    return plain_text("\n\n".join([*parts, description.said.text]))


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_words(item)}" for key, item in value.items() if item is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def write_description(
    path: str | PathLike[str], description: Description, *, heading: str, subject: str, settings: Mapping[str, object]
) -> Path:
    """Write the page of a result.

    Args:
        heading: the title.
        subject: the model and the task.
        settings: what was asked for; what is None has no line.

    Raises:
        BadRun: the file cannot be written.
    """
    path = Path(path)
    page = render(
        "heads.html.j2",
        heading=heading,
        subject=subject,
        said=description.said,
        sections=[
            {
                "title": section.title,
                "headers": section.headers,
                "words": section.words,
                "rows": section.cells(LISTED_AT_MOST),
                "note": section.note,
                "picture": section.picture,
                "caption": section.caption,
            }
            for section in description.sections
        ],
        settings=[(name.replace("_", " "), _words(value)) for name, value in settings.items() if value is not None],
    )
    write_text(path, page)
    return path
