"""A circuit as papers draw it: its own nodes alone, a row a layer; edges are coloured by the input that they feed.

A head circuit is the grid of all heads, kept or ablated: its edges are all those among the kept heads.

Shape letters: E edges, P points of a curve, N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from circuitdisc.checks import Whole, bounded
from circuitdisc.circuit import Circuit, kept_heads
from circuitdisc.figures.paper import FAINT, GREY, INK, SMALL, PaperFigure, bare, new_figure
from circuitdisc.graph import Node
from circuitdisc.pages.drawing import KIND_COLOURS, KIND_WORDS
from circuitdisc.wording import share

_ROW, _TALLEST, _MARGIN = 0.95, 21.0, 0.15  # centimetres: from row to row, of a figure, around it
_LETTER = 0.62 * SMALL * 2.54 / 72  # centimetres of a letter
_BOX = 0.29  # centimetres: the height of a node
_BENDS = (0.5, -0.5, 1.0, -1.0, 1.6, -1.6)  # centimetres by which an edge may be pushed aside, in the order of trial


@bounded(edges=Whole(1, 100_000))
def draw_graph(
    circuit: Circuit, scores: Float[np.ndarray, "R S"] | None = None, *, width: float, edges: int | None = None
) -> PaperFigure:
    """Draw a circuit.

    Args:
        scores: of all edges: the larger, the thicker a line.
        width: in centimetres.
        edges: draw those with the largest score alone, this many; without scores those nearest to `logits`. None: all.
    """
    n_heads = circuit.graph.n_layers * circuit.graph.n_heads
    size = (
        f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges ({share(circuit.n_edges, circuit.graph.n_edges)}), "
        f"{len(circuit.heads())} of {n_heads} heads"
    )
    if circuit.granularity == "head":
        return PaperFigure(_heads(circuit, width), f"The heads of the circuit, kept (dark) or ablated: {size}.")
    chosen = _chosen(circuit, scores, edges)
    left = circuit.n_edges - len(chosen)
    by = "nearest to the logits" if scores is None else "with the largest |score|"
    some = f" Of these the {len(chosen):,} {by} are drawn, {left:,} are left out." if left else ""
    thick = "; the larger |score|, the thicker a line" if scores is not None else ""
    return PaperFigure(_edges(circuit, chosen, scores, width), f"The circuit: {size}{thick}.{some}")


def _chosen(circuit: Circuit, scores: Float[np.ndarray, "R S"] | None, most: int | None) -> Int[np.ndarray, "E 2"]:
    """Receiver and sender of the edges that are drawn, the weakest first."""
    places = np.argwhere(circuit.mask)
    if scores is not None:
        places = places[np.argsort(np.nan_to_num(np.abs(scores[circuit.mask])), kind="stable")]
    return places if most is None else places[-most:]


@dataclass(frozen=True)
class _Places:
    """Where nodes stand, in centimetres from the lower left.

    Args:
        xy: centre of each node, by name.
        half: half the width of each node's box, by name.
        height: of the whole.
        named: whether nodes have room for their names.
    """

    xy: dict[str, tuple[float, float]]
    half: dict[str, float]
    height: float
    named: bool


def _places(nodes: Sequence[Node], width: float) -> _Places:
    """A row for each layer that has a node, its heads in order and its MLP at the right; a crowded row is staggered."""
    heads: dict[int, list[Node]] = {}
    for node in nodes:
        heads.setdefault(node.layer, [])
        if node.kind == "head":
            heads[node.layer].append(node)
    layers = sorted(layer for layer in heads if layer >= 0)
    has_mlp = any(node.kind == "mlp" for node in nodes)
    room = width - 2 * _MARGIN - (1.0 if has_mlp else 0.0)
    widest = max([1, *(len(row) for row in heads.values())])
    longest = max(len(node.name) for node in nodes)
    label = longest * _LETTER + 0.12
    staggered = widest * label > room
    named = widest * label <= 2 * room and len(layers) * 2.4 * _BOX <= _TALLEST
    row = min(_ROW * (1.5 if staggered else 1.0), _TALLEST / (len(layers) + 2))
    xy, half = {}, {}
    step = min(room / widest, 1.5 * label)
    first = 1 if -1 in {node.layer for node in nodes if node.kind != "logits"} else 0  # a row for the embedding
    for at, layer in enumerate(layers, start=first):
        for index, node in enumerate(heads[layer]):
            lift = 0.4 * row if staggered and index % 2 else 0.0
            xy[node.name] = (_MARGIN + room / 2 + (index - (len(heads[layer]) - 1) / 2) * step, (at + 0.5) * row + lift)
        xy[f"m{layer}"] = (width - _MARGIN - 0.4, (at + 0.5) * row + 0.45 * row)
    for name, offset in (("input", 0.0), ("tok_embed", -0.9), ("pos_embed", 0.9)):
        xy[name] = (_MARGIN + room / 2 + offset, 0.5 * row)
    xy["logits"] = (_MARGIN + room / 2, (len(layers) + first + 0.5) * row + (0.3 * row if staggered or has_mlp else 0.0))
    for name in xy:
        half[name] = (len(name) * _LETTER + 0.1) / 2 if named else 0.06
    return _Places(xy, half, xy["logits"][1] + 0.5 * row, named)


def _edges(circuit: Circuit, chosen: Int[np.ndarray, "E 2"], scores: Float[np.ndarray, "R S"] | None, width: float) -> Figure:
    graph = circuit.graph
    names = {graph.senders[sender].name for _, sender in chosen} | {graph.receivers[r].node.name for r, _ in chosen}
    nodes = [node for node in (*graph.senders, graph.receivers[-1].node) if node.name in names or node.kind == "logits"]
    places = _places(nodes, width)
    kinds = np.array([graph.receivers[receiver].kind for receiver, _ in chosen], dtype="<U6")
    curves = _curves(circuit, chosen, places, [node.name for node in nodes])
    widths = np.full(len(chosen), 0.6)
    if scores is not None and len(chosen):
        sizes = np.nan_to_num(np.abs(scores[tuple(chosen.T)]))
        widths = 0.3 + 1.5 * sizes / max(float(sizes.max()), 1e-30)
    legend = 0.35 * -(-len(set(kinds)) // max(1, int(width / 2.6)))
    figure = new_figure(width, places.height + legend)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(-legend, places.height)
    axes.axis("off")
    opacity = float(np.clip((80 / max(len(chosen), 1)) ** 0.3, 0.3, 0.9))
    for kind, colour in KIND_COLOURS.items():
        some = kinds == kind
        lines = LineCollection(list(curves[some]), linewidths=list(widths[some]), colors=colour, alpha=opacity, zorder=1)
        axes.add_collection(lines, autolim=False)
    for node in nodes:
        _add_node(axes, node, places)
    counts = {kind: int((kinds == kind).sum()) for kind in KIND_COLOURS}
    marks = [Line2D([], [], color=KIND_COLOURS[kind], lw=1.5) for kind, n in counts.items() if n]
    labels = [f"{KIND_WORDS[kind]}: {n:,}" for kind, n in counts.items() if n]
    columns = max(1, int(width / 2.6))
    axes.legend(marks, labels, loc="lower left", bbox_to_anchor=(0, 0), ncols=columns, handlelength=1.2, columnspacing=1.0)
    return figure


def _add_node(axes: Axes, node: Node, places: _Places) -> None:
    x, y = places.xy[node.name]
    if not places.named:
        axes.plot([x], [y], "s" if node.kind == "mlp" else "o", color=INK, markersize=2.2, zorder=2)
        return
    shape = "round,pad=0.18,rounding_size=0.5" if node.kind == "head" else "square,pad=0.18"
    box = {"boxstyle": shape, "facecolor": "#FFFFFF", "edgecolor": INK, "linewidth": 0.5}
    axes.text(x, y, node.name, ha="center", va="center", fontsize=SMALL, bbox=box, zorder=2)


def _curves(
    circuit: Circuit, chosen: Int[np.ndarray, "E 2"], places: _Places, names: Sequence[str]
) -> Float[np.ndarray, "E P 2"]:
    """A cubic Bézier curve for each edge from the top of its sender to its input; it bends around other nodes where it can."""
    graph, tall = circuit.graph, _BOX / 2 if places.named else 0.06
    senders = [graph.senders[sender].name for _, sender in chosen]
    receivers = [graph.receivers[receiver] for receiver, _ in chosen]
    start = np.array([places.xy[name] for name in senders]).reshape(-1, 2) + np.array([0, tall])
    aside = {"q": -0.5, "v": 0.5}
    ports = [aside.get(receiver.kind, 0.0) * places.half[receiver.node.name] for receiver in receivers]
    end = np.array([places.xy[receiver.node.name] for receiver in receivers]).reshape(-1, 2) - np.array([0, tall])
    end[:, 0] += ports
    rise = np.stack([np.zeros(len(start)), np.maximum(0.45 * (end - start)[:, 1], 0.15)], axis=-1)
    corners = np.stack([start, start + rise, end - rise, end], axis=1)
    centres = np.array([places.xy[name] for name in names])
    boxes = np.array([[places.half[name] + 0.02, tall + 0.02] for name in names])
    own = np.zeros((len(chosen), len(names)), dtype=bool)
    for at, name in enumerate(names):
        own[:, at] = [name in (sender, receiver.node.name) for sender, receiver in zip(senders, receivers, strict=True)]
    best = _bezier(corners)
    hits = _hits(best, centres, boxes, own)
    for bend in _BENDS:
        if not hits.any():
            break
        bent = corners.copy()
        bent[:, 1:3, 0] += bend
        curves = _bezier(bent)
        fewer = (hits_of_bent := _hits(curves, centres, boxes, own)) < hits
        best[fewer], hits[fewer] = curves[fewer], hits_of_bent[fewer]
    return best


def _bezier(corners: Float[np.ndarray, "E 4 2"]) -> Float[np.ndarray, "E P 2"]:
    t = np.linspace(0, 1, 21)
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=-1)
    return np.einsum("pc,ecx->epx", weights, corners)


def _hits(
    curves: Float[np.ndarray, "E P 2"],
    centres: Float[np.ndarray, "N 2"],
    boxes: Float[np.ndarray, "N 2"],
    own: Bool[np.ndarray, "E N"],
) -> Int[np.ndarray, "E"]:
    """How many points of each curve lie in the box of a node that is neither its sender nor its receiver."""
    counts = np.zeros(len(curves), dtype=int)
    for at, (centre, box) in enumerate(zip(centres, boxes, strict=True)):
        counts += (np.abs(curves - centre) < box).all(-1).sum(-1) * ~own[:, at]
    return counts


def _heads(circuit: Circuit, width: float) -> Figure:
    kept = kept_heads(circuit.graph, circuit.mask)
    n_layers, n_heads = kept.shape
    cell = min((width - 1.1) / max(n_heads, 1), 0.9)
    figure = new_figure(width, min(max(n_layers * min(cell, 0.55), 0.5) + 0.9, _TALLEST))
    axes = figure.add_subplot()
    colours = ListedColormap([FAINT, KIND_COLOURS["q"]])
    axes.pcolormesh(kept, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    every = max(1, round(0.45 / cell))
    axes.set_xticks(np.arange(0, n_heads, every) + 0.5, [f"h{head}" for head in range(0, n_heads, every)])
    layers = np.arange(0, n_layers, max(1, n_layers // 24))
    axes.set_yticks(layers + 0.5, [f"layer {layer}" for layer in layers])
    bare(axes)
    if cell >= 0.7:
        for layer, head in np.ndindex(*kept.shape):
            ink = "#FFFFFF" if kept[layer, head] else GREY
            axes.text(head + 0.5, layer + 0.5, f"a{layer}.h{head}", ha="center", va="center", fontsize=SMALL, color=ink)
    return figure
