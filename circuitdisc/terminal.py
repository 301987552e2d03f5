"""What a terminal gets: tables and sentences that fit its width. A file or a pipe gets them whole, each line a line."""

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from io import StringIO
from textwrap import wrap

APART = 2  # spaces between two columns
_JOINED = "\ue000"  # in place of the space between a number and its %, which belong on one line
_PART_OF_NAME = re.compile(r"[^\s_/]+[_/]*|[_/]+")
_GOES_ON = re.compile(r"(?m)^(?=\S)(?!.* {2})(.{100,})\n(?=\S)(?!.* {2})")
"""A long line of a paragraph, with the end of which the sentence need not end."""


def width() -> int | None:
    """Columns of the terminal; None where stdout is none."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size((80, 24)).columns if is_terminal else None


def fitted(text: str, columns: int | None = None) -> str:
    """A text whose lines are no longer than the terminal is wide: what is left of a line stands below its last column.

    Args:
        columns: of the terminal; None asks it.
    """
    columns = columns or width()
    if columns is None:
        return text
    return "\n".join("\n".join(_wrapped(line, columns)) if len(line) > columns else line for line in text.split("\n"))


def fitted_help(text: str) -> str:
    """The same of a help, whose paragraphs are written over several lines."""
    columns = width()
    return text if columns is None else fitted(_GOES_ON.sub(r"\1 ", text), columns)


def _wrapped(line: str, columns: int) -> list[str]:
    indent = len(line) - len(line.lstrip())
    starts = [match.end() for match in re.finditer(r"\S {2,}(?=\S)", line) if match.end() <= 2 * columns // 3]
    hanging = " " * (starts[-1] if starts else indent + APART)
    first, rest = (line[: len(hanging)], line[len(hanging) :]) if starts else (" " * indent, line.lstrip())
    return wrap(rest, columns, initial_indent=first, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)


def folded_table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str, columns: int) -> str:
    """A table in so many columns of the terminal.

    What all rows have in common stands below it; where that does not do, words of a cell stand below each other, then parts of
    names (`runs/mine`), and where these do not fit, each row is a block.

    Args:
        align: one letter a column, `l` or `r`.
    """
    headers, *rows = cells = [[cell.replace(" %", f"{_JOINED}%") for cell in row] for row in (headers, *rows)]
    common = [at for at in range(1, len(headers)) if len(rows) > 1 and len({row[at] for row in rows}) == 1]
    room = columns - APART * (len(headers) - len(common) - 1)
    own = [at for at in range(len(headers)) if at not in common]
    picked = [[row[at] for row in cells] for at in own]
    widths = _widths(picked, room, str.split) or _widths(picked, room, _PART_OF_NAME.findall)
    if widths is None:
        return "\n\n".join(_block(headers, row, columns) for row in rows).replace(_JOINED, " ")
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for at, wide in zip(own, widths, strict=True):
        table.add_column(Text(headers[at]), justify="right" if align[at] == "r" else "left", width=wide)
    for row in rows:
        table.add_row(*(Text(_filled(row[at], wide)) for at, wide in zip(own, widths, strict=True)))
    page = StringIO()
    Console(file=page, width=columns + APART, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    below = fitted("; ".join(f"{headers[at]}: {rows[0][at]}" for at in common), columns).split("\n") if common else []
    text = "\n".join(line.rstrip()[:columns] for line in [*page.getvalue().rstrip("\n").split("\n"), *below])
    return text.replace(_JOINED, " ")


def _widths(cells: Sequence[Sequence[str]], room: int, parts: Callable[[str], list[str]]) -> list[int] | None:
    """How wide each column is, so that the highest cell is as low as can be; None where a part does not fit.

    Args:
        cells: of each column.
        room: characters of all of them together.
        parts: of a cell, that stay whole.
    """
    widest = [max(map(len, column)) for column in cells]
    widths = [max(len(part) for cell in column for part in (parts(cell) or [""])) for column in cells]
    while sum(widths) < min(room, sum(widest)):
        widths[max(range(len(cells)), key=lambda at: widest[at] / max(1, widths[at]))] += 1
    return widths if sum(widths) <= room else None


def _filled(cell: str, columns: int) -> str:
    """A cell in lines; a word that is too long is broken where a part of a name ends."""
    lines = [""]
    for word in cell.split():
        parts = [word] if len(word) <= columns else _PART_OF_NAME.findall(word)
        for at, part in enumerate(parts):
            before = " " if at == 0 and lines[-1] else ""
            if len(lines[-1]) + len(before) + len(part) > columns:
                lines, before = [*lines, ""], ""
            lines[-1] += before + part
    return "\n".join(lines)


def _block(headers: Sequence[str], row: Sequence[str], columns: int) -> str:
    """A row, a line for each of its cells; the first one's name stands out."""
    wide = min(max(map(len, headers)), columns // 3)
    cells = [
        f"{'' if at == 0 else '  '}{name:<{wide}}  {cell}" for at, (name, cell) in enumerate(zip(headers, row, strict=True))
    ]
    return fitted("\n".join(cell.rstrip() for cell in cells), columns)
