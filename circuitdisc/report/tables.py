"""Tables for the terminal."""

from collections.abc import Sequence

from circuitdisc.report.wording import is_number, score_value, share, span, undefined
from circuitdisc.scoring.base import Score, Scores


def text_table(headers: Sequence[str], rows: Sequence[Sequence[object]], align: str = "") -> str:
    """A plain-text table with aligned columns.

    Args:
        headers: one a column.
        rows: cells, shown with `str`; a line break in a cell becomes a space.
        align: one letter a column, `l` (left) or `r` (right); columns without a letter are left-aligned.
    """
    cells = [[" ".join(str(cell).split()) for cell in row] for row in (headers, *rows)]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the table has {len(headers)} columns: {row}")
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    align = align.ljust(len(headers), "l")
    lines = [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=False)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def scores_table(scores: Scores) -> str:
    """The scores of a circuit as plain text: its size, then a line for each score on each split, then the notes."""
    size = (
        f"{scores.circuit_edges:,} of {scores.graph_edges:,} edges "
        f"({share(scores.circuit_edges, scores.graph_edges)}), "
        f"{scores.circuit_heads:,} of {scores.graph_heads:,} heads"
    )
    headers = ("score", "split", "value", "interval", "n", "random circuits", "metric", "ablation")
    rows = [
        (
            score.name,
            score.split,
            score_value(score.name, score.value),
            span(score.name, score.low, score.high) or "-",
            f"{score.n:,}",
            controls_words(score) or "-",
            score.metric,
            score.ablation,
        )
        for score in scores.scores
    ]
    notes = [
        f"{score.name} ({score.split}): {score.note if is_number(score.value) else undefined(score.note)}"
        for score in scores.scores
        if score.note or not is_number(score.value)
    ]
    table = text_table(headers, rows, "llrrrlll")
    return "\n".join([size, "", table, *(["", *notes] if notes else [])]).replace("−", "-")


def controls_words(score: Score) -> str:
    """`median 3 % (1 % to 5 %) of 20`; nothing if there are no random circuits."""
    if not score.controls:
        return ""
    values = sorted(value for value in score.controls if value is not None and is_number(value))
    if not values:
        return f"undefined for all {len(score.controls):,}"
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    missing = len(score.controls) - len(values)
    words = f"median {score_value(score.name, median)} ({span(score.name, values[0], values[-1])}) of {len(values):,}"
    return words + (f", {missing:,} undefined" if missing else "")
