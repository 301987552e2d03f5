"""DISCOVERY.md and its figures, from the table alone."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from benchmarks.common import machine, markdown
from benchmarks.discovery.cells import Cell
from benchmarks.discovery.plots import write_figures
from benchmarks.discovery.table import Row, read
from circuitdisc.discovery.registry import REGISTRY
from circuitdisc.files import write_text

Rows = dict[Cell, Row]
Value = TypeVar("Value")

INTRODUCTION = """# Discovery algorithms: against ground truth, on shipped tasks, and their stability

    python -m benchmarks.discovery             # what is missing in the table, then this page
    python -m benchmarks.discovery report      # this page again

Made from [{table}]({table}), one row a cell; figures: [{figures}]({figures}) (a page that needs no network). What the columns
mean: [new-algorithm.md](../../docs/new-algorithm.md). What to use when: [which-algorithm.md](../../docs/which-algorithm.md).
All algorithms in one table, with figures by MIB's conventions and a real model's tasks: [BOARD.md](BOARD.md)."""

TRUTH = """## Against a ground truth

AUROC is of the scores of all edges; of algorithms that decide, of the circuit (kept or not), which is one point of a ROC curve.
Precision and recall: of scores, at the true size; of algorithms that decide, of their circuit. Algorithms that take a number of
edges are told the true one, which helps those that train towards it (`edge_pruning`); those with a threshold have one far below
what any true edge is worth in compiled models, and 0.05 in trained ones. Algorithms over heads keep every MLP and embedding,
so that their precision in edges is low by construction: read their nodes. CMD is on held-out examples; of algorithms that
decide, faithfulness stands instead. Masks are trained for fewer steps than by default (last table).
Passes: one is every head and MLP computed once on all search examples. Seconds are of the clock, and grow with whatever else
the machine does: compare passes."""

SHIPPED = """## Shipped models and tasks, without a ground truth

Held-out examples. Scores: CPR and CMD over MIB's ten sizes (.001 to 1 of the edges), with the 95 % bootstrap interval over
examples and the mean of random scores beside. Algorithms that only decide have no curve: a single circuit, its size and its
faithfulness, beside random circuits of the same size and kind. The faithfulness of a head circuit is measured against the
model without any head, that of an edge circuit against the model with every edge cut: compare them within a kind.
Masks are trained for fewer steps than by default (last table), and `edge_pruning` for one size alone, which a curve over ten
sizes punishes."""

MIB = """## By MIB's conventions

Ours and [MIB's](https://arxiv.org/abs/2504.13151), each as median and worst over cases and seeds (worst: lowest AUROC and CPR,
highest CMD). `auroc_mib`: the area under ten points, circuits grown greedily, from the first of them on; ours: all thresholds.
`cmd_mib`, `cpr_mib`: sizes rounded down; CPR ranks by signed scores, CMD by absolute ones; ours: sizes rounded up, absolute for
both. Only cells that were run since these columns are there."""

STABILITY = """## Stability

Mean Jaccard index over pairs of circuits: of bootstrap samples of the search examples (with the jackknife's interval), and of
one set of examples with other seeds of the algorithm (1 where nothing is random). Where the truth is known, at the true size;
else 5 % of the edges; algorithms that decide at the size that their threshold gives."""


def write_page(table: Path) -> list[Path]:
    """Write the page and the figures beside the table; returns their paths.

    Raises:
        BadFile: there is no table.
    """
    rows = read(table)
    torch.set_num_threads(1)  # as the cells ran
    page, figures = table.with_suffix(".md"), table.with_suffix(".html")
    write_figures(rows, figures)
    total = sum(_number(row["cell_seconds"]) or 0.0 for row in rows.values())
    lines = [*INTRODUCTION.format(table=table.name, figures=figures.name).splitlines(), ""]
    lines += [f"{len(rows):,} cells, {total / 60:.1f} minutes of the clock in all. {machine()}", ""]
    lines += [
        *_truth(_part(rows, "truth")),
        *_shipped(_part(rows, "shipped")),
        *_by_mib(rows),
        *_stability(_part(rows, "stability")),
    ]
    lines += [*_refusals(rows), *settings_table(rows)]
    write_text(page, "\n".join(lines) + "\n")
    return [table, page, figures]


def _truth(rows: Rows) -> list[str]:
    if not rows:
        return []
    lines = [*TRUTH.splitlines(), ""]
    for family in ordered(row["family"] for row in rows.values() if row["family"]):
        own = {cell: row for cell, row in rows.items() if row["family"] == family}
        cases = ", ".join(f"`{case}`" for case in ordered(cell.case for cell in own))
        seeds = len({cell.seed for cell in own})
        lines += [f"### {family}: {cases}", ""]
        for metric in ordered(cell.metric for cell in own):
            chosen = {cell: row for cell, row in own.items() if cell.metric == metric}
            lines += [f"Metric `{metric}`, medians over cases and {seeds} seeds:", "", *_summary(chosen), ""]
        lines += ["Case by case: median AUROC of edges over ablations and seeds, metric `logit_diff`:", "", *_by_case(own), ""]
    return lines


def _summary(rows: Rows) -> list[str]:
    """A line for each algorithm and ablation."""
    table = []
    for algorithm in ordered(cell.algorithm for cell in rows):
        for ablation in ordered(cell.ablation for cell in rows):
            own = [row for cell, row in rows.items() if (cell.algorithm, cell.ablation) == (algorithm, ablation)]
            done = [row for row in own if row["AUROC_edges"]]
            if done:
                scored = done[0]["kind"] == "scores"
                end = "_at_true_size" if scored else ""
                hits = [_middle(done, f"{what}_{kind}{end}") for kind in ("edges", "nodes") for what in ("precision", "recall")]
                table.append(
                    [f"`{algorithm}`", done[0]["kind"], ablation, str(len(done)), _middle(done, "AUROC_edges"),
                     _text(min(float(row["AUROC_edges"]) for row in done)), _middle(done, "AUROC_nodes"), *hits,
                     _middle(done, "CMD"), _middle(done, "faithfulness"), _middle(done, "forward_passes", 3),
                     _middle(done, "backward_passes", 3), _middle(done, "seconds")]
                )  # fmt: skip
    headers = ["algorithm", "it", "ablation", "cells", "AUROC edges", "worst", "AUROC nodes", "precision edges", "recall edges"]
    headers += ["precision nodes", "recall nodes", "CMD", "faithfulness", "forward", "backward", "seconds"]
    return markdown(headers, table)


def _by_case(rows: Rows) -> list[str]:
    cases = ordered(cell.case for cell in rows)
    table = []
    for algorithm in ordered(cell.algorithm for cell in rows):
        cells = []
        for case in cases:
            own = [
                row for cell, row in rows.items() if (cell.algorithm, cell.case, cell.metric) == (algorithm, case, "logit_diff")
            ]
            cells.append(_middle(own, "AUROC_edges"))
        table.append([f"`{algorithm}`", *cells])
    return markdown(["algorithm", *cases], table)


def _shipped(rows: Rows) -> list[str]:
    if not rows:
        return []
    lines = [*SHIPPED.splitlines(), ""]
    for case, ablation, metric in ordered((cell.case, cell.ablation, cell.metric) for cell in rows):
        own = {cell: row for cell, row in rows.items() if (cell.case, cell.ablation, cell.metric) == (case, ablation, metric)}
        done = {cell: row for cell, row in own.items() if row["kind"]}
        if not done:
            continue
        first = next(iter(done.values()))
        lines += [f"### {case}, {ablation}", ""]
        lines += [f"Metric `{metric}`, {first['examples']} held-out examples, {first['graph_edges']} edges.", ""]
        curves = [(cell, row) for cell, row in done.items() if row["kind"] == "scores"]
        curves.sort(key=lambda one: float(one[1]["CMD"] or "inf"))
        table = [
            [f"`{cell.algorithm}`", _with_interval(row, "CMD"), _text(_number(row["CMD_random"])), _with_interval(row, "CPR"),
             _text(_number(row["CPR_random"])), *_cost(row)]
            for cell, row in curves
        ]  # fmt: skip
        headers = ["scores", "CMD", "random", "CPR", "random", "forward", "backward", "seconds"]
        lines += [*markdown(headers, table), ""]
        decided = [(cell, row) for cell, row in done.items() if row["kind"] != "scores"]
        table = [
            [f"`{cell.algorithm}`", row["kind"].removeprefix("decides "), row["circuit_edges"],
             _with_interval(row, "faithfulness"), _text(_number(row["faithfulness_random"])), *_cost(row)]
            for cell, row in decided
        ]  # fmt: skip
        headers = ["decides", "over", "edges kept", "faithfulness", "random", "forward", "backward", "seconds"]
        lines += [*markdown(headers, table), ""] if table else []
    return lines


def _by_mib(rows: Rows) -> list[str]:
    """A line for each part, family, metric, ablation and algorithm."""
    done = {cell: row for part in ("truth", "shipped") for cell, row in _part(rows, part).items() if row["cmd_mib"]}
    if not done:
        return []
    groups: dict[tuple[str, ...], list[Row]] = {}
    for cell, row in done.items():
        groups.setdefault((cell.part, row["family"], cell.metric, cell.ablation, f"`{cell.algorithm}`"), []).append(row)
    pairs = (("AUROC_edges", "auroc_mib", min), ("CMD", "cmd_mib", max), ("CPR", "cpr_mib", min))
    table = [
        [*names, str(len(own)), *(cell for ours, theirs, worst in pairs for name in (ours, theirs)
                                  for cell in (_middle(own, name), _worst(own, name, worst)))]
        for names, own in sorted(groups.items(), key=lambda group: group[0][:4])
    ]  # fmt: skip
    figures = [cell for ours, theirs, _ in pairs for name in (ours, f"`{theirs}`") for cell in (name, "worst")]
    return [
        *MIB.splitlines(),
        "",
        *markdown(["part", "models", "metric", "ablation", "algorithm", "cells", *figures], table),
        "",
    ]


def _worst(rows: Sequence[Row], name: str, worst: Callable[[list[float]], float]) -> str:
    values = [float(row[name]) for row in rows if row[name]]
    return _text(worst(values)) if values else "-"


def _stability(rows: Rows) -> list[str]:
    done = {cell: row for cell, row in rows.items() if row["jaccard_edges"]}
    if not done:
        return []
    lines = [*STABILITY.splitlines(), ""]
    for case, ablation, metric in ordered((cell.case, cell.ablation, cell.metric) for cell in done):
        own = {cell: row for cell, row in done.items() if (cell.case, cell.ablation, cell.metric) == (case, ablation, metric)}
        first = next(iter(own.values()))
        size = f", {first['true_edges']} true edges of {first['graph_edges']}" if first["true_edges"] else ""
        lines += [f"### {case}, {ablation}, {metric}{size}", ""]
        table = []
        for cell, row in own.items():
            repeats = dict(word.split("=", 1) for word in row["settings"].split() if "=" in word)
            heads, seeds, seeds_heads = (
                _text(_number(row[f"jaccard_{name}"])) for name in ("heads", "edges_seeds", "heads_seeds")
            )
            found = [_with_interval(row, "jaccard_edges"), heads, repeats.get("bootstraps", ""), seeds, seeds_heads]
            table.append([f"`{cell.algorithm}`", row["circuit_edges"], *found, repeats.get("seeds", "")])
        headers = ["algorithm", "edges", "bootstrap: edges", "heads", "samples", "seeds: edges", "heads", "seeds"]
        lines += [*markdown(headers, table), ""]
    return lines


def _refusals(rows: Rows) -> list[str]:
    """Cells without figures, by sentence."""
    lines = []
    for title, has_figures in (("## Refused", False), ("## Notes", True)):
        noted = {cell: row["note"] for cell, row in rows.items() if row["note"] and bool(row["kind"]) is has_figures}
        found = Counter((cell.part, cell.metric, note) for cell, note in noted.items())
        table = []
        for (part, metric, note), n in found.items():
            same = {cell for cell, sentence in noted.items() if (cell.part, cell.metric, sentence) == (part, metric, note)}
            algorithms = sorted({f"`{cell.algorithm}`" for cell in same})
            words = ", ".join(algorithms) if len(algorithms) < 4 else f"{len(algorithms)} algorithms"
            table.append([part, words, metric, str(n), note.replace("|", "\\|")])
        lines += [title, "", *markdown(["part", "algorithm", "metric", "cells", "sentence"], table), ""] if table else []
    return lines


def settings_table(rows: Rows) -> list[str]:
    """Settings that differ from the defaults, by part."""
    found = Counter((cell.part, cell.algorithm, row["settings"]) for cell, row in rows.items())
    table = [[part, f"`{algorithm}`", f"`{settings}`"] for part, algorithm, settings in sorted(found)]
    return ["## Settings", "", "Numbers of examples and what differs from an algorithm's defaults.", "",
            *markdown(["part", "algorithm", "settings"], table)]  # fmt: skip


# --- figures in cells ----------------------------------------------------------------------------------------------------


def _part(rows: Rows, part: str) -> Rows:
    """A part's rows, in the order of the registry, whatever order they were run in."""
    order = REGISTRY.names
    own = [(cell, row) for cell, row in rows.items() if cell.part == part]
    own.sort(key=lambda one: order.index(one[0].registered) if one[0].registered in order else len(order))
    return dict(own)


def ordered(values: Iterable[Value]) -> list[Value]:
    """Each once, in the order of their first."""
    return list(dict.fromkeys(values))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}g}" if digits > 2 else f"{value:.2f}"


def _middle(rows: Sequence[Row], name: str, digits: int = 2) -> str:
    values = [float(row[name]) for row in rows if row[name]]
    return _text(median(values), digits) if values else "-"


def _with_interval(row: Row, name: str) -> str:
    low, high = (_text(_number(row[f"{name}_{end}"])) for end in ("low", "high"))
    return f"{_text(_number(row[name]))} [{low}, {high}]" if row[name] else "-"


def _cost(row: Row) -> list[str]:
    return [_text(_number(row[name]), 3) for name in ("forward_passes", "backward_passes")] + [_text(_number(row["seconds"]))]
