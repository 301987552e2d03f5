"""Curves along a ladder: a place for each checkpoint, a line for each thing that is followed, with its intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from circuitdisc.pages.drawing import INK, KIND_COLOURS, error_bars, frame
from circuitdisc.wording import interval, is_number, number, percent

COLOURS = (*(KIND_COLOURS[kind] for kind in ("logits", "q", "v", "k", "mlp")), "#56B4E9", INK)
"""Seven that colour-blind people tell apart (Okabe and Ito); lines after the seventh have another dash."""
DASHES = ("solid", "dash", "dot")
FOLLOWED = 6
"""Heads that are drawn one by one."""


@dataclass(frozen=True)
class Line:
    """What is followed.

    Args:
        values: one for each checkpoint; None: it is not known there.
        low, high: ends of their intervals; empty without.
    """

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def ladder_curves(checkpoints: Sequence[str], lines: Sequence[Line], what: str, share: bool = False) -> go.Figure:
    """The lines over the checkpoints, in their order.

    Args:
        what: is measured, for the axis.
        share: the values are shares, shown as percentages.
    """
    figure, words = go.Figure(), percent if share else number
    places = list(range(len(checkpoints)))
    for at, line in enumerate(lines):
        ends = list(zip(line.low, line.high, strict=True)) or [(None, None)] * len(places)
        known = [is_number(value) for value in line.values]
        reach = [
            (float(high or 0.0) - float(value or 0.0), float(value or 0.0) - float(low or 0.0))
            if is_number(value) and is_number(low) and is_number(high)
            else (0.0, 0.0)
            for value, (low, high) in zip(line.values, ends, strict=True)
        ]
        hover = [
            f"<b>{escape(line.name)}</b> in {escape(name)}<br>{words(value)} {interval(low, high, words)}"
            for name, value, (low, high) in zip(checkpoints, line.values, ends, strict=True)
        ]
        style = {"color": COLOURS[at % len(COLOURS)], "width": 2, "dash": DASHES[at // len(COLOURS) % len(DASHES)]}
        figure.add_scatter(
            x=places,
            y=[value if there else None for value, there in zip(line.values, known, strict=True)],
            mode="lines+markers",
            line=style,
            error_y=error_bars([up for up, _ in reach], [down for _, down in reach], color=style["color"]),
            hovertext=hover,
            hoverinfo="text",
            name=escape(line.name),
        )
    frame(figure, 380 + 22 * (len(lines) // 5), top=50 + 22 * (len(lines) // 5))
    figure.update_xaxes(
        tickvals=places, ticktext=[_short(name) for name in checkpoints], showgrid=False, range=[-0.3, len(places) - 0.7]
    )
    figure.update_yaxes(title_text=escape(what), tickformat=".0%" if share else None)
    return figure


def _short(name: str) -> str:
    """The end of a checkpoint's name: of a folder's path what differs."""
    return escape(name if len(name) <= 24 else f"…{name[-23:]}")
