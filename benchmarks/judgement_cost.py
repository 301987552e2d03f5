"""What judging a circuit costs: every score of a 500-edge circuit on GPT-2 small's shape, and the same by masked runs.

    python benchmarks/judgement_cost.py      # writes benchmarks/results/JUDGEMENT_COST.md, row by row

Weights and prompts are random; nothing is downloaded. 32 prompts: 16 to search sets on, 16 held out. A plain forward is one
call of the model itself on 16 prompts, timed before and after each score. All times are the process's own (CPU) seconds on one
thread, so that other work on the machine counts little.

A masked run is the plain way to evaluate a circuit: the whole model, every receiver's input summed anew (`plain_loop.py`). How
many of them a score needs is counted exactly; those of the curve are all run, and its values compared; for the others the
seconds are the count times the median of a sample of masked runs that is timed beside the score, and marked "extrapolated".
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, markdown, random_gpt2, random_task
from plain_loop import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.selection import greedy
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import get_metric
from circuitdisc.models import Model
from circuitdisc.scoring.curves import MIB_SHARES, n_edges
from circuitdisc.tasks.base import Task

RESULTS = Path(__file__).parent / "results" / "JUDGEMENT_COST.md"
EDGES, HEADS, SAMPLE = 500, 26, 2
CURVE = "curve, ten sizes, 3 controls"
SETTINGS: dict[str, Any] = {"ablation": "resample", "metric": "logit_diff"}
HEADER = [
    "score", "circuits evaluated", "node evaluations / all nodes", "circuitdisc, seconds", "plain forwards",
    "masked runs, seconds", "plain forwards", "masked / circuitdisc",
]  # fmt: skip


class Bench:
    """One model, one task, and the clocks."""

    def __init__(self, layers: int, prompts: int, length: int, differ_at: int) -> None:
        self.model: Model = random_gpt2({"initializer_range": 0.05, "n_layer": layers})
        task = random_task(self.model, 2 * prompts, length, differ_at)
        self.task: Task = replace(task, train=task.train[:prompts], heldout=task.train[prompts:])
        graph, generator = self.model.graph, np.random.default_rng(0)
        self.scores = np.where(graph.edge_mask, generator.random(graph.edge_mask.shape), np.nan)
        self.circuit = greedy(graph, self.scores, EDGES)
        names = [node.name for node in graph.senders if node.kind == "head"]
        self.heads = Circuit.from_heads(graph, generator.choice(names, min(HEADS, len(names)), replace=False).tolist())
        self.tokens = torch.tensor([example.clean for example in self.task.heldout])
        (self.chunk,) = Patching(self.model, Ablation("resample"), self.task.train).hold(self.task.heldout)

    @torch.no_grad()
    def forward(self) -> float:
        return seconds(lambda: self.model.module(self.tokens))

    def masked(self) -> float:
        """One masked run of the circuit."""
        return seconds(lambda: masked_run(self.model, self.chunk, self.circuit.mask))

    def row(
        self,
        name: str,
        score: Callable[[], Any],
        count: Callable[[Any], int | None],
        slow: Callable[[Any], float] | None = None,
    ) -> list[str]:
        """Run one score, with plain forwards and masked runs before and after it.

        Args:
            count: how many circuits the score evaluates; None where it finds circuits, and evaluates none.
            slow: makes all its masked runs, and gives their seconds.
        """
        forwards, masked = [self.forward() for _ in range(2)], [self.masked() for _ in range(SAMPLE)]
        started = time.process_time()
        found = score()
        ours = time.process_time() - started
        forwards += [self.forward() for _ in range(2)]
        masked += [self.masked() for _ in range(SAMPLE)]
        forward, n = statistics.median(forwards), count(found)
        cost = getattr(found, "cost", None)
        all_nodes = self.model.graph.n_layers * (self.model.graph.n_heads + 1)
        nodes = f"{cost['node_evaluations'] / all_nodes:,.0f}" if cost else ""
        mine = [name, f"{n:,}" if n else "", nodes, f"{ours:,.0f}", f"{ours / forward:,.0f}"]
        if n is None:
            return [*mine, "", "", ""]
        theirs, how = (n * statistics.median(masked), " (extrapolated)") if slow is None else (slow(found), " (all run)")
        return [*mine, f"{theirs:,.0f}{how}", f"{theirs / forward:,.0f}", f"{theirs / ours:.1f}"]

    def slow_curve(self, found: Any) -> float:
        """Seconds of the curve's masked runs; its own circuits' means must be those of the curve."""
        graph, metric = self.model.graph, get_metric("logit_diff")
        source, generator = Discovery(self.circuit, self.scores), np.random.default_rng(0)
        own = [source.top_k(n_edges(graph, share)).mask for share in MIB_SHARES]
        random = np.where(graph.edge_mask, generator.standard_normal(graph.edge_mask.shape), np.nan)
        others = [Discovery(self.circuit, random).top_k(n_edges(graph, share)).mask for share in MIB_SHARES]
        masks = [graph.edge_mask, np.zeros_like(graph.edge_mask), *own, *others, *others, *others]
        values, started = [], time.process_time()
        for mask in masks:
            values.append(float(metric(masked_run(self.model, self.chunk, mask), self.chunk.labels).mean()))
        spent = time.process_time() - started
        expected = [found.full, found.empty, *(point.mean for point in found.points)]
        assert np.allclose(values[: len(expected)], expected, atol=1e-3), "the curve is not that of the masked runs"
        return spent


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def rows(bench: Bench, only: str) -> Iterator[list[str]]:
    """The table, row by row; `only` those whose name holds one of these words."""
    model, task, circuit = bench.model, bench.task, bench.circuit
    source = Discovery(circuit, bench.scores)

    def sets(found: Any) -> int:
        return int(found.cost["candidates"]) + 3  # and full, complement, empty

    table: list[tuple[str, Callable[[], Any], Callable[[Any], int | None]]] = [
        (
            f"greedy completeness of {len(bench.heads.heads())} heads",
            lambda: cd.completeness(model, task, bench.heads, n_random=0, n_controls=0, **SETTINGS),
            sets,
        ),
        (
            "completeness by node, greedy, 5 controls",
            lambda: cd.completeness(model, task, circuit, **SETTINGS),
            sets,
        ),
        (
            "minimality by edge, 10 random sets",
            lambda: cd.minimality(model, task, circuit, by="edge", **SETTINGS),
            lambda found: int(found.cost["candidates"] + found.cost["circuit_runs"]),
        ),
        (
            "five hypothesis tests, 100 random circuits",
            lambda: cd.hypothesis_tests(model, task, circuit, **SETTINGS),
            lambda found: 3 + len(found.members.names) + 4 * 100,
        ),
        (
            "faithfulness, 20 controls, both splits",
            lambda: cd.score(model, task, circuit, **SETTINGS),
            lambda _: 2 * (3 + 20),
        ),
        (
            CURVE,
            lambda: cd.curve(model, task, source, **SETTINGS),
            lambda _: 2 + 4 * len(MIB_SHARES),
        ),
        (
            "stability of eap, 5 samples (finds circuits, evaluates none)",
            lambda: cd.stability(model, task, "eap", n_bootstrap=5, edges=EDGES, allow_chance=True, **SETTINGS),
            lambda _: None,
        ),
    ]
    for name, score, count in table:
        if any(word in name for word in only.split(",")):
            yield bench.row(name, score, count, bench.slow_curve if name == CURVE else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=16, help="of each split")
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--differ-at", type=int, default=5, help="the one position at which clean and corrupted prompts differ")
    parser.add_argument("--rows", default="", help="only rows whose name holds one of these words, comma-separated")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.layers, args.prompts, args.length, args.differ_at)
    circuit = bench.circuit
    setting = (
        f"GPT-2 small's shape ({args.layers} x 12, width 768), random weights; {2 * args.prompts} prompts of {args.length} "
        f"tokens that differ at position {args.differ_at}, half of them held out; logit difference, resample ablation; a "
        f"circuit of {circuit.n_edges} edges and {len(circuit.heads())} heads. Seconds are those of the process, on one thread."
    )
    done: list[list[str]] = []
    for row in rows(bench, args.rows):
        done.append(row)
        print("| " + " | ".join(row) + " |", flush=True)
        text = ["# What judging a circuit costs", "", "`python benchmarks/judgement_cost.py`", "", setting, machine(), ""]
        args.out.write_text("\n".join([*text, *markdown(HEADER, done), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
