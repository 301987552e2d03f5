"""Pictures of a transfer: the matrix as a heat map, and the circuits of the ladder on one fixed layout.

Shape letters: C circuits, K checkpoints, E edges.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool
from plotly.subplots import make_subplots

from circuitdisc.checkpoints.transfer.matrix import FoundCircuit, Transfer
from circuitdisc.circuit import Circuit, kept_heads
from circuitdisc.graph import Node
from circuitdisc.pages.curves import Line, ladder_curves
from circuitdisc.pages.drawing import DRAWN_AT_MOST, FAINT, GRID, INK, KIND_COLOURS, add_curves, plain_layout
from circuitdisc.pages.layout import Layout
from circuitdisc.pages.tables import controls_words
from circuitdisc.scoring.base import Score
from circuitdisc.wording import ACCURACIES, SHARES, SPLIT_WORDS, percent, score_value, span, undefined

CLASSES = {
    "all": ("in every circuit", KIND_COLOURS["q"], "solid"),
    "as before": ("kept, but not in every circuit", GRID, "solid"),
    "gained": ("gained since the one before", KIND_COLOURS["v"], "solid"),
    "lost": ("lost since the one before", KIND_COLOURS["logits"], "dot"),
}
_CELL, _ROW, _LEFT = 118, 62, 190  # pixels of the heat map
_PANEL, _PANELS_A_ROW = 320, 3
_LABEL_FROM = 24  # pixels: squares of this size carry their name
LOW_IS_GOOD = ("kl", "difference")


# --- the matrix -----------------------------------------------------------------------------------------------------------


def shown_kinds(result: Transfer) -> list[tuple[str, str]]:
    """Name and metric of the scores that are shown: accuracy and its ratio to the model's, means, faithfulness, KL."""
    means = [(name, metric) for name, metric in result.kinds() if name == metric and name not in (*ACCURACIES, "kl")]
    faithful = [(name, metric) for name, metric in result.kinds() if name == "faithfulness"]
    ratio = [kind for kind in result.kinds() if kind[0] == "accuracy_ratio"]
    accuracies = [(name, name) for name in ACCURACIES if (name, name) in result.kinds()]
    return [*accuracies, *ratio, *means, *faithful, ("kl", "kl")]


def kind_words(name: str, metric: str) -> str:
    """`faithfulness of logit_diff`; a score that is the mean of its own metric goes by one name."""
    if name == "accuracy_ratio":
        return "accuracy of the circuit / of the full model"
    return name if name == metric else f"{name} of {metric}"


def matrix_figure(result: Transfer) -> go.Figure:
    """The transfer matrix: a heat map for every score on either split, one shown at a time."""
    kinds = [(name, metric, split) for split in ("heldout", "train") for name, metric in shown_kinds(result)]
    figure = go.Figure([_heat_map(result, *kind, visible=index == 0) for index, kind in enumerate(kinds)])
    width = max(_LEFT + _CELL * len(result.checkpoints) + 90, 620)
    height = 128 + _ROW * len(result.labels) + 46
    figure.update_layout(
        **plain_layout(width, height, title=_heat_title(result, *kinds[0])), margin={"l": _LEFT, "r": 20, "t": 128, "b": 46}
    )
    buttons = [
        {
            "label": f"{kind_words(name, metric)}, {SPLIT_WORDS[split]}",
            "method": "update",
            "args": [
                {"visible": [other == index for other in range(len(kinds))]},
                {"title.text": _heat_title(result, name, metric, split)},
            ],
        }
        for index, (name, metric, split) in enumerate(kinds)
    ]
    menu = {"x": -_LEFT / (width - _LEFT - 20), "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 30}}
    figure.update_layout(updatemenus=[{"buttons": buttons, **menu}])
    figure.update_xaxes(side="top", showgrid=False, zeroline=False, tickfont={"color": INK}, ticks="")
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, tickfont={"color": INK}, ticks="")
    for row, circuit in enumerate(result.circuits):  # a frame around each circuit on the checkpoint that it was found on
        for column, name in enumerate(result.checkpoints):
            if circuit.kind == "own" and circuit.label == name:
                place = {"x0": column - 0.47, "x1": column + 0.47, "y0": row - 0.46, "y1": row + 0.46}
                figure.add_shape(type="rect", line={"color": KIND_COLOURS["logits"], "width": 2.5}, **place)
    return figure


def curves_figure(result: Transfer) -> go.Figure:
    """The first score of every circuit, and of the full model, along the checkpoints, on held-out examples."""
    name, metric = shown_kinds(result)[0]
    rows = {
        f"circuit of {label}": [result.get(label, at, name, "heldout", metric) for at in result.checkpoints]
        for label in result.labels
    }
    if (f"full_{name}", metric) in result.kinds():
        full = [result.get(result.labels[0], at, f"full_{name}", "heldout", metric) for at in result.checkpoints]
        rows = {"the full model": full, **rows}
    lines = [
        Line(label, *([getattr(score, part) for score in scores] for part in ("value", "low", "high")))
        for label, scores in rows.items()
    ]
    return ladder_curves(result.checkpoints, lines, kind_words(name, metric), share=name in SHARES)


def _heat_map(result: Transfer, name: str, metric: str, split: str, visible: bool) -> go.Heatmap:
    cells = [[result.get(row, column, name, split, metric) for column in result.checkpoints] for row in result.labels]
    values = np.array([[cell.value for cell in row] for row in cells], dtype=float)
    low, high = _range(name, values)
    return go.Heatmap(
        z=values,
        x=[_broken(column) for column in result.checkpoints],
        y=[_broken(label) for label in result.labels],
        zmin=low,
        zmax=high,
        colorscale="Blues_r" if name in LOW_IS_GOOD else "Blues",
        xgap=2,
        ygap=2,
        text=[[_cell_words(cell) for cell in row] for row in cells],
        texttemplate="%{text}",
        textfont={"size": 12},
        hovertext=[
            [_hover(result, circuit, column, cell) for column, cell in zip(result.checkpoints, row, strict=True)]
            for circuit, row in zip(result.circuits, cells, strict=True)
        ],
        hoverinfo="text",
        visible=visible,
        colorbar={"thickness": 12, **({"tickformat": ".0%"} if name in SHARES else {})},
    )


def _range(name: str, values: np.ndarray) -> tuple[float, float]:
    """Where the colours begin and end: shares from 0 to 1, others over what there is."""
    if name in SHARES:
        return 0.0, 1.0
    low, high = float(np.nanmin(values, initial=0.0)), float(np.nanmax(values, initial=0.0))
    return low, high if high > low else low + 1.0


def _cell_words(cell: Score) -> str:
    if cell.value is None:
        return "undefined"
    drawn = sorted(value for value in cell.controls if value is not None)
    words = score_value(cell.name, cell.value)
    return f"{words}<br>random {score_value(cell.name, float(np.median(drawn)))}" if drawn else words


def _hover(result: Transfer, circuit: FoundCircuit, column: str, cell: Score) -> str:
    lines = [
        f"<b>circuit of {escape(circuit.label)}</b> on <b>{escape(column)}</b>",
        f"{kind_words(cell.name, cell.metric)}: "
        + (score_value(cell.name, cell.value) if cell.value is not None else undefined(escape(cell.note))),
    ]
    if between := span(cell.name, cell.low, cell.high):
        lines.append(f"{cell.confidence:.0%} interval: {between}")
    if drawn := controls_words(cell):
        lines.append(f"random circuits: {drawn}")
    lines += [f"n = {cell.n:,} {SPLIT_WORDS[cell.split]}", f"ablation: {cell.ablation}", f"metric: {cell.metric}"]
    lines += [f"{which}: {escape(note)}" for which, note in ((column, result.notes.get(column)),) if note]
    return "<br>".join(lines)


def _heat_title(result: Transfer, name: str, metric: str, split: str) -> str:
    n = result.get(result.labels[0], result.checkpoints[0], name, split, metric).n
    words = f"<b>{kind_words(name, metric)}</b> on {n:,} {SPLIT_WORDS[split]}"
    small = f"ablation {result.ablation}"
    return f"{words}<br><span style='font-size:12px'>{small}</span>"


def _broken(label: str) -> str:
    """A long label on two lines."""
    words = escape(label)
    if " -&gt; " in words:
        first, second = words.split(" -&gt; ", 1)
        return f"{first}<br>→ {second}"
    return words if len(label) <= 24 else f"…{escape(label[-23:])}"


# --- the ladder -----------------------------------------------------------------------------------------------------------


def ladder_figure(result: Transfer) -> go.Figure:
    """The circuits of the ladder side by side: every node at the same place in each."""
    by_label = {each.label: each.circuit for each in result.circuits}
    circuits = {label: by_label[label] for label in result.ladder.labels}
    columns = min(_PANELS_A_ROW, len(circuits))
    rows = -(-len(circuits) // columns)
    layout = Layout(next(iter(circuits.values())).graph)
    is_grid = all(each.granularity == "head" for each in circuits.values())
    (left, right), (bottom, top) = _ranges(layout, is_grid)
    height = max(190.0, (top - bottom) * min(72.0, _PANEL / (right - left) * 1.35))
    titles = [f"<b>{escape(label)}</b><br>{_size(each)}" for label, each in circuits.items()]
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=min(0.14, 0.5 / rows)
    )
    scale = min((_PANEL - 20) / (right - left), height / (top - bottom))
    before: Circuit | None = None
    for index, each in enumerate(circuits.values()):
        where = {"row": index // columns + 1, "col": index % columns + 1}
        classes = classes_of(list(circuits.values()), each, before, is_grid)
        if is_grid:
            _add_heads(figure, classes, 0.84 * scale, where)
        else:
            _add_edges(figure, layout, classes, each, before, where)
            _add_nodes(figure, layout, each, min(13.0, 0.42 * scale), where)
        before = each
    _add_legend(figure, is_grid, len(circuits) > 1)
    small = {"showgrid": False, "zeroline": False, "ticks": "", "tickfont": {"color": GRID, "size": 10}}
    figure.update_xaxes(range=[left, right], showticklabels=False, **small)
    figure.update_yaxes(range=[bottom, top], showticklabels=False, **small)
    layers = list(range(layout.graph.n_layers))
    figure.update_yaxes(showticklabels=True, tickvals=layers, ticktext=[f"L{layer}" for layer in layers], col=1)
    figure.update_layout(
        **plain_layout(columns * _PANEL + 60, round(rows * (height + 64) + 70)), margin={"l": 34, "r": 10, "t": 108, "b": 12}
    )
    figure.update_layout(legend={"y": 1 + 58 / (rows * (height + 64) - 50)}, legend_itemsizing="constant")
    figure.update_annotations(font={"size": 12})
    return figure


def _ranges(layout: Layout, is_grid: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    if is_grid:
        return (-0.7, layout.graph.n_heads - 0.3), (-0.7, layout.graph.n_layers - 0.3)
    return layout.x_range, layout.y_range


def _size(circuit: Circuit) -> str:
    n_heads = circuit.graph.n_layers * circuit.graph.n_heads
    heads = f"{len(circuit.heads())} of {n_heads} heads"
    return heads if circuit.granularity == "head" else f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges; {heads}"


def classes_of(
    circuits: Sequence[Circuit], shown: Circuit, before: Circuit | None, of_heads: bool
) -> dict[str, Bool[np.ndarray, "..."]]:
    """Which heads (edges) of a circuit belong to each of `CLASSES`, as masks."""

    def mask(circuit: Circuit) -> np.ndarray:
        return kept_heads(circuit.graph, circuit.mask) if of_heads else np.asarray(circuit.mask)

    now, then = mask(shown), mask(shown if before is None else before)
    in_all = np.logical_and.reduce([mask(circuit) for circuit in circuits])
    return {"all": in_all, "as before": now & then & ~in_all, "gained": now & ~then, "lost": then & ~now}


def _add_heads(figure: go.Figure, classes: Mapping[str, Bool[np.ndarray, "L H"]], size: float, where: dict[str, int]) -> None:
    every = np.logical_or.reduce(list(classes.values()))
    for name, chosen in {**classes, "": ~every}.items():
        places = np.argwhere(chosen)
        word, colour, _ = CLASSES.get(name, ("in neither", FAINT, ""))
        hollow = name in ("lost", "")
        heads = [Node("head", int(layer), int(head)).name for layer, head in places]
        figure.add_scatter(
            x=places[:, 1],
            y=places[:, 0],
            mode="markers+text" if size >= _LABEL_FROM else "markers",
            marker={
                "size": size,
                "symbol": "square",
                "color": "#FFFFFF" if hollow else colour,
                "line": {"color": colour, "width": 2 if name == "lost" else 1},
            },
            text=heads,
            textfont={"size": 9, "color": {"lost": colour, "": GRID, "as before": "#000000"}.get(name, "#FFFFFF")},
            hovertext=[f"<b>{head}</b><br>{word}" for head in heads],
            hoverinfo="text",
            showlegend=False,
            cliponaxis=False,
            **where,
        )


def _add_edges(
    figure: go.Figure,
    layout: Layout,
    classes: Mapping[str, Bool[np.ndarray, "R S"]],
    circuit: Circuit,
    before: Circuit | None,
    where: dict[str, int],
) -> None:
    touched = kept_heads(circuit.graph, circuit.mask if before is None else circuit.mask | before.mask)
    for name, chosen in classes.items():
        edges = np.argwhere(chosen)
        if not len(edges):
            continue
        if len(edges) > DRAWN_AT_MOST:
            edges = edges[np.linspace(0, len(edges) - 1, DRAWN_AT_MOST).astype(int)]
        word, colour, dash = CLASSES[name]
        curves = layout.curves(edges[:, 0], edges[:, 1], 17, touched)
        crowd = 60 / max(len(edges), 60)  # 1 for few edges, towards 0 for many
        line = {"color": colour, "width": 1.2 if name == "lost" else 1.6, "dash": dash}
        hover = [f"{escape(circuit.graph.edge_name(int(receiver), int(sender)))}<br>{word}" for receiver, sender in edges]
        opacity = (0.5 if name == "lost" else 0.9) * crowd**0.3
        add_curves(figure, curves, line, {"size": 8, "color": colour}, hover, opacity, hoverlabel=None, **where)


def _add_nodes(figure: go.Figure, layout: Layout, circuit: Circuit, size: float, where: dict[str, int]) -> None:
    kept = set(circuit.nodes())
    nodes = [*circuit.graph.senders, circuit.graph.receivers[-1].node]
    for inside in (False, True):
        chosen = [node for node in nodes if (node.name in kept) == inside]
        places = [layout.position(node) for node in chosen]
        figure.add_scatter(
            x=[x for x, _ in places],
            y=[y for _, y in places],
            mode="markers",
            marker={
                "size": size if inside else size * 0.5,
                "color": INK if inside else FAINT,
                "symbol": ["circle" if node.kind == "head" else "square" for node in chosen],
                "opacity": 1,
            },
            hovertext=[f"<b>{node.name}</b><br>{'in' if inside else 'not in'} the circuit" for node in chosen],
            hoverinfo="text",
            showlegend=False,
            cliponaxis=False,
            **where,
        )


def _add_legend(figure: go.Figure, is_grid: bool, compared: bool) -> None:
    for name, (word, colour, dash) in CLASSES.items():
        if name != "all" and not compared:
            continue
        style: dict[str, object] = {"mode": "lines", "line": {"color": colour, "width": 4, "dash": dash}}
        if is_grid:
            fill = "#FFFFFF" if name == "lost" else colour
            marker = {"size": 12, "symbol": "square", "color": fill, "line": {"color": colour, "width": 2}}
            style = {"mode": "markers", "marker": marker}
        figure.add_scatter(x=[None], y=[None], name=word, **style)


def share_words(circuit: FoundCircuit) -> str:
    """How large a circuit is, in words."""
    graph = circuit.circuit.graph
    return f"{circuit.circuit.n_edges:,} ({percent(circuit.circuit.n_edges / graph.n_edges)})"
