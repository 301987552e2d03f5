"""MIB's conventions against its formulas written out, circuit by circuit."""

import heapq
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.discovery import discover
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import get_metric
from circuitdisc.scoring.mib import auroc_mib, mib_curves, mib_sizes

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks is no part of the installed package

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
SETTINGS: dict[str, Any] = {"ablation": "resample", "edges": 12, "allow_chance": True}


@cache
def searched():
    model = model_of("layer_norm_gated")
    task = random_task(model, 6, seed=2)
    found = discover(model, task, "eap", **SETTINGS)
    assert found.edge_scores is not None
    return model, task, found, found.edge_scores


def literal_circuit(graph, scores, n: int, absolute: bool) -> Circuit:
    """The n edges with the highest scores (in MIB's sign: higher helps) that lie between input and logits."""
    edges = [(int(r), int(s)) for r, s in np.argwhere(graph.edge_mask)]
    edges.sort(key=lambda edge: -(abs(scores[edge]) if absolute else -scores[edge]))
    names = {graph.edge_name(r, s) for r, s in edges[:n]}
    while True:
        into = {name.split("->")[1].split("<")[0] for name in names} | {"input"}
        out_of = {name.split("->")[0] for name in names} | {"logits"}
        kept = {name for name in names if name.split("->")[0] in into and name.split("->")[1].split("<")[0] in out_of}
        if kept == names:
            return Circuit.from_edges(graph, sorted(names))
        names = kept


def test_areas_are_trapezoids_over_sizes_rounded_down():
    model, task, found, scores = searched()
    graph, metric = model.graph, get_metric("logit_diff")
    patching = Patching(model, cd.Ablation("resample"), task.train)

    def measured(circuit: Circuit) -> float:
        return float(patching.evaluate(task.heldout, {"it": circuit.mask}, [metric])["it"]["logit_diff"].mean())

    full, empty = measured(Circuit.full(graph)), measured(Circuit.empty(graph))
    ours = mib_curves(model, task, found)
    for absolute in (False, True):
        f = []
        for share in SHARES:
            circuit = literal_circuit(graph, scores, int(share * graph.n_edges), absolute)
            f.append((measured(circuit) - empty) / (full - empty))
        area_under = area_from_1 = 0.0
        for i in range(len(SHARES) - 1):
            width = SHARES[i + 1] - SHARES[i]
            area_under += width * (f[i] + f[i + 1]) / 2
            area_from_1 += width * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
        line = ours.absolute if absolute else ours.signed
        assert [point.faithfulness for point in line.points] == pytest.approx(f, abs=1e-9)
        assert line.cpr.value == pytest.approx(area_under)
        assert line.cmd.value == pytest.approx(area_from_1)
    assert ours.signed.cpr.value != ours.absolute.cpr.value
    assert mib_sizes(graph)[0] == 0 < math.ceil(0.001 * graph.n_edges), "down, not up"
    both = mib_curves(model, task, found, signed=False)
    assert both.signed is both.absolute


def literal_auroc(graph, scores, true: set[str]) -> float:
    """Ten greedy circuits; trapezoids between their rates, the false ones over the last."""
    names = {(int(r), int(s)): graph.edge_name(int(r), int(s)) for r, s in np.argwhere(graph.edge_mask)}
    fpr, tpr = [], []
    for share in SHARES:
        left, taken, reached, heap = share * len(names), set[str](), {"logits"}, []

        def offer(node: str) -> None:
            for (r, s), name in names.items():
                if name.split("->")[1].split("<")[0] == node:
                    heapq.heappush(heap, (-abs(scores[r, s]), name))  # noqa: B023

        offer("logits")
        while left > 0 and heap:  # `left` is no whole number: one edge more for its rest
            left -= 1
            _, name = heapq.heappop(heap)
            taken.add(name)
            parent = name.split("->")[0]
            if parent not in reached:
                reached.add(parent)
                offer(parent)
        taken = set(Circuit.from_edges(graph, sorted(taken)).prune(unreached=True).edge_names())
        fpr.append(len(taken - true) / (len(names) - len(true)))
        tpr.append(len(taken & true) / len(true))
    return sum((fpr[i + 1] - fpr[i]) / fpr[-1] * (tpr[i] + tpr[i + 1]) / 2 for i in range(9))


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_that_of_ten_greedy_circuits(seed):
    model, _, _, scores = searched()
    graph = model.graph
    generator = np.random.default_rng(seed)
    scores = np.where(graph.edge_mask, generator.standard_normal(graph.edge_mask.shape), np.nan) if seed else scores
    true = Circuit(graph, graph.edge_mask & (generator.random(graph.edge_mask.shape) < 0.2))
    assert auroc_mib(scores, true) == pytest.approx(literal_auroc(graph, scores, set(true.edge_names())))


def test_what_has_no_curve_has_no_area():
    model, _, _, scores = searched()
    assert auroc_mib(scores, Circuit.empty(model.graph)) is None
    assert auroc_mib(scores, Circuit.full(model.graph)) is None


def test_the_benchmark_has_them_beside_ours(tmp_path):
    from benchmarks.discovery import table
    from benchmarks.discovery.__main__ import main
    from benchmarks.discovery.cases import load_case
    from benchmarks.discovery.launch import compose

    path = tmp_path / "T.csv"
    small = ["truth.n=8", "truth.n_heldout=8", "truth.distractors=0", "seed=0,1", "ablation=resample", "metric=logit_diff"]
    asked = ["part=truth", "case=histogram", "algorithm=eap,hisp,acdc", *small, f"out={path}"]
    assert main(asked) == 0
    rows = {str(cell): row for cell, row in table.read(path).items()}
    case = load_case("histogram", compose(small[:3]), "truth", 0)
    assert case.truth is not None
    true = case.true_circuit("histogram", "resample").circuit("resample")
    found = discover(case.model, case.task, "eap", ablation="resample", metric="logit_diff", edges=true.n_edges)
    assert found.edge_scores is not None
    row, curves = rows["truth|histogram|resample|logit_diff|eap|0"], mib_curves(case.model, case.task, found, seed=0)
    ours = {
        "auroc_mib": auroc_mib(found.edge_scores, true),
        "cmd_mib": curves.absolute.cmd.value,
        "cpr_mib": curves.signed.cpr.value,
    }
    for name, value in ours.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-3)
    assert float(row["cmd_mib_low"]) <= float(row["cmd_mib"]) <= float(row["cmd_mib_high"])
    assert rows["truth|histogram|resample|logit_diff|acdc|0"]["cmd_mib"] == "", "what decides has no curve"
    page = path.with_suffix(".md").read_text("utf-8")
    eaps = [float(rows[f"truth|histogram|resample|logit_diff|eap|{seed}"]["cmd_mib"]) for seed in (0, 1)]
    (line,) = [
        line for line in page.splitlines() if line.startswith("| truth | compiled | logit_diff | resample | `eap` | 2 |")
    ]
    assert line.split("|")[13:15] == [f" {np.median(eaps):.2f} ", f" {max(eaps):.2f} "]


@pytest.mark.parametrize("columns", [0, 1])
def test_an_older_table_opens_and_gets_the_columns(columns, tmp_path):
    from benchmarks.discovery import table

    older = table.OLDER[columns]
    path = tmp_path / "T.csv"
    values = {"part": "truth", "case": "sort", "ablation": "zero", "metric": "kl", "algorithm": "eap", "seed": "0", "note": "x"}
    text = "\n".join([",".join(older), ",".join(values.get(name, "") for name in older)]) + "\n"
    path.write_text(text)
    before = table.read(path)
    assert [row["cmd_mib"] for row in before.values()] == [""]
    table.start(path)
    assert path.read_text().splitlines()[0] == ",".join(table.COLUMNS)
    assert table.read(path) == before
