"""Only edges whose sign stays: against resamples drawn one by one of scores of single examples, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from examples import random_examples, random_task, unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of
from test_selection import GRAPHS, literal_greedy, random_scores

from circuitdisc.circuit import Circuit
from circuitdisc.discovery import discover
from circuitdisc.discovery.selection import Selection
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.tasks.base import Task

SETTINGS: dict[str, Any] = {"ablation": "resample", "edges": 30, "allow_chance": True, "seed": 3}
GROW = ("top_k", "greedy", "optimal")


@pytest.fixture(scope="module")
def small():
    model = model_of("layer_norm_gated")
    return model, random_task(model, 6, seed=1)


def single_scores(model, task, algorithm="eap"):
    """Scores of every example alone. [B, E]"""
    alone = [discover(model, Task("alone", (one,), (), task.metric), algorithm, **SETTINGS) for one in task.train]
    return np.stack([found.edge_scores[model.graph.edge_mask] for found in alone if found.edge_scores is not None])


def literal_shares(scores, seed):
    """In which share of 1,000 resamples the mean of each edge has the sign of the mean of all; 0 for a mean of 0."""
    generator, n = np.random.default_rng(seed), len(scores)
    sign, alike = np.sign(scores.mean(0)), np.zeros(scores.shape[1])
    for _ in range(1000):
        drawn = np.repeat(np.arange(n), generator.multinomial(n, np.full(n, 1 / n)))
        alike += np.sign(scores[drawn].mean(0)) == sign
    return np.where(sign == 0, 0, alike / 1000)


@pytest.mark.parametrize("algorithm", ["eap", "eap_gp", "ceap"])
def test_edges_are_those_of_resamples_drawn_one_by_one(small, algorithm):
    model, task = small
    scores = single_scores(model, task, algorithm)
    shares = literal_shares(scores, 3)
    table = np.full(model.graph.edge_mask.shape, np.nan)
    table[model.graph.edge_mask] = scores.mean(0)
    for share in (0.7, 0.95):
        only = np.zeros_like(model.graph.edge_mask)
        only[model.graph.edge_mask] = shares >= share
        assert 9 < only.sum() < model.graph.n_edges - 9, "some are set aside, and some stay"
        for grow in GROW:
            found = discover(model, task, algorithm, grow=grow, sign_consistent=share, **SETTINGS)
            assert found.circuit == Selection(edges=30, grow=grow).circuit(model.graph, table, only)
            assert not (found.circuit.mask & ~only).any()
            assert found.units is None, "nobody asked for them"
            (note,) = (note for note in found.notes if "set aside" in note)
            assert f"sign_consistent={share:g}: {(~only & model.graph.edge_mask).sum():,} of {model.graph.n_edges:,}" in note
            assert "1,000 bootstrap resamples of the 6 search examples" in note


def test_a_sample_of_the_examples_sets_aside_by_its_own_resamples(small):
    """What is kept of each unit gives the circuit of a search on the subset, this rule included."""
    model, task = small
    asked = {**SETTINGS, "sign_consistent": 0.9}
    units = discover(model, task, "eap", keep_units=True, **asked).units
    assert units is not None
    for counts in ([1, 0, 1, 1, 0, 1], [1] * 6):
        some = tuple(one for one, n in zip(task.train, counts, strict=True) if n)
        assert units.circuit(np.array(counts)) == discover(model, replace(task, train=some), "eap", **asked).circuit


def test_whole_groups_are_drawn():
    model = model_of("attention_only")
    examples = [replace(one, group=f"g{at % 6}") for at, one in enumerate(random_examples(model, 12))]
    found = discover(model, Task("groups", tuple(examples), ()), "eap", sign_consistent=0.9, **SETTINGS)
    assert any("of the 6 search groups" in note for note in found.notes)


@settings(deadline=None, max_examples=40)
@given(GRAPHS, st.integers(0, 5), st.integers(1, 30), st.sampled_from(["absolute", "signed"]))
def test_choosing_among_some_edges_never_takes_another(graph: ComputationGraph, seed, n, by):
    scores = random_scores(graph, seed, ties=False)
    only = graph.edge_mask & (np.random.default_rng(seed + 1).random(graph.edge_mask.shape) < 0.6)
    grown = Selection(edges=min(n, graph.n_edges), grow="greedy", by=by).circuit(graph, scores, only)
    without = np.where(only, scores, np.inf if by == "signed" else 0.0)  # last of all
    literal = literal_greedy(graph, np.where(graph.edge_mask, without, np.nan), min(n, graph.n_edges), by)
    assert grown == Circuit(graph, literal.mask & only).prune()
    best = Selection(edges=min(n, graph.n_edges), by=by).circuit(graph, scores, only)
    assert not ((grown.mask | best.mask) & ~only).any()


def test_what_cannot_be_resampled_is_refused(small, monkeypatch):
    model, task = small
    with pytest.raises(BadSetting, match="that cannot be: one search example cannot be drawn again"):
        discover(model, replace(task, train=task.train[:1]), "eap", sign_consistent=0.9, **SETTINGS)
    with pytest.raises(BadSetting, match="target= ranks all edges"):
        discover(model, task, "eap", sign_consistent=0.9, target=0.8, **unchecked({**SETTINGS, "edges": None}))
    with pytest.raises(BadSetting, match=r"sign_consistent=1\.5 must be"):
        discover(model, task, "eap", sign_consistent=1.5, **SETTINGS)
    monkeypatch.setattr("circuitdisc.engine.gradients.attribution.chunk_bytes", lambda *_: 4 * 2**30)
    with pytest.raises(BadSetting, match="that cannot be: the scores of 6 examples take"):
        discover(model, task, "eap", sign_consistent=0.9, **SETTINGS)
