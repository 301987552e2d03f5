"""What a terminal gets: tables and sentences that fit its width. A file or a pipe gets them whole, each line a line."""

import re
import shutil
import sys
from collections.abc import Sequence
from io import StringIO
from textwrap import wrap

APART = 2  # spaces between two columns
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
    """A table in so many columns of the terminal: words of a cell below each other.

    Where a word does not fit, what all rows have in common stands below the table; where that does not do, each row is a block.

    Args:
        align: one letter a column, `l` or `r`.
    """
    narrowest = [max(len(word) for row in (headers, *rows) for word in (row[at].split() or [""])) for at in range(len(headers))]
    if sum(narrowest) + APART * (len(headers) - 1) > columns:
        common = [at for at in range(1, len(headers)) if len(rows) > 1 and len({row[at] for row in rows}) == 1]
        if not common:
            return "\n\n".join(_block(headers, row, columns) for row in rows)
        own = [at for at in range(len(headers)) if at not in common]
        picked = [[row[at] for at in own] for row in (headers, *rows)]
        table = folded_table(picked[0], picked[1:], "".join(align[at] for at in own), columns)
        return f"{table}\n" + fitted("; ".join(f"{headers[at]}: {rows[0][at]}" for at in common), columns)
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for name, side, least in zip(headers, align, narrowest, strict=False):
        table.add_column(Text(name), justify="right" if side == "r" else "left", min_width=least, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    page = StringIO()
    Console(file=page, width=columns, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip("\n").split("\n"))


def _block(headers: Sequence[str], row: Sequence[str], columns: int) -> str:
    """A row, a line for each of its cells; the first one's name stands out."""
    wide = min(max(map(len, headers)), columns // 3)
    cells = [
        f"{'' if at == 0 else '  '}{name:<{wide}}  {cell}" for at, (name, cell) in enumerate(zip(headers, row, strict=True))
    ]
    return fitted("\n".join(cell.rstrip() for cell in cells), columns)
