"""Figures of a judgement: completeness, minimality, faithfulness over size, and how often each part is found again.

All are made from what `judgement.json` and `stability.json` hold.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitdisc.pages.drawing import GRID, INK, KIND_COLOURS, plain_axes, plain_layout
from circuitdisc.wording import number, percent, span

BARS_AT_MOST = 40
"""Parts in the figure of minimality: the least needed ones."""

_CIRCUIT, _RANDOM = KIND_COLOURS["logits"], KIND_COLOURS["q"]
_BAND = "rgba(0,114,178,0.18)"
_SETS = {  # kind of K -> colour, symbol, words
    "empty": (INK, "diamond", "K is empty"),
    "random": (_RANDOM, "circle", "K is random"),
    "class": (KIND_COLOURS["v"], "square", "K is a class"),
    "greedy": (_CIRCUIT, "triangle-up", "K is greedy"),
}
_WIDTH = 1000
_NAMED_AT_MOST = 5  # parts of one set in a label


def named(parts: Sequence[str], at_most: int = _NAMED_AT_MOST) -> str:
    """`a0.h1, m2`; nothing for the empty set, and a long one is cut."""
    shown = ", ".join(parts[:at_most])
    return (shown + (f" and {len(parts) - at_most} more" if len(parts) > at_most else "")) or "nothing"


# --- completeness -----------------------------------------------------------------------------------------------------


def completeness_figure(found: Mapping[str, Any]) -> go.Figure:
    """Left: the circuit without K over the model without K; right: gaps of random K beside those of random circuits."""
    controls, random = found["controls"], [gap for gap in found["gaps"] if gap["kind"] == "random"]
    beside = bool(random)
    figure = make_subplots(rows=1, cols=1 + beside, column_widths=[0.64, 0.36] if beside else None, horizontal_spacing=0.13)
    ends = _ends([gap[of] for gap in found["gaps"] for of in ("circuit", "full")])
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GRID, "dash": "dot"}, hoverinfo="skip", name="no gap", row=1, col=1
    )
    for kind, (colour, symbol, words) in _SETS.items():
        _add_sets(figure, [gap for gap in found["gaps"] if gap["kind"] == kind], colour, symbol, words)
    _name_worst(figure, found["worst"], ends)
    metric = escape(str(found["metric"]))
    figure.update_xaxes(title_text=f"{metric} of the model without K", range=ends, row=1, col=1)
    figure.update_yaxes(title_text=f"{metric} of the circuit without K", range=ends, row=1, col=1)
    if beside:
        _add_gaps(figure, found, [gap["value"] for gap in random], controls)
    _frame(figure, 470, left=80)
    return figure


def _ends(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 1.0
    return [low - room, high + room]


def _add_sets(figure: go.Figure, gaps: Sequence[Mapping[str, Any]], colour: str, symbol: str, words: str) -> None:
    if not gaps:
        return
    hover = [
        f"{escape(gap['name'])}: {escape(named(gap['removed']))}<br>gap {number(gap['value'])}"
        + (f" ({between})" if (between := span("gap", gap["low"], gap["high"])) else "")
        for gap in gaps
    ]
    figure.add_scatter(
        x=[gap["full"] for gap in gaps],
        y=[gap["circuit"] for gap in gaps],
        mode="markers",
        marker={"size": 11, "color": colour, "symbol": symbol, "opacity": 0.8, "line": {"color": "#FFFFFF", "width": 1}},
        hovertext=hover,
        hoverinfo="text",
        name=words,
        row=1,
        col=1,
    )


def _name_worst(figure: go.Figure, worst: Mapping[str, Any], ends: Sequence[float]) -> None:
    """An arrow to the largest gap, its label on the side where there is room, and off the dotted line."""
    at, below = (worst["full"] - ends[0]) / (ends[1] - ends[0]), worst["circuit"] <= worst["full"]
    beside = at < 0.5 if below else at >= 0.5  # else under it, or above it
    side = "left" if below else "right"
    anchor = side if beside else "right" if at > 0.85 else "left" if at < 0.15 else "center"
    sign = 1 if below else -1
    removed = named(worst["removed"], 3)
    figure.add_annotation(
        x=worst["full"],
        y=worst["circuit"],
        text=f"largest gap, {number(worst['value'])}:<br>K = {escape(removed)}",
        showarrow=True,
        arrowcolor=GRID,
        ax=50 * sign if beside else 0,
        ay=14 * sign if beside else 56 * sign,
        xanchor=anchor,
        align="left",
        row=1,
        col=1,
    )


def _add_gaps(figure: go.Figure, found: Mapping[str, Any], random: Sequence[float], controls: Sequence[Any]) -> None:
    figure.add_scatter(
        x=["mean", "largest"],
        y=[found["mean"], max(random)],
        mode="markers",
        marker={"size": 13, "symbol": "diamond", "color": _CIRCUIT, "line": {"color": "#FFFFFF", "width": 1}},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [_reach(found["mean"], found["mean_high"]), 0],
            "arrayminus": [_reach(found["mean_low"], found["mean"]), 0],
            "color": _CIRCUIT,
        },
        hovertext=[f"this circuit: {number(found['mean'])}", f"this circuit: {number(max(random))}"],
        hoverinfo="text",
        name="this circuit",
        row=1,
        col=2,
    )
    for name, of in (("mean", "mean"), ("largest", "worst")):
        figure.add_scatter(
            x=[name] * len(controls),
            y=[one[of] for one in controls],
            mode="markers",
            marker={"size": 9, "color": _RANDOM, "opacity": 0.55, "symbol": "circle-open", "line": {"width": 2}},
            hovertext=[f"random circuit: {number(one[of])}" for one in controls],
            hoverinfo="text",
            name="random circuits",
            showlegend=of == "mean" and bool(controls),
            row=1,
            col=2,
        )
    top = max(max(random), found["mean_high"] or 0.0, *(one["worst"] for one in controls)) or 1.0
    figure.update_xaxes(title_text=f"gap over {len(random)} random K", range=[-0.6, 1.6], showgrid=False, row=1, col=2)
    figure.update_yaxes(title_text="gap", range=[-0.06 * top, 1.06 * top], row=1, col=2)


def _reach(low: float | None, high: float | None) -> float:
    return 0.0 if low is None or high is None else high - low


# --- minimality -------------------------------------------------------------------------------------------------------


def minimality_figure(found: Mapping[str, Any]) -> go.Figure:
    """A bar for each part, the least needed at the top, and the threshold."""
    needs = sorted(found["needs"], key=lambda need: need["share"])[:BARS_AT_MOST]
    full, figure = abs(found["full"]), go.Figure()
    for passes, colour, words in ((False, _CIRCUIT, "below the threshold"), (True, _RANDOM, "needed")):
        rows = [need for need in needs if need["passes"] is passes]
        if not rows:
            continue
        figure.add_bar(
            y=[escape(need["part"]) for need in rows],
            x=[need["share"] for need in rows],
            orientation="h",
            marker={"color": colour},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_reach(need["change"], need["high"]) / full for need in rows],
                "arrayminus": [_reach(need["low"], need["change"]) / full for need in rows],
                "color": GRID,
                "thickness": 1,
            },
            text=None if passes else [f"  {percent(need['share'])}" for need in rows],
            textposition=None if passes else "outside",
            hovertext=[_need_hover(need) for need in rows],
            hoverinfo="text",
            name=words,
        )
    line = {"color": INK, "width": 1, "dash": "dot"}
    figure.add_vline(x=found["threshold"], line=line)
    entry = f"threshold, {percent(found['threshold'])}"
    figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=entry, showlegend=True)
    _frame(figure, 120 + 19 * len(needs), left=90)
    order = [escape(need["part"]) for need in needs]
    figure.update_yaxes(categoryorder="array", categoryarray=order, autorange="reversed", showgrid=False, dtick=1)
    figure.update_xaxes(title_text=f"change, as a share of the full model's {escape(str(found['metric']))}", tickformat=".0%")
    figure.update_layout(barmode="overlay")
    return figure


def _need_hover(need: Mapping[str, Any]) -> str:
    between = span("change", need["low"], need["high"])
    lines = [f"<b>{escape(need['part'])}</b>: {percent(need['share'])}", f"change {number(need['change'])}"]
    lines[-1] += f" ({between})" if between else ""
    return "<br>".join([*lines, f"K ({escape(need['kind'])}): {escape(named(need['removed']))}"])


# --- faithfulness over size -------------------------------------------------------------------------------------------


def size_figure(found: Mapping[str, Any]) -> go.Figure | None:
    """Faithfulness over size: on a logarithmic axis, with intervals and random circuits; and with the areas as they are summed.

    None where faithfulness is undefined.
    """
    points = [point for point in found["points"] if point["faithfulness"] is not None]
    if not points:
        return None
    titles = ("size on a logarithmic axis", "the areas, as they are summed")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles)
    x = [point["share"] for point in points]
    f = [point["faithfulness"] for point in points]
    _add_random_curves(figure, x, points)
    _add_area(figure, x, f, [0.0] * len(f), "rgba(213,94,0,0.20)", "CPR: area under f")
    _add_area(figure, x, f, [1.0] * len(f), "rgba(138,144,153,0.35)", "CMD: area between f and 1")
    for column in (1, 2):
        figure.add_scatter(
            x=x,
            y=f,
            mode="lines+markers",
            line={"color": _CIRCUIT, "width": 2},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_reach(point["faithfulness"], point["high"]) for point in points],
                "arrayminus": [_reach(point["low"], point["faithfulness"]) for point in points],
                "visible": column == 1,
            },
            hovertext=[_point_hover(point, found["graph_edges"]) for point in points],
            hoverinfo="text",
            name="f of this algorithm's circuits",
            showlegend=column == 1,
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=[x[0], x[-1]],
            y=[1, 1],
            mode="lines",
            line={"color": GRID, "width": 1, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=column,
        )
    _frame(figure, 430, left=80, top=92)
    figure.update_xaxes(title_text="share of the graph's edges")
    ticks = [share for share in (0.001, 0.01, 0.1, 1.0) if x[0] <= share <= x[-1]]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[percent(share) for share in ticks], row=1, col=1)
    figure.update_xaxes(tickformat=".0%", row=1, col=2)
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="faithfulness f", row=1, col=1)
    figure.update_annotations(font={"size": 12})
    return figure


def _point_hover(point: Mapping[str, Any], graph_edges: int) -> str:
    between = span("faithfulness", point["low"], point["high"])
    size = f"{point['edges']:,} of {graph_edges:,} edges ({percent(point['share'])} asked for)"
    return f"{size}<br>f = {percent(point['faithfulness'])}" + (f" ({between})" if between else "")


def _add_random_curves(figure: go.Figure, x: Sequence[float], points: Sequence[Mapping[str, Any]]) -> None:
    drawn = [[value for value in point["controls"] if value is not None] for point in points]
    if not all(drawn):
        return
    low, high = [min(values) for values in drawn], [max(values) for values in drawn]
    for column in (1, 2):
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=_BAND,
            line={"width": 1, "color": _RANDOM},
            mode="lines",
            hoverinfo="skip",
            name=f"{len(drawn[0])} random curves, lowest to highest",
            showlegend=column == 1,
            row=1,
            col=column,
        )


def _add_area(figure: go.Figure, x: Sequence[float], f: Sequence[float], to: Sequence[float], colour: str, name: str) -> None:
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*f, *reversed(to)],
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=name,
        row=1,
        col=2,
    )


# --- stability --------------------------------------------------------------------------------------------------------


def stability_figure(shares: Mapping[str, float], kept: frozenset[str], kind: str, n: int) -> go.Figure | None:
    """The share of samples in which each part was found, the most frequent first; this run's own parts apart.

    Args:
        shares: part -> share.
        kept: the parts of this run's circuit.
        kind: `edges` or `heads`.
        n: samples.
    """
    if not shares:
        return None
    order = sorted(shares, key=lambda name: -shares[name])
    figure = go.Figure()
    groups = ((True, _CIRCUIT, f"{kind} of this circuit"), (False, _RANDOM, f"{kind} that it lacks"))
    for own, colour, words in groups:
        at = [index for index, name in enumerate(order) if (name in kept) is own]
        if at:
            figure.add_bar(
                x=[index + 1 for index in at],
                y=[shares[order[index]] for index in at],
                marker={"color": colour, "line": {"width": 0}},
                hovertext=[f"{escape(order[index])}: {percent(shares[order[index]])} of {n} samples" for index in at],
                hoverinfo="text",
                name=f"{words}: {len(at):,}",
            )
    _frame(figure, 340, left=80)
    figure.update_layout(barmode="overlay", bargap=0.1)
    if len(order) <= BARS_AT_MOST:
        words = [escape(name) for name in order]
        figure.update_xaxes(tickvals=list(range(1, len(order) + 1)), ticktext=words, tickangle=-60)
    else:
        figure.update_xaxes(title_text=f"{kind}, the most frequent first")
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(title_text=f"share of {n} samples", tickformat=".0%", range=[0, 1.02])
    return figure


def _frame(figure: go.Figure, height: int, left: int, top: int = 62) -> None:
    figure.update_layout(**plain_layout(_WIDTH, height), margin={"l": left, "r": 30, "t": top, "b": 56})
    plain_axes(figure)
    if top > 62:  # room for the panels' titles below the legend
        figure.update_layout(legend_y=1.09)
