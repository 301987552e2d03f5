"""The page's smaller figures: the circuit beside its random controls, and the course of the search."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitdisc.pages.drawing import GRID, INK, KIND_COLOURS, error_bars, frame
from circuitdisc.scoring.base import Score, Scores
from circuitdisc.wording import SHARES, SPLIT_WORDS, is_number, score_value, span

CIRCUIT_COLOUR, RANDOM_COLOUR = KIND_COLOURS["logits"], KIND_COLOURS["q"]
_DOTS_AT_MOST = 1500  # decisions that are drawn one by one


def controls_figure(scores: Scores) -> go.Figure | None:
    """Each score of the circuit, with its interval, among the same score of random circuits; None without controls.

    Held-out examples if any score has controls there, else the search examples. Every score has an axis of its own.
    """
    split, shown = _with_controls(scores)
    if not shown:
        return None
    figure = make_subplots(rows=len(shown), cols=1, vertical_spacing=0.45 / len(shown))
    for row, score in enumerate(shown, start=1):
        _add_controls(figure, score, row)
    tall = len(shown)
    frame(figure, 70 + 92 * tall, 170, top=66, bottom=50)
    figure.update_yaxes(range=[-1, 1], zeroline=False, showgrid=False, tickvals=[0])
    figure.update_layout(title={"text": f"Circuit and random circuits on {SPLIT_WORDS.get(split, escape(split))}"})
    return figure


def _with_controls(scores: Scores) -> tuple[str, list[Score]]:
    for split in ("heldout", "train"):
        shown = [
            score
            for score in scores.scores
            if score.split == split and is_number(score.value) and any(is_number(value) for value in score.controls)
        ]
        if shown:
            return split, shown
    return "heldout", []


def _add_controls(figure: go.Figure, score: Score, row: int) -> None:
    values = [value for value in score.controls if value is not None and is_number(value)]
    golden = (math.sqrt(5) - 1) / 2  # spreads the dots evenly without randomness
    figure.add_scatter(
        x=values,
        y=[0.9 * ((golden * index) % 1) - 0.45 for index in range(len(values))],
        mode="markers",
        marker={"size": 8, "color": RANDOM_COLOUR, "opacity": 0.55},
        hovertext=[f"random circuit: {score_value(score.name, value)}" for value in values],
        hoverinfo="text",
        name="random circuits of the same size and kind",
        legendgroup="random",
        showlegend=row == 1,
        row=row,
        col=1,
    )
    value = score.value or 0.0
    between = span(score.name, score.low, score.high)
    figure.add_scatter(
        x=[value],
        y=[0],
        mode="markers",
        marker={"size": 13, "symbol": "diamond", "color": CIRCUIT_COLOUR, "line": {"color": "#FFFFFF", "width": 1}},
        error_x=error_bars(
            [(score.high or 0.0) - value], [value - (score.low or 0.0)], visible=bool(between), color=CIRCUIT_COLOUR
        ),
        hovertext=[f"this circuit: {score_value(score.name, value)}" + (f"<br>{between}" if between else "")],
        hoverinfo="text",
        name="this circuit, with its interval",
        legendgroup="circuit",
        showlegend=row == 1,
        row=row,
        col=1,
    )
    label = escape(score.name) if len(score.name) <= 22 else escape(score.name[:21]) + "…"
    figure.update_yaxes(ticktext=[f"{label}  "], row=row, col=1)
    if score.name in SHARES:
        figure.update_xaxes(tickformat=".0%", row=row, col=1)
        figure.add_vline(x=1, line={"color": GRID, "width": 1, "dash": "dot"}, row=row, col=1)  # type: ignore[arg-type]  # plotly annotates row as str


def search_figure(trace: Sequence[Mapping[str, Any]], metric: str = "") -> go.Figure | None:
    """The metric at each decision of a search, and how many edges or heads were kept by then.

    Args:
        trace: the decisions in order, with any of the keys `edge` or `head`, `kept`, `metric`, `layer`.
        metric: the metric's name, for the axis.
    """
    if not trace:
        return None
    values = [_float(step.get("metric")) for step in trace]
    decided = any("kept" in step for step in trace)
    has_metric = any(value is not None for value in values)
    if not (decided or has_metric):
        return None
    panels = decided + has_metric
    figure = make_subplots(rows=panels, cols=1, shared_xaxes=True, vertical_spacing=0.1)
    if has_metric:
        _add_metric(figure, trace, values)
        figure.update_yaxes(title_text=escape(metric) or "metric", row=1, col=1)
    if decided:
        _add_counts(figure, trace, panels)
    frame(figure, 90 + 200 * panels, 80, top=66, bottom=50)
    figure.update_xaxes(title_text="decision", row=panels, col=1)
    figure.update_layout(title={"text": f"{len(trace):,} decisions in the order in which they were taken"})
    return figure


def _add_metric(figure: go.Figure, trace: Sequence[Mapping[str, Any]], values: Sequence[float | None]) -> None:
    at = np.arange(1, len(values) + 1)
    gaps = np.array([np.nan if value is None else value for value in values])
    figure.add_scatter(
        x=at,
        y=gaps,
        mode="lines",
        line={"color": GRID, "width": 1},
        connectgaps=True,  # some decisions are taken without a run
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )
    if len(values) > _DOTS_AT_MOST:
        return
    hover = np.array([_step_hover(step) for step in trace])
    for kept, colour, symbol, word in (
        (True, CIRCUIT_COLOUR, "circle", "kept"),
        (False, RANDOM_COLOUR, "circle-open", "cut"),
        (None, INK, "circle", "not decided"),
    ):
        chosen = np.array(
            [_kept(step) is kept and value is not None for step, value in zip(trace, values, strict=True)], dtype=bool
        )
        if chosen.any():
            figure.add_scatter(
                x=at[chosen],
                y=gaps[chosen],
                mode="markers",
                marker={"size": 5, "color": colour, "symbol": symbol},
                hovertext=hover[chosen],
                hoverinfo="text",
                name=f"metric where {word}",
                row=1,
                col=1,
            )


def _add_counts(figure: go.Figure, trace: Sequence[Mapping[str, Any]], row: int) -> None:
    thing = "heads" if any("head" in step for step in trace) else "edges"
    kept = np.array([_kept(step) is True for step in trace])
    at = np.arange(1, len(kept) + 1)
    figure.add_scatter(
        x=at,
        y=np.cumsum(kept),
        mode="lines",
        line={"color": CIRCUIT_COLOUR, "width": 2, "shape": "hv"},
        hovertemplate="%{y:,} kept of %{x:,} decided<extra></extra>",
        showlegend=False,
        row=row,
        col=1,
    )
    figure.update_yaxes(title_text=f"{thing} kept", rangemode="tozero", row=row, col=1)


def _step_hover(step: Mapping[str, Any]) -> str:
    word = {True: "kept", False: "cut", None: ""}[_kept(step)]
    name = escape(str(step.get("edge", step.get("head", ""))))
    value = _float(step.get("metric"))
    layer = f"layer {escape(str(step['layer']))}" if "layer" in step else ""
    return "<br>".join(part for part in (f"{name} {word}".strip(), score_value("", value), layer) if part)


def _kept(step: Mapping[str, Any]) -> bool | None:
    return None if step.get("kept") is None else bool(step["kept"])


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
