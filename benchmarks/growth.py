"""How the work of a search and of a circuit grows with edges, prompts and length, in counts that no machine changes.

    python benchmarks/growth.py        # writes benchmarks/results/GROWTH.md

Graphs have real sizes (GPT-2 small and up to 30 layers of 12 heads, 211,096 edges); the width is small, since no count
depends on it. Weights and prompts are random; nothing is downloaded.

    tested      candidates that ACDC measured
    forwards    node evaluations of the search (a head or an MLP at all tokens of all examples), over the nodes of the model
    a candidate the same for each candidate
    one circuit node evaluations of a run of 500 edges, over the nodes of the model, and rows of senders that were copied
"""

import argparse
import math
from pathlib import Path

import numpy as np
from common import machine, markdown, random_gpt2, random_task

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.acdc import acdc
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.selection import greedy
from circuitdisc.engine.circuit_run import CircuitRun
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import get_metric

RESULTS = Path(__file__).parent / "results" / "GROWTH.md"
RESAMPLE, METRIC = Ablation("resample"), "logit_diff"
BASE = {"layers": 12, "prompts": 8, "length": 12}
VARIED = {"layers": (12, 18, 24, 30), "prompts": (4, 8, 16), "length": (6, 12, 24)}
HEADERS = [
    "varied", "values", "edges", "tested", "kept", "forwards of the search", "of a candidate", "one circuit: forwards",
    "rows copied", "exponent of the search", "of a candidate", "of one circuit",
]  # fmt: skip


def counts(layers: int, prompts: int, length: int) -> dict[str, float]:
    """The counts of one size. The threshold is a share of what everything cut changes, so that circuits stay comparable."""
    model = random_gpt2({"n_layer": layers, "n_head": 12, "n_embd": 48, "vocab_size": 200, "initializer_range": 0.12})
    task, metric = random_task(model, prompts, length, length // 2), get_metric(METRIC)
    graph, patching = model.graph, Patching(model, RESAMPLE, task.train)
    chunks = patching.hold(task.train)
    full, empty, _ = patching.ends(chunks, metric, graph.edge_mask)
    discovery = acdc(model, task, RESAMPLE, SearchContext(metric=METRIC), threshold=max(abs(full - empty), 0.1) / 20)
    n_nodes, tested = layers * 13, sum("edge" in line for line in discovery.trace)
    scores = np.where(graph.edge_mask, np.random.default_rng(0).random(graph.edge_mask.shape), np.nan)
    run = CircuitRun(model.components, graph, chunks[0], greedy(graph, scores, 500).mask)
    forwards = discovery.cost.node_evaluations / n_nodes
    return {
        "edges": graph.n_edges,
        "tested": tested,
        "kept": discovery.circuit.n_edges,
        "forwards": forwards,
        "a candidate": forwards / max(1, tested),
        "circuit": run.node_evaluations / n_nodes,
        "rows": run.difference.n_gathered,
    }


def exponent(sizes: list[float], values: list[float]) -> str:
    """Slope of log value over log size."""
    slope = np.polyfit([math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values], 1)[0]
    return f"{slope:.2f}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for varied, values in VARIED.items():
        found = [counts(**BASE | {varied: value}) for value in values]
        sizes = [point["edges"] for point in found] if varied == "layers" else [float(value) for value in values]
        shown = {"edges": ",.0f", "tested": ",.0f", "kept": ",.0f", "forwards": ",.1f", "a candidate": ".4f", "circuit": ".2f"}
        cells = [", ".join(f"{point[name]:{form}}" for point in found) for name, form in (shown | {"rows": ",.0f"}).items()]
        slopes = [exponent(sizes, [point[name] for point in found]) for name in ("forwards", "a candidate", "circuit")]
        rows.append([varied, ", ".join(map(str, values)), *cells, *slopes])
        print(" | ".join(rows[-1]), flush=True)
        text = [f"`python benchmarks/growth.py` ({machine()}). Exponents over edges (layers), prompts and length.", ""]
        RESULTS.write_text("\n".join([*text, *markdown(HEADERS, rows)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
