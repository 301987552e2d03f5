"""Completeness on the page: circuit and model without each set K, and what the gaps say."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitdisc.pages.drawing import GRID, INK, KIND_COLOURS, error_bars, frame
from circuitdisc.pages.scores.base import (
    CIRCUIT,
    RANDOM,
    Part,
    ScoreData,
    ShownScore,
    Table,
    about,
    brackets,
    named,
    reach,
    valued,
)
from circuitdisc.pages.verdict import Verdict, as_sentences
from circuitdisc.scoring.chance import RANDOM_CIRCUITS
from circuitdisc.scoring.completeness import Completeness
from circuitdisc.wording import is_number, number, percent, span

COMPLETE = 0.1
"""Of the full model's metric: a circuit with no larger gap is called complete."""

_REMOVED_AT_MOST = 4

_SETS = {  # kind of K -> colour, symbol, words
    "empty": (INK, "diamond", "K is empty"),
    "random": (RANDOM, "circle", "K is random"),
    "class": (KIND_COLOURS["v"], "square", "K is a class"),
    "greedy": (CIRCUIT, "triangle-up", "K is greedy"),
}


def _tables(result: Completeness) -> list[Table]:
    return [(f"completeness by {result.by}, sets K with the largest gaps", result.table())]


def _part(score: ScoreData) -> Part:
    worst, left, controls = score["worst"], score["complement"], score["controls"]
    gap = valued("gap", worst["value"], worst["low"], worst["high"])
    lines = [f"The largest gap is {gap}: K = {named(worst['removed'], 12)} ({worst['name']})."]
    if score["mean"] is not None:
        mean = valued("gap", score["mean"], score["mean_low"], score["mean_high"])
        beside = f"; of random circuits {', '.join(number(control['mean']) for control in controls)}" if controls else ""
        lines.append(f"The mean gap of random K is {mean}{beside}.")
    without = valued("faithfulness", left["value"], left["low"], left["high"])
    lines.append(f"Faithfulness of the model without the circuit: {without}{'; ' + left['note'] if left['note'] else ''}.")
    figure = completeness_figure(score)
    label = f"The metric of circuit and model without each of {len(score['gaps'])} sets K; on the dotted line there is no gap."
    beside = score.get("matched") or f"random circuits: {len(controls)}"
    caption = (
        f"{about(score)}. Each mark is one set K of {score['by']}s, taken out of both; the farther from the dotted line, the "
        f"less complete. Right: the same for {beside}."
    )
    return Part("Completeness", about(score), tuple(lines), figures=(("completeness", figure, label, caption),))


def _verdict(score: ScoreData) -> Verdict:
    """Complete or not, against a share of the full model's metric, which is said; what random circuits do stands beside it."""
    worst, controls = score["worst"], [control["worst"] for control in score["controls"]]
    full = abs(next(gap["full"] for gap in score["gaps"] if gap["kind"] == "empty"))
    told, by = _removal(worst), _interval(worst)
    sets = f"the most of {len(score['gaps']):,} sets tried"
    if full == 0:
        lines = [f"{told[0].upper()}{told[1:]}{by}, {sets}."]
    else:
        yardstick = (
            f"{percent(worst['value'] / full)} of the model's {number(full)}, where up to {percent(COMPLETE)} is complete"
        )
        lines = [f"{_word(worst, COMPLETE * full)}: {told}{by}, {sets} ({yardstick})."]
    caveats = []
    own = max((gap["value"] for gap in score["gaps"] if gap["kind"] == "random"), default=None)
    as_good = 0 if own is None else sum(gap <= own for gap in controls)
    if as_good:
        caveats.append(
            f"With random sets taken out, {as_good:,} of {len(controls):,} {RANDOM_CIRCUITS} come apart from the model no "
            "farther than it does: so far completeness is no merit of this circuit."
        )
    rest = score["complement"]
    if is_number(rest["value"]):
        lines.append(
            f"The model without the circuit has a faithfulness of {percent(rest['value'])}"
            f"{brackets(span('faithfulness', rest['low'], rest['high']))}."
        )
        if is_number(rest["low"]) and rest["low"] > 0:
            caveats.append("Something outside the circuit does part of the task by itself.")
    return Verdict(tuple(lines), (*caveats, *as_sentences([rest["note"] or ""])))


def _word(worst: ScoreData, limit: float) -> str:
    low, high = (worst[end] if is_number(worst[end]) else worst["value"] for end in ("low", "high"))
    return "Complete" if high <= limit else "Not complete" if low > limit else "Not clearly complete"


def _removal(worst: ScoreData) -> str:
    names = [*worst["removed"][:_REMOVED_AT_MOST], *(["more"] if len(worst["removed"]) > _REMOVED_AT_MOST else [])]
    removed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    by = number(worst["value"])
    return f"removing {removed} separates it from the model by {by}" if names else f"it lies {by} from the model as it is"


def _interval(score: ScoreData) -> str:
    return brackets(span("gap", score["low"], score["high"]))


# --- the figure -------------------------------------------------------------------------------------------------------


def completeness_figure(score: ScoreData) -> go.Figure:
    """Left: the circuit without K over the model without K; right: gaps of random K beside those of random circuits."""
    controls, random = score["controls"], [gap for gap in score["gaps"] if gap["kind"] == "random"]
    beside = bool(random)
    figure = make_subplots(rows=1, cols=1 + beside, column_widths=[0.64, 0.36] if beside else None, horizontal_spacing=0.13)
    ends = _ends([gap[of] for gap in score["gaps"] for of in ("circuit", "full")])
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GRID, "dash": "dot"}, hoverinfo="skip", name="no gap", row=1, col=1
    )
    for kind, (colour, symbol, words) in _SETS.items():
        _add_sets(figure, [gap for gap in score["gaps"] if gap["kind"] == kind], colour, symbol, words)
    _name_worst(figure, score["worst"], ends)
    metric = escape(str(score["metric"]))
    figure.update_xaxes(title_text=f"{metric} of the model without K", range=ends, row=1, col=1)
    figure.update_yaxes(title_text=f"{metric} of the circuit without K", range=ends, row=1, col=1)
    if beside:
        _add_gaps(figure, score, [gap["value"] for gap in random], controls)
    frame(figure, 470, top=62)
    return figure


def _ends(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 1.0
    return [low - room, high + room]


def _add_sets(figure: go.Figure, gaps: Sequence[ScoreData], colour: str, symbol: str, words: str) -> None:
    if not gaps:
        return
    hover = [
        f"{escape(gap['name'])}: {escape(named(gap['removed']))}<br>gap {number(gap['value'])}"
        + (f" {between}" if (between := span("gap", gap["low"], gap["high"])) else "")
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


def _name_worst(figure: go.Figure, worst: ScoreData, ends: Sequence[float]) -> None:
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


def _add_gaps(figure: go.Figure, score: ScoreData, random: Sequence[float], controls: Sequence[Any]) -> None:
    figure.add_scatter(
        x=["mean", "largest"],
        y=[score["mean"], max(random)],
        mode="markers",
        marker={"size": 13, "symbol": "diamond", "color": CIRCUIT, "line": {"color": "#FFFFFF", "width": 1}},
        error_y=error_bars(
            [reach(score["mean"], score["mean_high"]), 0], [reach(score["mean_low"], score["mean"]), 0], color=CIRCUIT
        ),
        hovertext=[f"this circuit: {number(score['mean'])}", f"this circuit: {number(max(random))}"],
        hoverinfo="text",
        name="this circuit",
        row=1,
        col=2,
    )
    for name, of in (("mean", "mean"), ("largest", "worst")):
        figure.add_scatter(
            x=[name] * len(controls),
            y=[control[of] for control in controls],
            mode="markers",
            marker={"size": 9, "color": RANDOM, "opacity": 0.55, "symbol": "circle-open", "line": {"width": 2}},
            hovertext=[f"random circuit: {number(control[of])}" for control in controls],
            hoverinfo="text",
            name="random circuits",
            showlegend=of == "mean" and bool(controls),
            row=1,
            col=2,
        )
    top = max(max(random), score["mean_high"] or 0.0, *(control["worst"] for control in controls)) or 1.0
    figure.update_xaxes(title_text=f"gap over {len(random)} random K", range=[-0.6, 1.6], showgrid=False, row=1, col=2)
    figure.update_yaxes(title_text="gap", range=[-0.06 * top, 1.06 * top], row=1, col=2)


SHOWN = ShownScore(_part, _verdict, _tables)
