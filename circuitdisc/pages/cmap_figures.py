"""Pictures of cross-model patching: one kind of part against another, a growing set, layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from circuitdisc.pages.drawing import GRID, KIND_COLOURS, area, frame, measured_line
from circuitdisc.wording import percent

if TYPE_CHECKING:
    from circuitdisc.checkpoints.cmap.result import Growth, Scored, UnitMap

MAIN, OTHER = KIND_COLOURS["logits"], KIND_COLOURS["q"]
_BAND = "rgba(0,114,178,0.18)"
_NAMED = 8  # heads that carry their name in the scatter


def scatter_figure(across: "UnitMap", up: "UnitMap") -> go.Figure:
    """Every head's score by one kind of patch against another; heads that share what is patched share that score."""
    heads = [head for names in across.heads for head in names]
    x = [float(across.score.ravel()[across.of_head(head)]) for head in heads]
    y = [float(up.score.ravel()[up.of_head(head)]) for head in heads]
    far = set(np.argsort(-np.nan_to_num(np.hypot(x, y)), kind="stable")[:_NAMED].tolist())
    figure = go.Figure()
    ends = [min([*x, *y, 0.0]), max([*x, *y, 0.0])]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GRID, "dash": "dot"}, hoverinfo="skip", name="equal scores")
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text",
        marker={"color": OTHER, "size": 8},
        text=[head if at in far else "" for at, head in enumerate(heads)],
        textposition="top center",
        hovertext=[
            f"{head}: {across.kind} {percent(a)}, {up.kind} {percent(b)}" for head, a, b in zip(heads, x, y, strict=True)
        ],
        hoverinfo="text",
        name="heads",
    )
    frame(figure, 520, width=760)
    figure.update_xaxes(title_text=f"score, {across.kind} patched", tickformat=".0%")
    figure.update_yaxes(title_text=f"score, {up.kind} patched", tickformat=".0%")
    return figure


def growth_figure(growth: "Growth") -> go.Figure:
    """The score over the number of parts patched, beside the band of random orders."""
    sizes, figure = list(growth.sizes), go.Figure()
    if len(growth.random):
        low, middle, high = np.percentile(growth.random, [0, 50, 100], axis=0)
        area(figure, sizes, low, high, _BAND, f"{len(growth.random)} random orders")
        figure.add_scatter(x=sizes, y=middle, mode="lines", line={"color": OTHER}, name="random orders, median")
    hover = [f"{row['patched']} patched, last {row['last'] or 'none'}" for row in growth.table()]
    name = "best on the search examples first"
    measured_line(figure, sizes, growth.score, growth.low, growth.high, hover, ".1%", name)
    frame(figure, 420)
    figure.update_xaxes(
        title_text=f"{growth.kind}s patched" if growth.kind != "query" else "queries patched", rangemode="tozero"
    )
    figure.update_yaxes(title_text="score", tickformat=".0%")
    return figure


def layers_figure(parts: Sequence["Scored"]) -> go.Figure:
    """Scores of each layer's MLP, as bars, and of the residual stream before each layer, as a line."""
    scored, figure = {part.name: part for part in parts}, go.Figure()
    mlps = [part for name, part in scored.items() if name[0] == "m" and name[1:].isdecimal()]
    before = [part for name, part in scored.items() if name.startswith("residual before layer ")]
    stream = [scored["embedding"], *before, scored["final residual"]]
    if mlps:
        figure.add_bar(
            x=[int(part.name[1:]) for part in mlps], y=[part.score for part in mlps],
            marker={"color": KIND_COLOURS["mlp"]}, hovertemplate="m%{x}: %{y:.1%}<extra></extra>", name="MLP of the layer",
        )  # fmt: skip
    figure.add_scatter(
        x=list(range(len(stream))), y=[part.score for part in stream], mode="lines+markers", line={"color": MAIN},
        hovertext=[part.name for part in stream], hovertemplate="%{hovertext}: %{y:.1%}<extra></extra>",
        name="residual stream before the layer",
    )  # fmt: skip
    frame(figure, 360)
    figure.update_xaxes(title_text="layer", dtick=1 if len(stream) < 20 else None, showgrid=False)
    figure.update_yaxes(title_text="score", tickformat=".0%")
    return figure
