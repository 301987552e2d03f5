"""A comparison of two circuits: as tables for the terminal, and as a page that opens offline."""

from collections.abc import Iterator, Mapping
from html import escape
from os import PathLike
from pathlib import Path

import plotly.graph_objects as go

from circuitdisc.circuit import kept_heads
from circuitdisc.files import write_text
from circuitdisc.graph import Node
from circuitdisc.pages.drawing import GRID, KIND_COLOURS, plain_layout
from circuitdisc.pages.explorer import as_json, comparison_data
from circuitdisc.pages.layout import Layout
from circuitdisc.pages.page import picture, render
from circuitdisc.pages.tables import controls_words, text_table
from circuitdisc.pages.verdict import (
    Verdict,
    as_sentences,
    circuit_caveats,
    headline_score,
    may_be_zero,
    plain_text,
    score_caveats,
    within_noise,
)
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.chance import ALPHA, chance_caveats
from circuitdisc.scoring.comparison import Comparison, Crossing
from circuitdisc.scoring.intervene import Effect
from circuitdisc.scoring.overlap import OverlapChance
from circuitdisc.wording import ACCURACIES, number, percent, score_value, span, undefined

OVERLAP_HEADERS = (
    "of",
    "all",
    "in A",
    "in B",
    "shared",
    "Jaccard",
    "precision",
    "recall",
    "by chance",
    "p",
    "same layers",
    "p",
)
CROSSING_HEADERS = ("circuit", "task", "score", "value", "interval", "n", "random circuits", "ablation")
EFFECT_HEADERS = ("task", "metric", "before", "after", "difference", "interval", "n", "other heads", "p")
_CROSSED = ("faithfulness", *ACCURACIES)  # the scores that are shown; compare.json has all
_SHARED = "both"
_COLOURS = {"A": KIND_COLOURS["q"], "B": KIND_COLOURS["k"], _SHARED: KIND_COLOURS["v"], "": "#FFFFFF"}
_INK = {"A": "#FFFFFF", "B": "#000000", _SHARED: "#FFFFFF", "": GRID}
_WORDS = {"A": "only in A", "B": "only in B", _SHARED: "in both", "": "in neither"}
_LABEL_FROM = 30  # pixels: squares of this size carry their name

Row = tuple[str, ...]


# --- tables ---------------------------------------------------------------------------------------------------------------


def comparison_table(comparison: Comparison) -> str:
    """The whole comparison as plain text."""
    parts = [
        "\n".join(
            f"{label}  {side.task} in {side.model}, {side.algorithm}: {side.folder}" for label, side in comparison.sides.items()
        ),
        text_table(OVERLAP_HEADERS, overlap_rows(comparison), "lrrrrrrrrrrr"),
        f"heads in both: {' '.join(comparison.overlaps['heads'].shared) or 'none'}",
    ]
    if comparison.crossings:
        parts.append(text_table(CROSSING_HEADERS, crossing_rows(comparison), "lllrrrll"))
    if comparison.effects:
        parts += [
            f"changed at once: {changed_words(comparison)}",
            text_table(EFFECT_HEADERS, effect_rows(comparison), "llrrrrrlr"),
        ]
    return plain_text("\n\n".join([*parts, comparison_verdict(comparison).text]))


def overlap_rows(comparison: Comparison) -> list[Row]:
    """For heads, nodes and edges: sizes, number shared, shares, and both chances."""
    return [
        (
            overlap.kind,
            *(number(count) for count in (overlap.n_all, overlap.n_a, overlap.n_b, overlap.n_shared)),
            *(percent(share) if share is not None else "-" for share in (overlap.jaccard, overlap.precision, overlap.recall)),
            *_chance_cells(overlap.uniform),
            *_chance_cells(overlap.matched),
        )
        for overlap in comparison.overlaps.values()
    ]


def _chance_cells(chance: OverlapChance | None) -> tuple[str, str]:
    return ("-", "-") if chance is None else (number(chance.expected), number(chance.p_value))


def crossing_rows(comparison: Comparison) -> list[Row]:
    """Held-out faithfulness and accuracy of each circuit on each task."""
    return [_crossing_row(crossing, score) for crossing in comparison.crossings for score in _shown(crossing)]


def _shown(crossing: Crossing) -> Iterator[Score]:
    for score in crossing.scores.scores:
        if score.split == "heldout" and score.name in _CROSSED:
            yield score


def _crossing_row(crossing: Crossing, score: Score) -> Row:
    value = score_value(score.name, score.value) if score.value is not None else undefined(score.note)
    between, controls = span(score.name, score.low, score.high) or "-", controls_words(score) or "-"
    return crossing.circuit, crossing.task, score.name, value, between, number(score.n), controls, score.ablation


def effect_rows(comparison: Comparison) -> list[Row]:
    """For each task and metric: its mean before and after, and what the same change to other heads does."""
    return [_effect_row(label, effect) for label, effects in comparison.effects.items() for effect in effects]


def _effect_row(label: str, effect: Effect) -> Row:
    others = sorted(effect.controls)
    words = f"{_value(effect, others[0])} to {_value(effect, others[-1])} of {len(others)}" if others else "-"
    return (
        label,
        effect.metric,
        _value(effect, effect.before),
        _value(effect, effect.after),
        _value(effect, effect.difference),
        span(effect.metric, effect.low, effect.high) or "-",
        number(effect.n),
        words,
        number(effect.p_value) if effect.p_value is not None else "-",
    )


def _value(effect: Effect, value: float) -> str:
    return score_value(effect.metric, value)


def changed_words(comparison: Comparison) -> str:
    """What was done to the heads, once for all tasks: `a1.h0 a2.h3: output x 0`."""
    heads: dict[str, list[str]] = {}
    for intervention in next(iter(comparison.effects.values()))[0].interventions:
        heads.setdefault(intervention.change, []).append(intervention.head)
    return "; ".join(f"{' '.join(names)}: {change}" for change, names in heads.items())


# --- words ----------------------------------------------------------------------------------------------------------------


def comparison_verdict(comparison: Comparison) -> Verdict:
    """The result in one sentence, and all that speaks against believing it."""
    notes = [*(overlap.note for overlap in comparison.overlaps.values() if overlap.note), *comparison.notes]
    caveats = (
        *_overlap_caveats(comparison),
        *as_sentences(notes),
        *_crossing_caveats(comparison),
        *_effect_caveats(comparison),
    )
    sides = [f"{label}: {text}" for label, side in comparison.sides.items() for text in circuit_caveats(side.circuit)]
    return Verdict((headline(comparison),), tuple(dict.fromkeys((*caveats, *sides))))


def headline(comparison: Comparison) -> str:
    """The result in one sentence."""
    heads = comparison.overlaps["heads"]
    words = f"The circuits share {heads.n_shared:,} heads of {heads.n_a:,} in A and {heads.n_b:,} in B"
    if heads.uniform is None or heads.matched is None or not (heads.n_a and heads.n_b):
        return f"{words}."
    return (
        f"{words} (Jaccard {percent(heads.jaccard)}); chance would share {number(heads.uniform.expected)} "
        f"(p = {number(heads.uniform.p_value)}), and {number(heads.matched.expected)} if it kept to the same layers "
        f"(p = {number(heads.matched.p_value)})."
    )


def _overlap_caveats(comparison: Comparison) -> Iterator[str]:
    heads, edges = (comparison.overlaps[kind] for kind in ("heads", "edges"))
    if edges.n_a == edges.n_b == edges.n_shared:
        yield "The two circuits are one and the same."
    if not (heads.n_a and heads.n_b):
        yield "A circuit without heads has none to share."
    elif heads.uniform is not None and heads.uniform.p_value > ALPHA:
        yield f"They do not clearly share more heads than chance would have it (p = {number(heads.uniform.p_value)})."
    elif heads.matched is not None and heads.matched.p_value > ALPHA:
        yield (
            "They favour the same layers, and do not clearly share more heads than that alone would have it "
            f"(p = {number(heads.matched.p_value)})."
        )


def _crossing_caveats(comparison: Comparison) -> Iterator[str]:
    for crossing in comparison.crossings:
        where, score = f"Circuit {crossing.circuit} on task {crossing.task}", headline_score(crossing.scores)
        if score is None:
            continue
        if within_noise(score):
            yield f"{where}: {score.name} says nothing: {score.note}."
        for text in score_caveats(crossing.scores, score, searched=crossing.circuit == crossing.task):
            yield f"{where}: {text}"


def _effect_caveats(comparison: Comparison) -> Iterator[str]:
    for task, effects in comparison.effects.items():
        for effect in effects:
            where = f"Changed heads on task {task}, {effect.metric}"
            if may_be_zero(effect.low, effect.high):
                yield f"{where}: the interval of the difference holds 0, or is unknown: it may be none."
            as_far = sum(abs(control) >= abs(effect.difference) for control in effect.controls)
            others = "draws of other heads of the same layers"
            for text in chance_caveats(others, "move the metric at least as far", effect.controls, as_far):
                yield f"{where}: {text}"


# --- the page -------------------------------------------------------------------------------------------------------------


def write_comparison(path: str | PathLike[str], comparison: Comparison) -> Path:
    """Write the page of a comparison.

    Raises:
        BadRun: the file cannot be written.
    """
    path = Path(path)
    heads = comparison.overlaps["heads"]
    page = render(
        "comparison.html.j2",
        heading=f"Circuits for {' and '.join(side.task or 'an unnamed task' for side in comparison.sides.values())}",
        said=comparison_verdict(comparison),
        sides=list(comparison.sides.items()),
        picture=picture(
            "heads", draw_heads(comparison), f"Grid of heads: {heads.n_shared} in both circuits. The table below lists them."
        ),
        explored=as_json(
            comparison_data(
                {f"{label}: {side.task} in {side.model}": side.circuit for label, side in comparison.sides.items()},
                label="Diagram of the edges that both circuits have, and that one of them has.",
            )
        ),
        sets=(("in both", heads.shared), ("only in A", heads.only_a), ("only in B", heads.only_b)),
        overlap_headers=OVERLAP_HEADERS,
        overlaps=overlap_rows(comparison),
        crossing_headers=CROSSING_HEADERS,
        crossings=crossing_rows(comparison),
        effect_headers=EFFECT_HEADERS,
        effects=effect_rows(comparison),
        changed=changed_words(comparison) if comparison.effects else "",
        settings=[
            (name.replace("_", " "), _setting(value)) for name, value in comparison.settings.items() if value is not None
        ],
    )
    write_text(path, page)
    return path


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_setting(inner)}" for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def draw_heads(comparison: Comparison) -> go.Figure:
    """The grid of heads, layers as rows, coloured by which circuit has them."""
    in_a, in_b = (kept_heads(side.circuit.graph, side.circuit.mask) for side in comparison.sides.values())
    layout = Layout(comparison.sides["A"].circuit.graph)
    size = min(layout.column, layout.row) * 0.86
    figure = go.Figure()
    for where, chosen in (("A", in_a & ~in_b), ("B", in_b & ~in_a), (_SHARED, in_a & in_b), ("", ~in_a & ~in_b)):
        heads = [Node("head", layer, head).name for layer, head in zip(*chosen.nonzero(), strict=True)]
        figure.add_scatter(
            x=chosen.nonzero()[1],
            y=chosen.nonzero()[0],
            mode="markers+text" if size >= _LABEL_FROM else "markers",
            marker={"size": size, "symbol": "square", "color": _COLOURS[where], "line": {"color": GRID, "width": 1}},
            text=heads,
            textfont={"size": 10, "color": _INK[where]},
            hovertext=[f"<b>{head}</b><br>{_WORDS[where]}" for head in heads],
            hoverinfo="text",
            name=f"{_WORDS[where]}: {len(heads)}",
            showlegend=bool(heads),
            cliponaxis=False,
        )
    _frame(figure, layout, comparison)
    return figure


def _frame(figure: go.Figure, layout: Layout, comparison: Comparison) -> None:
    n_layers, n_heads = layout.graph.n_layers, layout.graph.n_heads
    names = "; ".join(f"{label}: {escape(side.task)} in {escape(side.model)}" for label, side in comparison.sides.items())
    every = max(1, round(30 / layout.column))
    width, height = max(n_heads * layout.column + 104, 720), (n_layers + 0.4) * layout.row + 126
    axis = {"showgrid": False, "zeroline": False, "ticks": "", "tickfont": {"color": GRID, "size": 11}}
    figure.update_layout(
        **plain_layout(round(width), round(height), title=names, size=12),
        margin={"l": 84, "r": 20, "t": 76, "b": 50},
        legend_itemsizing="constant",
        xaxis=axis | {"range": [-0.8, n_heads - 0.2], "tickvals": list(range(0, n_heads, every))},
        yaxis=axis | {"range": [-0.7, n_layers - 0.3], "tickvals": list(range(n_layers))},
    )
    figure.update_xaxes(ticktext=[f"h{head}" for head in range(0, n_heads, every)])
    figure.update_yaxes(ticktext=[f"layer {layer}" for layer in range(n_layers)])
