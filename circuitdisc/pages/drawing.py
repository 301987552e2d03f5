"""The drawing of a circuit.

Layers are rows, from the embedding at the bottom to `logits` at the top; heads are columns and MLPs have a column of
their own at the right (`layout.py`). Every node of the graph is a faint dot, the circuit's nodes are solid. An edge is
coloured by the input that it feeds: q, k, v, MLP or `logits`; each kind can be switched off in the legend. A head
circuit is drawn as the grid of its heads, kept or ablated, since its edges are all those among the kept heads.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float, Int

from circuitdisc.circuit import Circuit, kept_heads
from circuitdisc.graph import ComputationGraph, Node
from circuitdisc.pages.layout import Layout
from circuitdisc.wording import number

DRAWN_AT_MOST = 4000
"""Edges in one drawing; of a larger circuit those with the largest score (or every n-th) are drawn, and it says so."""

# Okabe and Ito (2008): told apart under every common colour blindness.
KIND_COLOURS = {"q": "#0072B2", "k": "#E69F00", "v": "#009E73", "mlp": "#CC79A7", "logits": "#D55E00"}
KIND_WORDS = {"q": "into queries (q)", "k": "into keys (k)", "v": "into values (v)", "mlp": "into MLPs"}
KIND_WORDS["logits"] = "into logits"
INK, FAINT, GRID = "#2B2F36", "#D3D7DD", "#8A9099"
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 12, "color": INK}
MODEBAR = {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": GRID}
WIDTH = 1000
_LISTED_AT_MOST = 8  # edges of one kind in a node's hover text
_LABEL_FROM = 30  # pixels: nodes of this size carry their name


def plain_layout(width: int, height: int, title: str = "", size: int = 13) -> dict[str, Any]:
    """What all figures share: size, font, no background, the title at the top left and the legend below it.

    Args:
        title: HTML as plotly understands it.
        size: of the title's font.
    """
    edge = {"x": 0, "xanchor": "left"}
    return {
        "template": "none",
        "width": width,
        "height": height,
        "font": FONT,
        "hovermode": "closest",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "modebar": MODEBAR,
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", **edge},
        "title": {"text": title, "xref": "paper", "y": 1 - 13 / height, "yanchor": "top", "font": {"size": size}, **edge},
    }


def error_bars(up: Any, down: Any, **style: Any) -> dict[str, Any]:
    """For `error_x` and `error_y`: how far intervals reach above and below their values."""
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **style}


def area(figure: go.Figure, x: Sequence[float], low: Any, high: Any, colour: str, name: str, **more: Any) -> None:
    """Add the area between two lines over the same places."""
    outline = {"fill": "toself", "fillcolor": colour, "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip"}
    figure.add_scatter(x=[*x, *reversed(x)], y=[*high, *reversed(low)], **(outline | {"name": name} | more))


def measured_line(
    figure: go.Figure, x: Sequence[float], y: Any, low: Any, high: Any, hovertext: Sequence[str], shown_as: str, name: str
) -> None:
    """Add a line of measured values with their intervals; the pointer shows a point's words and its value."""
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", line={"color": KIND_COLOURS["logits"], "width": 2}, hovertext=hovertext,
        error_y=error_bars(high - y, y - low), hovertemplate=f"%{{hovertext}}: %{{y:{shown_as}}}<extra></extra>", name=name,
    )  # fmt: skip


def plain_axes(figure: go.Figure) -> None:
    """Faint grid lines that show on light and dark pages."""
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.5)", automargin=True)


def frame(figure: go.Figure, height: int, left: int = 80, *, width: int = WIDTH, top: int = 40, bottom: int = 56) -> None:
    """Size, margins and axes."""
    figure.update_layout(**plain_layout(width, height), margin={"l": left, "r": 30, "t": top, "b": bottom})
    plain_axes(figure)


def draw_circuit(circuit: Circuit, *, edge_scores: Float[np.ndarray, "R S"] | None = None, title: str = "") -> go.Figure:
    """Draw a circuit.

    Args:
        circuit: the circuit.
        edge_scores: score of every edge of the graph, shown with the edge under the pointer.
        title: a heading; none if empty.
    """
    layout = Layout(circuit.graph)
    figure = go.Figure()
    if circuit.granularity == "head":
        _add_head_grid(figure, circuit, layout)
        subtitle = f"{_heads_kept(circuit)} kept; embeddings and MLPs are kept"
    else:
        drawn = edges_to_draw(circuit, edge_scores)
        solid = heads_touched(circuit)
        _add_background(figure, circuit, layout)
        for kind in KIND_COLOURS:
            _add_edges(figure, layout, kind, drawn, solid, edge_scores)
        _add_nodes(figure, circuit, layout)
        subtitle = f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges; {_heads_kept(circuit)}"
        if len(drawn) < circuit.n_edges:
            choice = "one in every few" if edge_scores is None else "those with the largest |score|"
            subtitle += f". {len(drawn):,} edges are drawn, {choice}; {circuit.n_edges - len(drawn):,} are left out"
    _frame(figure, layout, title, subtitle, is_grid=circuit.granularity == "head")
    return figure


def edges_to_draw(
    circuit: Circuit, edge_scores: Float[np.ndarray, "R S"] | None = None, most: int = DRAWN_AT_MOST
) -> Int[np.ndarray, "E 2"]:
    """Receiver and sender of the edges that a drawing shows: all of them, up to `most`."""
    edges = np.argwhere(circuit.mask)
    if len(edges) <= most:
        return edges
    if edge_scores is None:
        return edges[np.linspace(0, len(edges) - 1, most).astype(int)]
    sizes = np.nan_to_num(np.abs(np.asarray(edge_scores)[circuit.mask]))
    return edges[np.sort(np.argsort(-sizes, kind="stable")[:most])]


def _heads_kept(circuit: Circuit) -> str:
    n_heads = circuit.graph.n_layers * circuit.graph.n_heads
    return f"{len(circuit.heads())} of {n_heads} heads"


# --- edges ----------------------------------------------------------------------------------------------------------


def _add_edges(
    figure: go.Figure,
    layout: Layout,
    kind: str,
    drawn: Int[np.ndarray, "E 2"],
    solid: Bool[np.ndarray, "L H"],
    edge_scores: Float[np.ndarray, "R S"] | None,
) -> None:
    """One trace for the lines of a kind, one for its legend entry, one of unseen points that carry the hover text."""
    graph = layout.graph
    is_kind = np.array([graph.receivers[receiver].kind == kind for receiver, _ in drawn], dtype=bool)
    edges = drawn[is_kind]
    if not len(edges):
        return
    colour = KIND_COLOURS[kind]
    points = 25 if len(drawn) <= 500 else 13
    curves = layout.curves(edges[:, 0], edges[:, 1], points, solid)
    crowd = 60 / max(len(drawn), 60)  # 1 for a small circuit, towards 0 for a large one
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    line = {"color": f"rgba({red},{green},{blue},{0.85 * crowd**0.38:.3f})", "width": 1.9 * crowd**0.2}
    hover = [_edge_hover(graph, receiver, sender, edge_scores) for receiver, sender in edges]
    label = {"bgcolor": colour, "font": {"color": "#FFFFFF" if kind in ("q", "logits") else "#000000"}}
    add_curves(figure, curves, line, {"size": 9, "color": colour}, hover, hoverlabel=label, legendgroup=kind)
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        line={"color": colour, "width": 4},
        name=f"{KIND_WORDS[kind]}: {len(edges):,}",
        legendgroup=kind,
    )


def add_curves(
    figure: go.Figure,
    curves: Float[np.ndarray, "E P 2"],
    line: Mapping[str, Any],
    marker: Mapping[str, Any],
    hovertext: Sequence[str],
    opacity: float | None = None,
    hoverlabel: Mapping[str, Any] | None = None,
    **both: Any,
) -> None:
    """One trace for all curves, and one of unseen points in their middles that carry the hover text."""
    gap = np.full((len(curves), 1, 2), np.nan)  # lifts the pen between one edge and the next
    x, y = np.concatenate([curves, gap], axis=1).reshape(-1, 2).astype(np.float32).T
    both |= {"showlegend": False}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, opacity=opacity, hoverinfo="skip", **both)
    x, y = curves[:, curves.shape[1] // 2].astype(np.float32).T
    unseen = {**marker, "opacity": 0}
    both |= {"hovertext": hovertext, "hoverinfo": "text", "hoverlabel": hoverlabel}
    figure.add_scatter(x=x, y=y, mode="markers", marker=unseen, **both)


def _edge_hover(graph: ComputationGraph, receiver: int, sender: int, edge_scores: Float[np.ndarray, "R S"] | None) -> str:
    name = escape(graph.edge_name(receiver, sender))
    return name if edge_scores is None else f"{name}<br>score {number(float(edge_scores[receiver, sender]))}"


# --- nodes ----------------------------------------------------------------------------------------------------------


def _all_nodes(graph: ComputationGraph) -> list[Node]:
    return [*graph.senders, graph.receivers[-1].node]


def _add_background(figure: go.Figure, circuit: Circuit, layout: Layout) -> None:
    kept = set(circuit.nodes())
    nodes = [node for node in _all_nodes(circuit.graph) if node.name not in kept]
    _add_markers(
        figure,
        nodes,
        layout,
        marker={"size": max(5.0, layout.node_size * 0.3), "color": FAINT},
        hovertext=[f"{node.name}<br>not in the circuit" for node in nodes],
        name="not in the circuit",
    )


def _add_nodes(figure: go.Figure, circuit: Circuit, layout: Layout) -> None:
    kept = set(circuit.nodes())
    nodes = [node for node in _all_nodes(circuit.graph) if node.name in kept]
    labelled = layout.node_size >= _LABEL_FROM
    _add_markers(
        figure,
        nodes,
        layout,
        marker={
            "size": layout.node_size,
            "color": INK,
            "symbol": ["circle" if node.kind == "head" else "square" for node in nodes],
            "line": {"color": "#FFFFFF", "width": 1},
            "opacity": 1,
        },
        mode="markers+text" if labelled else "markers",
        text=[_label(node) for node in nodes] if labelled else None,
        textfont={"size": [9.5 if len(_label(node)) <= 5 else 8 for node in nodes], "color": "#FFFFFF"},
        hovertext=[node_hover(circuit, node) for node in nodes],
        name="in the circuit",
    )


def _label(node: Node) -> str:
    return {"tok_embed": "token", "pos_embed": "position"}.get(node.kind, node.name)


def _add_markers(figure: go.Figure, nodes: Sequence[Node], layout: Layout, **options: object) -> None:
    positions = [layout.position(node) for node in nodes]
    settings: dict[str, object] = {
        "mode": "markers",
        "hoverinfo": "text",
        "hoverlabel": {"bgcolor": "#FFFFFF", "bordercolor": INK, "align": "left", "font": {"color": INK}},
        "showlegend": False,
        "cliponaxis": False,
    }
    figure.add_scatter(x=[x for x, _ in positions], y=[y for _, y in positions], **(settings | options))


def node_hover(circuit: Circuit, node: Node) -> str:
    """A node's name and the edges in and out of it by kind, as plotly's HTML; long lists are cut."""
    graph, mask = circuit.graph, circuit.mask
    lines = [f"<b>{node.name}</b>"]
    for receiver in graph.node_receivers[node.name]:
        names = [graph.senders[sender].name for sender in np.flatnonzero(mask[receiver])]
        lines.append(f"{graph.receivers[receiver].kind} reads {_listing(names)}")
    if node.name in graph.sender_index:
        read_by = [graph.receivers[receiver] for receiver in np.flatnonzero(mask[:, graph.sender_index[node.name]])]
        for kind in KIND_COLOURS:
            names = [receiver.node.name for receiver in read_by if receiver.kind == kind]
            if names:
                lines.append(f"out {KIND_WORDS[kind]}, {_listing(names)}")
        if not read_by:
            lines.append("no edge out")
    return "<br>".join(lines)


def _listing(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    shown = ", ".join(names[:_LISTED_AT_MOST])
    return f"{len(names)}: {shown}" + (", …" if len(names) > _LISTED_AT_MOST else "")


# --- head circuits --------------------------------------------------------------------------------------------------


def _add_head_grid(figure: go.Figure, circuit: Circuit, layout: Layout) -> None:
    kept = kept_heads(circuit.graph, circuit.mask)
    size = min(layout.column, layout.row) * 0.86
    for is_kept, fill, ink, word in ((True, KIND_COLOURS["q"], "#FFFFFF", "kept"), (False, "#FFFFFF", GRID, "ablated")):
        heads = [Node("head", int(layer), int(head)) for layer, head in np.argwhere(kept == is_kept)]
        _add_markers(
            figure,
            heads,
            layout,
            marker={"size": size, "symbol": "square", "color": fill, "line": {"color": GRID, "width": 1}},
            mode="markers+text" if size >= _LABEL_FROM else "markers",
            text=[head.name for head in heads],
            textfont={"size": 10, "color": ink},
            hovertext=[f"<b>{head.name}</b><br>{word}" for head in heads],
            name=f"{word}: {len(heads)} heads",
            showlegend=bool(heads),
        )


def heads_touched(circuit: Circuit) -> Bool[np.ndarray, "L H"]:
    """True for each head that a kept edge leaves or enters."""
    touched = kept_heads(circuit.graph, circuit.mask)
    for receiver, reads in zip(circuit.graph.receivers, np.asarray(circuit.mask.any(axis=1)), strict=True):
        if receiver.node.kind == "head":
            touched[receiver.node.layer, receiver.node.head] |= reads
    return touched


# --- the frame ------------------------------------------------------------------------------------------------------


def _frame(figure: go.Figure, layout: Layout, title: str, subtitle: str, *, is_grid: bool) -> None:
    """Title, axes and size: fixed in pixels, so that nothing can overlap in a narrow window."""
    graph = layout.graph
    (left, right), (bottom, top) = layout.x_range, layout.y_range
    if is_grid:
        left, right, bottom, top = -0.8, graph.n_heads - 0.2, -0.7, graph.n_layers - 0.3
    margin = {"l": 84, "r": 20, "t": 100 if title else 76, "b": 50}
    width = max((right - left) * layout.column + margin["l"] + margin["r"], 620)
    height = (top - bottom) * layout.row + margin["t"] + margin["b"]
    small = f"<span style='font-size:12px'>{escape(subtitle)}</span>"
    every = max(1, int(np.ceil(30 / layout.column)))
    ticks = list(range(0, graph.n_heads, every))
    tick_words = [f"h{head}" for head in ticks]
    if graph.has_mlp and not is_grid:
        ticks, tick_words = [*ticks, layout.mlp_x], [*tick_words, "MLP"]
    rows = {float(layer): f"layer {layer}" for layer in range(graph.n_layers)}
    if not is_grid:
        rows |= {layout.position(graph.senders[0])[1]: "embedding", layout.position(Node("logits"))[1]: "logits"}
    axis = {"showgrid": False, "zeroline": False, "ticks": "", "tickfont": {"color": GRID, "size": 11}}
    words = f"<b>{escape(title)}</b><br>{small}" if title else small
    figure.update_layout(
        **plain_layout(round(width), round(height), title=words, size=16),
        margin=margin,
        legend_itemsizing="trace",
        xaxis=axis | {"range": [left, right], "tickvals": ticks, "ticktext": tick_words},
        yaxis=axis
        | {
            "range": [bottom, top],
            "tickvals": list(rows),
            "ticktext": list(rows.values()),
        },
    )
