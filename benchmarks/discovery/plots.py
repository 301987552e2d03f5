"""The figures: one page with plotly.js inside, so that it opens without a network."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from statistics import fmean, median

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from benchmarks.discovery.cells import Cell
from benchmarks.discovery.table import Row
from circuitdisc.files import write_text
from circuitdisc.pages.drawing import KIND_COLOURS, plain_axes, plain_layout
from circuitdisc.scoring.curves import MIB_SHARES

Rows = Mapping[Cell, Row]
WIDTH = 980
COLOURS = [*KIND_COLOURS.values(), "#56B4E9", "#F0E442", "#000000"]
SYMBOLS = ("circle", "square", "diamond")
DASHES = ("solid", "dash", "dot")


def write_figures(rows: Rows, path: Path) -> None:
    """Write all figures that the table has rows for."""
    figures = [*truth_figures(rows), *curve_figures(rows), *stability_figures(rows)]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
        for figure in figures
    ]
    script = f"<script>{get_plotlyjs()}</script>"
    style = "<style>body{font-family:system-ui,sans-serif;max-width:1000px;margin:2em auto}</style>"
    head = f'<head><meta charset="utf-8"><title>Discovery algorithms</title>{style}{script}</head>'
    body = f"<body><h1>Discovery algorithms</h1>{''.join(parts)}</body>"
    write_text(path, f'<!doctype html><html lang="en">{head}{body}</html>\n')


def truth_figures(rows: Rows) -> list[go.Figure]:
    """AUROC of edges of each algorithm, a dot a cell; and its median against what it costs."""
    done = {
        cell: row for cell, row in rows.items() if cell.part == "truth" and cell.metric == "logit_diff" and row["AUROC_edges"]
    }
    if not done:
        return []
    algorithms = list(dict.fromkeys(cell.algorithm for cell in done))
    dots = go.Figure()
    for colour, ablation in zip(COLOURS, dict.fromkeys(cell.ablation for cell in done), strict=False):
        own = [(cell, row) for cell, row in done.items() if cell.ablation == ablation]
        dots.add_box(
            x=[float(row["AUROC_edges"]) for _, row in own],
            y=[cell.algorithm for cell, _ in own],
            hovertext=[escape(f"{cell.case}, seed {cell.seed}") for cell, _ in own],
            name=ablation,
            orientation="h",
            boxpoints="all",
            pointpos=0,
            jitter=0.3,
            marker={"color": colour, "size": 4},
            line={"width": 1},
        )
    dots.update_layout(**plain_layout(WIDTH, 90 + 60 * len(algorithms), "AUROC of edges, each case and seed (logit_diff)"))
    dots.update_layout(boxmode="group", margin={"l": 170})
    dots.update_yaxes(categoryorder="array", categoryarray=algorithms[::-1])
    dots.update_xaxes(range=[0, 1.02], title="AUROC of edges")
    cost = go.Figure()
    for index, algorithm in enumerate(algorithms):
        own = [row for cell, row in done.items() if cell.algorithm == algorithm]
        cost.add_scatter(
            x=[max(0.1, median(float(row["forward_passes"]) + 2 * float(row["backward_passes"]) for row in own))],
            y=[fmean(float(row["AUROC_edges"]) for row in own)],  # medians are mostly 1
            mode="markers",
            name=algorithm,
            marker={
                "size": 11,
                "color": COLOURS[index % len(COLOURS)],
                "symbol": SYMBOLS[index // len(COLOURS) % len(SYMBOLS)],
            },
        )
    cost.update_layout(**plain_layout(WIDTH, 560, "Mean AUROC of edges over all cells, against median cost"), margin={"t": 150})
    cost.update_xaxes(type="log", title="forward passes + 2 x backward passes (0 is drawn at 0.1)")
    cost.update_yaxes(title="AUROC of edges")
    for figure in (dots, cost):
        plain_axes(figure)
    return [dots, cost]


def curve_figures(rows: Rows) -> list[go.Figure]:
    """Faithfulness over size, a figure for each shipped case and ablation; circuits that were decided are single points."""
    figures = []
    shipped = {cell: row for cell, row in rows.items() if cell.part == "shipped" and row["kind"]}
    for case, ablation, metric in dict.fromkeys((cell.case, cell.ablation, cell.metric) for cell in shipped):
        figure = go.Figure()
        place = (case, ablation, metric)
        own = {cell: row for cell, row in shipped.items() if (cell.case, cell.ablation, cell.metric) == place}
        for index, (cell, row) in enumerate(own.items()):
            colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
            if row["kind"] == "scores":
                heights = [None if word == "-" else float(word) for word in row["curve"].split()]
                line = {"color": colour, "dash": dash}
                figure.add_scatter(x=MIB_SHARES, y=heights, mode="lines+markers", name=cell.algorithm, line=line)
            elif row["faithfulness"]:
                share = int(row["circuit_edges"]) / int(row["graph_edges"])
                marker = {"color": colour, "size": 12, "symbol": "diamond" if "edges" in row["kind"] else "square-open"}
                name = f"{cell.algorithm} ({row['kind'].removeprefix('decides ')})"
                figure.add_scatter(x=[share], y=[float(row["faithfulness"])], mode="markers", name=name, marker=marker)
        title = escape(f"{case}, {ablation}, {metric}: faithfulness on held-out examples")
        figure.update_layout(**plain_layout(WIDTH, 560, title), margin={"t": 120})
        figure.update_xaxes(type="log", title="share of the edges")
        figure.update_yaxes(title="faithfulness")
        plain_axes(figure)
        figures.append(figure)
    return figures


def stability_figures(rows: Rows) -> list[go.Figure]:
    """Jaccard index of edges over bootstrap samples, with the interval, and over seeds."""
    done = {cell: row for cell, row in rows.items() if cell.part == "stability" and row["jaccard_edges"]}
    figures = []
    for case in dict.fromkeys(cell.case for cell in done):
        own = {cell: row for cell, row in done.items() if cell.case == case}
        names, figure = [cell.algorithm for cell in own], go.Figure()
        values = [float(row["jaccard_edges"]) for row in own.values()]
        up = [float(row["jaccard_edges_high"] or value) - value for row, value in zip(own.values(), values, strict=True)]
        down = [value - float(row["jaccard_edges_low"] or value) for row, value in zip(own.values(), values, strict=True)]
        ends = {"type": "data", "array": up, "arrayminus": down, "thickness": 1}
        figure.add_bar(x=names, y=values, error_y=ends, name="bootstrap samples", marker={"color": COLOURS[0]})
        seeds = [float(row["jaccard_edges_seeds"]) if row["jaccard_edges_seeds"] else None for row in own.values()]
        figure.add_bar(x=names, y=seeds, name="seeds", marker={"color": COLOURS[1]})
        figure.update_layout(**plain_layout(WIDTH, 420, escape(f"{case}: mean Jaccard index of edges")), barmode="group")
        figure.update_yaxes(range=[0, 1.05])
        plain_axes(figure)
        figures.append(figure)
    return figures
