"""Pictures of what the tools for heads and neurons found: a map of all heads, curves, bars.

Shape letters: L layers, H heads, K points of a curve.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from circuitdisc.heads.knockout import KnockoutCurve
from circuitdisc.heads.logits import LogitAttribution
from circuitdisc.heads.neurons.table import DOINGS, NeuronTable
from circuitdisc.pages.drawing import GRID, KIND_COLOURS, area, frame, measured_line
from circuitdisc.wording import number

MAIN, RANDOM = KIND_COLOURS["logits"], KIND_COLOURS["q"]
_BAND = "rgba(0,114,178,0.18)"
_LABEL_FROM = 40  # pixels: cells of this size carry their value


def head_map(values: Float[np.ndarray, "L H"], *, signed: bool = False, largest: float | None = None) -> go.Figure:
    """A value for every head: layers are rows, first layer at the bottom; heads are columns.

    Args:
        values: NaN leaves a cell empty.
        signed: 0 is the middle of the colours, and positive values are red; else the colours begin at 0.
        largest: where the colours end; None takes the largest value.
    """
    n_layers, n_heads = values.shape
    cell = 52 if n_heads <= 16 else max(16, 840 // n_heads)
    largest = largest or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    words = [
        [f"a{layer}.h{head}: {number(float(values[layer, head]))}" for head in range(n_heads)] for layer in range(n_layers)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            zmin=-largest if signed else 0.0,
            zmax=largest,
            colorscale="RdBu_r" if signed else "Blues",
            xgap=1,
            ygap=1,
            hovertext=words,
            hoverinfo="text",
            text=[[_short(value) for value in row] for row in values.tolist()] if cell >= _LABEL_FROM else None,
            texttemplate="%{text}" if cell >= _LABEL_FROM else None,
            colorbar={"thickness": 12},
        )
    )
    width, height = max(n_heads * cell + 210, 420), max(n_layers * min(cell, 34) + 90, 190)
    every = max(1, math.ceil(30 / cell))
    frame(figure, height, width=width)
    figure.update_xaxes(tickvals=list(range(0, n_heads, every)), ticktext=[f"h{head}" for head in range(0, n_heads, every)])
    figure.update_yaxes(tickvals=list(range(n_layers)), ticktext=[f"layer {layer}" for layer in range(n_layers)])
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    return figure


def axes_map(values: Float[np.ndarray, "D D"]) -> go.Figure:
    """A square of numbers with its middle colour at 0: rows from below, columns from the left."""
    figure, largest = go.Figure(), float(np.abs(values).max(initial=0.0)) or 1.0
    figure.add_heatmap(z=values, zmin=-largest, zmax=largest, colorscale="RdBu_r", xgap=1, ygap=1, colorbar={"thickness": 12})
    frame(figure, 380, width=470)
    figure.update_xaxes(showgrid=False, zeroline=False, dtick=max(1, len(values) // 16))
    figure.update_yaxes(showgrid=False, zeroline=False, dtick=max(1, len(values) // 16))
    return figure


def _short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}".replace("-", "−")


def curve_figure(curve: KnockoutCurve) -> go.Figure:
    """The metric over the number of ablated heads, beside the band of random orders."""
    sizes, figure = list(curve.sizes), go.Figure()
    if len(curve.random):
        low, middle, high = curve.band
        area(figure, sizes, low, high, _BAND, "random orders, 5 % to 95 %")
        _add_line(figure, sizes, middle, RANDOM, "random orders, median")
    hover = [f"{row['ablated']} ablated, last {row['last'] or 'none'}" for row in curve.table()]
    name = "in order of effect" if curve.effects is not None else "in the order given"
    measured_line(figure, sizes, curve.mean, curve.low, curve.high, hover, ".4g", name)
    frame(figure, 420)
    figure.update_xaxes(title_text="heads ablated", rangemode="tozero")
    figure.update_yaxes(title_text=escape(curve.metric))
    return figure


def layers_figure(result: LogitAttribution) -> go.Figure:
    """What each layer's heads and MLP add, as bars, and the difference after each layer, as a line."""
    rows, figure = result.by_layer(), go.Figure()
    labels = [str(row["layer"]) for row in rows]
    for part, colour in (("heads", KIND_COLOURS["v"]), ("bias", GRID), ("mlp", KIND_COLOURS["mlp"])):
        values = [row[part] or 0.0 for row in rows]
        if any(values):
            name = {"heads": "heads", "bias": "attention bias", "mlp": "MLP"}[part]
            figure.add_bar(x=labels, y=values, marker={"color": colour}, name=f"added by {name}")
    running = result.after_layer.mean(1)
    figure.add_scatter(x=labels, y=running, mode="lines+markers", line={"color": MAIN}, name="difference after the layer")
    frame(figure, 380)
    figure.update_layout(barmode="relative")
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    figure.update_yaxes(title_text="logit difference")
    return figure


def bars_figure(names: Sequence[str], series: Mapping[str, Sequence[float]], what: str) -> go.Figure:
    """One or two values for each name, as horizontal bars, the first name at the top."""
    figure = go.Figure()
    for (title, values), colour in zip(series.items(), (MAIN, RANDOM), strict=False):
        figure.add_bar(y=list(names), x=list(values), orientation="h", marker={"color": colour}, name=escape(title))
    frame(figure, 110 + 17 * len(series) * len(names), left=90)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(title_text=escape(what))
    return figure


def masked_figure(table: NeuronTable) -> go.Figure:
    """The metric over the number of neurons masked, or kept; random neurons as a band."""
    figure, sizes = go.Figure(), list(table.sizes)
    for doing, colour, band in zip(DOINGS, (MAIN, RANDOM), ("rgba(213,94,0,0.18)", _BAND), strict=True):
        drawn = table.random[table.metric][doing]
        if drawn.shape[1]:
            area(figure, sizes, drawn.min(1), drawn.max(1), band, f"{doing} k random neurons, all draws")
        _add_line(figure, sizes, table.values[table.metric][doing].mean(1), colour, f"{doing} the top k")
    full = float(table.full[table.metric].mean())
    figure.add_hline(y=full, line={"color": GRID, "dash": "dot"}, annotation_text="full model")
    frame(figure, 420)
    figure.update_xaxes(title_text="k neurons", type="log" if min(sizes) * 20 <= max(sizes) else "linear", tickvals=sizes)
    figure.update_yaxes(title_text=escape(table.metric))
    return figure


def _add_line(figure: go.Figure, x: list[int], y: np.ndarray, colour: str, name: str) -> None:
    template = "%{x}: %{y:.4g}<extra></extra>"
    figure.add_scatter(x=x, y=y, mode="lines+markers", line={"color": colour, "width": 2}, hovertemplate=template, name=name)
