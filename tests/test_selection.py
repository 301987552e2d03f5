"""From scores to circuits: greedy growth against its literal description, sizes, ties and refusals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.selection import Selection, greedy, top_k
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.graph import ComputationGraph

GRAPHS = st.builds(ComputationGraph, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.just(False), st.booleans())


def random_scores(graph, seed, ties):
    drawn = np.random.default_rng(seed).normal(size=graph.edge_mask.shape)
    return np.where(graph.edge_mask, drawn.round(0) if ties else drawn, np.nan)


def literal_greedy(graph, scores, n, by):
    """Look through all edges in each step for the best one into a node that is already there."""
    mask = np.zeros_like(graph.edge_mask)
    reached = {"logits"}
    for _ in range(n):
        best = None
        for receiver, sender in np.argwhere(graph.edge_mask & ~mask):
            if graph.receivers[receiver].node.name in reached:
                key = -abs(scores[receiver, sender]) if by == "absolute" else scores[receiver, sender]
                if best is None or key < best[0]:
                    best = (key, receiver, sender)
        if best is None:
            break
        mask[best[1], best[2]] = True
        reached.add(graph.senders[best[2]].name)
    return Circuit(graph, mask)


@settings(max_examples=60, deadline=None)
@given(
    graph=GRAPHS,
    seed=st.integers(0, 10**6),
    n=st.integers(1, 30),
    by=st.sampled_from(["absolute", "signed"]),
    ties=st.booleans(),
)
def test_greedy_equals_the_literal_one(graph, seed, n, by, ties):
    scores = random_scores(graph, seed, ties)
    found = greedy(graph, scores, n, by)
    assert found == literal_greedy(graph, scores, n, by)
    assert found.n_edges == min(n, graph.n_edges)
    assert found == found.prune()


@settings(max_examples=60, deadline=None)
@given(
    graph=GRAPHS,
    seed=st.integers(0, 10**6),
    n=st.integers(1, 30),
    by=st.sampled_from(["absolute", "signed"]),
    ties=st.booleans(),
)
def test_top_k_is_the_head_of_the_sorted_list_pruned(graph, seed, n, by, ties):
    scores = random_scores(graph, seed, ties)
    edges = [tuple(edge) for edge in np.argwhere(graph.edge_mask)]
    edges.sort(key=lambda edge: -abs(scores[edge]) if by == "absolute" else scores[edge])
    mask = np.zeros_like(graph.edge_mask)
    for edge in edges[:n]:
        mask[edge] = True
    assert top_k(graph, scores, n, by) == Circuit(graph, mask).prune()


def test_signed_takes_what_the_metric_misses():
    graph = ComputationGraph(1, 1, has_mlp=False)
    scores = np.where(graph.edge_mask, 5.0, np.nan)
    scores[graph.parse_edge("input->logits")] = -1.0
    assert top_k(graph, scores, 1, "signed").edge_names() == ["input->logits"]
    assert top_k(graph, scores, 5, "absolute").n_edges == 5


def test_sizes():
    graph = ComputationGraph(2, 2)
    assert Selection(fraction=0.1).n_edges(graph) == -(-graph.n_edges // 10)
    assert Selection(edges=7).n_edges(graph) == 7
    assert Selection(edges=7, grow="greedy").circuit(graph, random_scores(graph, 0, False)).n_edges == 7


def test_bad_selections_get_a_sentence():
    graph = ComputationGraph(1, 2)
    bad_edges: list[Any] = [0, -3, 2.5, True]
    for edges in bad_edges:
        with pytest.raises(BadSetting, match="a whole number from 1"):
            Selection(edges=edges)
    bad_fractions: list[Any] = [0, 1.5, float("nan"), "half"]
    for fraction in bad_fractions:
        with pytest.raises(BadSetting, match="fraction="):
            Selection(fraction=fraction)
    with pytest.raises(UnknownName, match="top_k"):
        Selection(grow="topk")  # pyright: ignore[reportArgumentType] - the mistake under test
    with pytest.raises(UnknownName, match="signed"):
        Selection(by="sign")  # pyright: ignore[reportArgumentType] - the mistake under test
    with pytest.raises(BadSetting, match=f"edges=999 is more than the {graph.n_edges}"):
        Selection(edges=999).n_edges(graph)
    with pytest.raises(BadSetting, match="not finite"):
        top_k(graph, np.full(graph.edge_mask.shape, np.nan), 3)
    with pytest.raises(BadSetting, match="do not fit the graph"):
        top_k(graph, np.zeros((2, 2)), 3)
