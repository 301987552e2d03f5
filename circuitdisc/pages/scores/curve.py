"""Faithfulness over size on the page: the curve, the areas under it, and what they say."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitdisc.pages.drawing import GRID, error_bars, frame
from circuitdisc.pages.scores.base import CIRCUIT, RANDOM, Part, ScoreData, ShownScore, Table, about, brackets, reach
from circuitdisc.pages.verdict import MARGIN, Verdict, as_sentences
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.chance import defined
from circuitdisc.scoring.curves import Curve
from circuitdisc.wording import is_number, number, percent, span

_BAND = "rgba(0,114,178,0.18)"

_AREAS = {
    "cpr": "CPR: area under f, higher keeps more",
    "cmd": "CMD: area between f and 1, 0 is best",
    "overshoot": "overshoot: how far f passes 1",
}


def _tables(result: Curve) -> list[Table]:
    areas = [{"area": area.name, **_value(area)} for area in (result.cpr, result.cmd, result.overshoot)]
    return [("faithfulness over size", result.table()), ("areas", areas)]


def _value(area: Score) -> dict[str, Any]:
    controls = [value for value in area.controls if value is not None]
    random = sum(controls) / len(controls) if controls else None
    return {"value": area.value, "low": area.low, "high": area.high, "n": area.n, "random": random}


def _part(score: ScoreData) -> Part:
    rows = tuple(_area_row(score[name], words) for name, words in _AREAS.items())
    figure = size_figure(score)
    n_random = len(score["points"][0]["controls"])
    caption = (
        f"{about(score)}. Circuits of growing size from this run's edge scores, and {n_random} curves from random scores "
        "chosen in the same way."
    )
    figures = () if figure is None else (("sizes", figure, "Faithfulness over size; the table has the areas.", caption),)
    headers = ("Area", "Value", "Interval", "n", "Random curves")
    note = f"{about(score)}. CMD is the one to trust where f passes 100 %"
    return Part("Faithfulness at every size", about(score), (), headers, rows, note, figures)


def _area_row(score: ScoreData, words: str) -> tuple[str, ...]:
    controls = ", ".join(number(value) for value in score["controls"] if value is not None)
    value = number(score["value"]) if score["value"] is not None else f"undefined: {score['note']}"
    return words, value, span("area", score["low"], score["high"]) or "–", f"{score['n']:,}", controls or "–"


def _verdict(score: ScoreData) -> Verdict:
    return curve_verdict(score["cmd"], score["overshoot"])


def curve_verdict(cmd: ScoreData, overshoot: ScoreData) -> Verdict:
    """What the areas over all sizes say.

    Args:
        cmd, overshoot: the two scores, as mappings.
    """
    if not is_number(cmd["value"]):
        return Verdict((f"Over all sizes CMD is undefined: {cmd['note']}.",))
    random, value = defined(cmd["controls"]), float(cmd["value"])
    beside = f"; curves of random scores have {number(min(random))} to {number(max(random))}" if random else ""
    between = brackets(span("cmd", cmd["low"], cmd["high"]))
    line = f"Over circuits of all sizes the distance from the full model (CMD, 0 is best) is {number(value)}{between}{beside}."
    caveats = []
    if as_good := sum(drawn <= value for drawn in random):
        caveats.append(f"{as_good:,} of {len(random):,} curves of random scores lie as near to the full model, by CMD.")
    if is_number(overshoot["value"]) and overshoot["value"] > MARGIN:
        caveats.append(
            f"At some size the circuit passes the full model, with a faithfulness of {percent(1 + overshoot['value'])}: CPR "
            "counts that as a merit, CMD does not."
        )
    return Verdict((line,), (*caveats, *as_sentences([cmd["note"] or ""])))


def size_figure(score: ScoreData) -> go.Figure | None:
    """Faithfulness over size: on a logarithmic axis, with intervals and random circuits; and with the areas as they are summed.

    None where faithfulness is undefined.
    """
    points = [point for point in score["points"] if point["faithfulness"] is not None]
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
            line={"color": CIRCUIT, "width": 2},
            error_y=error_bars(
                [reach(point["faithfulness"], point["high"]) for point in points],
                [reach(point["low"], point["faithfulness"]) for point in points],
                visible=column == 1,
            ),
            hovertext=[_point_hover(point, score["graph_edges"]) for point in points],
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
    frame(figure, 430, top=92)
    figure.update_layout(legend_y=1.09)  # room for the panels' titles below the legend
    figure.update_xaxes(title_text="share of the graph's edges")
    ticks = [share for share in (0.001, 0.01, 0.1, 1.0) if x[0] <= share <= x[-1]]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[percent(share) for share in ticks], row=1, col=1)
    figure.update_xaxes(tickformat=".0%", row=1, col=2)
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="faithfulness f", row=1, col=1)
    figure.update_annotations(font={"size": 12})
    return figure


def _point_hover(point: ScoreData, graph_edges: int) -> str:
    between = span("faithfulness", point["low"], point["high"])
    size = f"{point['edges']:,} of {graph_edges:,} edges ({percent(point['share'])} asked for)"
    return f"{size}<br>f = {percent(point['faithfulness'])}" + (f" {between}" if between else "")


def _add_random_curves(figure: go.Figure, x: Sequence[float], points: Sequence[ScoreData]) -> None:
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
            line={"width": 1, "color": RANDOM},
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


SHOWN = ShownScore(_part, _verdict, _tables)
