"""The parts of the benchmark: against a ground truth, on shipped tasks and a real model without one, and stability."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.discovery.cases import Case, load_case
from benchmarks.discovery.cells import Cell, repeats
from benchmarks.discovery.judged import judged, of_halves
from benchmarks.discovery.searched import cost_columns, search, settings_for
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.scoring.against_truth import Agreement, against_truth
from circuitdisc.scoring.mib import auroc_mib
from circuitdisc.scoring.stability import likeness, mean_of_pairs, stability

Columns = dict[str, Any]


def truth(cell: Cell, config: Mapping[str, Any]) -> Columns:
    """What was found against what is true, and its held-out judgement."""
    case = load_case(cell.case, config, "truth", cell.seed)
    true = case.true_circuit(cell.case, cell.ablation)
    size = true.circuit(cell.ablation).n_edges
    found = search(cell, config, case.model, case.task, size)
    scored = found.edge_scores is not None
    of_circuit = against_truth(found.circuit, true, ablation=cell.ablation)
    ranked = against_truth(found, true, ablation=cell.ablation) if scored else of_circuit
    row = {"family": case.family, "examples": len(case.task.heldout), "true_edges": size} | cost_columns(found, scored)
    row |= {"AUROC_edges": ranked.edges.auroc, "AUROC_nodes": ranked.nodes.auroc}
    row |= {} if found.edge_scores is None else {"auroc_mib": auroc_mib(found.edge_scores, true.circuit(cell.ablation))}
    row |= _hits(of_circuit.edges) | _hits(of_circuit.nodes)
    row |= _hits(ranked.edges, "_at_true_size") | _hits(ranked.nodes, "_at_true_size") if scored else {}
    row |= judged(cell, case.model, case.task, found, scored, config["truth"]["n_random"], size)
    return row | _halves(cell, config, case, found, row["equal_edges"], size)


def shipped(cell: Cell, config: Mapping[str, Any]) -> Columns:
    """The held-out judgement alone."""
    case = load_case(cell.case, config, cell.part, cell.seed)
    found = search(cell, config, case.model, case.task)
    scored = found.edge_scores is not None
    row = {"family": case.family, "examples": len(case.task.heldout)} | cost_columns(found, scored)
    row |= judged(cell, case.model, case.task, found, scored, config[cell.part]["n_random"], None)
    return row | _halves(cell, config, case, found, row["equal_edges"], None)


def _halves(cell: Cell, config: Mapping[str, Any], case: Case, found: Discovery, size: int, true_size: int | None) -> Columns:
    """How alike the circuits of two halves of the search examples are, where that is asked for."""
    if not config["halves"]:
        return {}
    again = None if cell.part == "real" else lambda task: search(cell, config, case.model, task, true_size)
    return of_halves(case.task, found, size, again)


def stable(cell: Cell, config: Mapping[str, Any]) -> Columns:
    """How alike the circuits of bootstrap samples are, and those of the same examples and other seeds."""
    case = load_case(cell.case, config, "stability", cell.seed)
    size = case.true_circuit(cell.case, cell.ablation).circuit(cell.ablation).n_edges if case.truth is not None else None
    n_bootstrap, n_seeds = repeats(cell, config)
    shared: dict[str, Any] = {"ablation": cell.ablation, "metric": cell.metric, "memory": config["memory"]}
    settings = settings_for(cell, config, size)
    found = stability(case.model, case.task, cell.registered, n_bootstrap=n_bootstrap, seed=cell.seed, **shared, **settings)
    others = [
        search(Cell(cell.part, cell.case, cell.ablation, cell.metric, cell.algorithm, cell.seed + 1 + index), config,
               case.model, case.task, size)
        for index in range(n_seeds - 1)
    ]  # fmt: skip
    circuits = [found.whole, *(one.circuit for one in others)]
    heads = [node.name for node in case.model.graph.senders if node.kind == "head"]
    return {
        "family": case.family,
        "kind": f"{found.whole.granularity}s",
        "examples": len(case.task.train),
        "graph_edges": case.model.graph.n_edges,
        "circuit_edges": found.whole.n_edges,
        "true_edges": size,
        "jaccard_edges": found.edges.mean,
        "jaccard_edges_low": found.edges.low,
        "jaccard_edges_high": found.edges.high,
        "jaccard_heads": found.heads.mean,
        "jaccard_edges_seeds": _alike([one.mask[one.graph.edge_mask] for one in circuits]),
        "jaccard_heads_seeds": _alike([_has(one, heads) for one in circuits]),
    }


RUN: dict[str, Callable[[Cell, Mapping[str, Any]], Columns]] = {
    "truth": truth,
    "shipped": shipped,
    "real": shipped,
    "stability": stable,
}


def run(cell: Cell, config: Mapping[str, Any]) -> Columns:
    """The columns of a cell, with the seconds that it took."""
    started = time.perf_counter()
    columns = RUN[cell.part](cell, config)
    return columns | {"cell_seconds": time.perf_counter() - started}


def _hits(agreement: Agreement, suffix: str = "") -> Columns:
    kind = agreement.kind
    return {f"precision_{kind}{suffix}": agreement.precision, f"recall_{kind}{suffix}": agreement.recall}


def _has(circuit: Circuit, heads: list[str]) -> np.ndarray:
    kept = set(circuit.heads())
    return np.array([head in kept for head in heads], dtype=bool)


def _alike(sets: list[np.ndarray]) -> float | None:
    """Mean Jaccard index over pairs; None for a single circuit."""
    if len(sets) < 2:
        return None
    names = [str(index) for index in range(len(sets[0]))]
    return mean_of_pairs(likeness("edges", names, np.array(sets), sets[0]).pairs)
