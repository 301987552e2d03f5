"""Minimality on the page, by node and by edge: a bar for each part, and which are idle."""

from functools import partial
from html import escape

import plotly.graph_objects as go

from circuitdisc.pages.drawing import GRID, INK, error_bars, frame
from circuitdisc.pages.scores.base import CIRCUIT, RANDOM, Part, ScoreData, ShownScore, Table, about, named, reach
from circuitdisc.pages.verdict import Verdict
from circuitdisc.scoring.minimality import Minimality
from circuitdisc.wording import is_number, number, percent, span

BARS_AT_MOST = 40
"""Parts in the figure of minimality: the least needed ones."""

_NAMES_AT_MOST = 30  # parts that fail, in a sentence

_LISTED_AT_MOST = 6  # parts in a sentence


def _tables(result: Minimality) -> list[Table]:
    return [(f"minimality by {result.by}, the least needed first (random control: the test of minimality)", result.table())]


def _tables_of_edges(result: Minimality) -> list[Table]:
    return [("minimality by edge, the least needed first", result.table())]


def _part(score: ScoreData, title: str = "Minimality", name: str = "minimality") -> Part:
    needs, by, threshold = score["needs"], score["by"], percent(score["threshold"])
    idle = [need["part"] for need in sorted(needs, key=lambda need: need["share"]) if not need["passes"]]
    lines = [f"{score['n_passed']:,} of {len(needs):,} {by}s change the metric by {threshold} of the full model's or more."]
    if idle:
        lines.append(f"Those that do not: {named(idle, _NAMES_AT_MOST)}.")
    shown = f" The {BARS_AT_MOST} least needed of {len(needs):,}." if len(needs) > BARS_AT_MOST else ""
    label = f"Change of the metric without each {by}, the least needed first, and the threshold of {threshold}."
    caption = (
        f"{about(score)}. The change when one {by} is taken out, too, in the absence of the set K in which it matters most (K "
        f"was chosen on the search examples).{shown} What random members do is the null of the test of minimality below."
    )
    return Part(title, about(score), tuple(lines), figures=((name, minimality_figure(score), label, caption),))


def _verdict(score: ScoreData) -> Verdict:
    needs, by, limit = score["needs"], score["by"], percent(score["threshold"])
    idle = [need["part"] for need in needs if not need["passes"]]
    least = score["threshold"] * abs(score["full"])
    unsure = [need["part"] for need in needs if need["passes"] and is_number(need["low"]) and need["low"] < least]
    change = "changes" if len(idle) == 1 else "change"
    line = (
        f"{len(idle) or 'None'} of its {len(needs):,} {by}s {change} the metric by less than {limit} of the full model's, "
        f"in the absence of the set K where it mattered most on the search examples{_listed(idle)}."
    )
    caveats = ()
    if unsure:
        many = len(unsure) > 1
        caveats = (
            f"{len(unsure):,} of its {len(needs):,} {by}s {'are' if many else 'is'} not clearly needed: the interval of "
            f"{'their changes' if many else 'the change'} reaches below {limit}{_listed(unsure)}.",
        )
    return Verdict((line,), caveats)


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > _LISTED_AT_MOST else ""
    return f": {', '.join(names[:_LISTED_AT_MOST])}{more}" if names else ""


def minimality_figure(score: ScoreData) -> go.Figure:
    """A bar for each part, the least needed at the top, and the threshold."""
    needs = sorted(score["needs"], key=lambda need: need["share"])[:BARS_AT_MOST]
    full, figure = abs(score["full"]), go.Figure()
    for passes, colour, words in ((False, CIRCUIT, "below the threshold"), (True, RANDOM, "needed")):
        rows = [need for need in needs if need["passes"] is passes]
        if not rows:
            continue
        figure.add_bar(
            y=[escape(need["part"]) for need in rows],
            x=[need["share"] for need in rows],
            orientation="h",
            marker={"color": colour},
            error_x=error_bars(
                [reach(need["change"], need["high"]) / full for need in rows],
                [reach(need["low"], need["change"]) / full for need in rows],
                color=GRID,
                thickness=1,
            ),
            text=None if passes else [f"  {percent(need['share'])}" for need in rows],
            textposition=None if passes else "outside",
            hovertext=[_need_hover(need) for need in rows],
            hoverinfo="text",
            name=words,
        )
    line = {"color": INK, "width": 1, "dash": "dot"}
    figure.add_vline(x=score["threshold"], line=line)
    entry = f"threshold, {percent(score['threshold'])}"
    figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=entry, showlegend=True)
    frame(figure, 120 + 19 * len(needs), left=90, top=62)
    order = [escape(need["part"]) for need in needs]
    figure.update_yaxes(categoryorder="array", categoryarray=order, autorange="reversed", showgrid=False, dtick=1)
    figure.update_xaxes(title_text=f"change, as a share of the full model's {escape(str(score['metric']))}", tickformat=".0%")
    figure.update_layout(barmode="overlay")
    return figure


def _need_hover(need: ScoreData) -> str:
    between = span("change", need["low"], need["high"])
    lines = [f"<b>{escape(need['part'])}</b>: {percent(need['share'])}", f"change {number(need['change'])}"]
    lines[-1] += f" {between}" if between else ""
    return "<br>".join([*lines, f"K ({escape(need['kind'])}): {escape(named(need['removed']))}"])


SHOWN = ShownScore(_part, _verdict, _tables)
OF_EDGES = ShownScore(partial(_part, title="Minimality of edges", name="minimality_edges"), _verdict, _tables_of_edges)
