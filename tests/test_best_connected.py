"""The connected circuit with the largest sum of scores, against every subset of a small graph."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.discovery import best_connected as room
from circuitdisc.discovery.best_connected import best_connected
from circuitdisc.discovery.selection import greedy
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph

SMALL = [ComputationGraph(1, 1), ComputationGraph(1, 2, has_mlp=False), ComputationGraph(2, 1, has_mlp=False)]
SMALL += [ComputationGraph(1, 1, split_embeddings=True), ComputationGraph(1, 1, parallel=True)]


def is_connected(circuit: Circuit) -> bool:
    """Every edge lies on a path from an embedding to `logits`, found by walking all paths."""
    graph, on_path = circuit.graph, np.zeros_like(circuit.mask)

    def walk(node: str, path: list[tuple[int, int]]) -> None:
        for receiver in graph.node_receivers[node]:
            for sender in np.flatnonzero(circuit.mask[receiver]).tolist():
                name = graph.senders[sender].name
                longer = [*path, (receiver, sender)]
                if not graph.node_receivers[name]:
                    for place in longer:
                        on_path[place] = True
                walk(name, longer)

    walk("logits", [])
    return bool((on_path == circuit.mask).all())


@pytest.mark.parametrize("graph", SMALL, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_connected_circuit_is_worth_more(graph, seed):
    """Beside all subsets of the graph's edges; values of either sign."""
    rng = np.random.default_rng(seed)
    values = np.where(graph.edge_mask, rng.normal(0.3, 1, graph.edge_mask.shape), np.nan)
    places = np.argwhere(graph.edge_mask)
    best = dict.fromkeys((1, 3, 5), 0.0)
    for size in range(1, 6):
        for chosen in combinations(places.tolist(), size):
            mask = np.zeros_like(graph.edge_mask)
            mask[tuple(np.transpose(chosen))] = True
            worth = float(values[mask].sum())
            if any(worth > known for n, known in best.items() if n >= size) and is_connected(Circuit(graph, mask)):
                best |= {n: max(known, worth) for n, known in best.items() if n >= size}
    assert best[5] > best[1] >= 0  # some circuit is worth something
    for n, worth in best.items():
        found = best_connected(graph, values, n)
        assert found.n_edges <= n
        assert is_connected(found)
        assert float(values[found.mask].sum()) == pytest.approx(worth, abs=1e-9)


def test_it_is_worth_more_than_growth_and_uses_all_edges():
    graph = ComputationGraph(4, 4)
    values = np.where(graph.edge_mask, np.random.default_rng(0).standard_t(1.5, graph.edge_mask.shape), np.nan)
    found, grown = best_connected(graph, np.abs(values), 30), greedy(graph, values, 30)
    assert found.n_edges == 30
    assert found.prune() == found
    assert np.abs(values[found.mask]).sum() > np.abs(values[grown.mask]).sum()


def test_a_search_may_ask_for_it():
    model = model_of("gpt2")
    task = random_task(model)
    given: dict[str, Any] = {"ablation": "resample", "metric": "log_prob", "edges": 12, "allow_chance": True}
    found = cd.discover(model, task, "eap", grow="optimal", **given)
    scores = found.edge_scores
    assert scores is not None
    assert found.circuit.mask.sum() == 12
    assert is_connected(found.circuit)
    assert (found.circuit.mask == best_connected(model.graph, np.abs(scores), 12).mask).all()
    signed = cd.discover(model, task, "eap", grow="optimal", by="signed", **given).circuit
    assert (signed.mask == best_connected(model.graph, -scores, 12).mask).all()
    with pytest.raises(BadSetting, match="grow=optimal chooses all of a size together"):
        cd.discover(model, task, "eap", **(given | {"edges": None, "grow": "optimal", "target": 0.9}))


def test_too_large_a_graph_is_refused(monkeypatch):
    monkeypatch.setattr(room, "MOST_EDGES", 10)
    graph = ComputationGraph(2, 2)
    with pytest.raises(BadSetting, match="up to 10 edges; this one has 46: use grow=greedy"):
        best_connected(graph, np.ones(graph.edge_mask.shape), 5)
