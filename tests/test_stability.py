"""Stability: against sets, a jackknife written out, and searches that are really repeated."""

import json
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task
from models import model_of

from circuitdisc.discovery import discover
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.scoring.stability import jaccard, jackknife_interval, likeness, mean_of_pairs, stability
from circuitdisc.tasks.base import Task

torch.set_num_threads(1)
SETTINGS: dict[str, Any] = {"ablation": "resample", "edges": 12, "allow_chance": True}


@cache
def small():
    model = model_of("attention_only")
    return model, random_task(model, 6, seed=1)


def literal_jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 1.0


def test_every_circuit_is_that_of_its_own_bootstrap_sample():
    model, task = small()
    found = stability(model, task, "eap", n_bootstrap=4, seed=7, **SETTINGS)
    generator = np.random.default_rng(7)
    expected = []
    for _ in range(4):
        sample = Task("again", tuple(task.train[i] for i in generator.integers(6, size=6)), (), task.metric)
        expected.append(discover(model, sample, "eap", seed=7, **SETTINGS).circuit)
    assert list(found.circuits) == expected
    assert len(set(expected)) > 1
    assert found.whole == discover(model, task, "eap", seed=7, **SETTINGS).circuit
    edges = [set(one.edge_names()) for one in expected]
    heads = [set(one.heads()) for one in expected]
    for one, sets in ((found.edges, edges), (found.heads, heads)):
        pairs = [literal_jaccard(a, b) for a, b in combinations(sets, 2)]
        assert one.mean == pytest.approx(np.mean(pairs))
        for name, share in zip(one.names, one.shares, strict=True):
            assert share == sum(name in members for members in sets) / 4
        own = set(found.whole.edge_names()) if one is found.edges else set(found.whole.heads())
        assert one.with_whole == pytest.approx([literal_jaccard(members, own) for members in sets])
        assert [row["share"] for row in one.table()] == sorted((s for s in one.shares if s), reverse=True)


def test_seeds_vary_only_when_asked():
    model, task = small()
    same = stability(model, task, "random", n_bootstrap=3, **SETTINGS)
    assert same.edges.mean == 1
    assert (same.edges.low, same.edges.high) == (1, 1)
    other = stability(model, task, "random", n_bootstrap=3, vary_seed=True, **SETTINGS)
    expected = [discover(model, task, "random", seed=seed, **SETTINGS).circuit for seed in (1, 2, 3)]
    assert list(other.circuits) == expected
    assert other.edges.mean < 1


def test_the_interval_is_the_jackknife_of_the_mean_over_pairs():
    sets = np.random.default_rng(0).random((6, 15)) < 0.5
    pairs = jaccard(sets, sets)
    left_out = [mean_of_pairs(np.delete(np.delete(pairs, i, 0), i, 1)) for i in range(6)]
    error = np.sqrt(5 / 6 * sum((value - np.mean(left_out)) ** 2 for value in left_out))
    low, high = jackknife_interval(pairs, 0.95)
    assert low == pytest.approx(mean_of_pairs(pairs) - 2.570582 * error)  # t, 5 degrees of freedom
    assert high == pytest.approx(mean_of_pairs(pairs) + 2.570582 * error)
    assert jackknife_interval(pairs[:2, :2], 0.95) == (None, None)


def test_the_interval_covers():
    """The mean over pairs of random sets lies within it about as often as it says."""
    generator = np.random.default_rng(1)
    draws = [generator.random((12, 30)) < 0.4 for _ in range(600)]
    truth = np.mean([mean_of_pairs(jaccard(one, one)) for one in draws[:300]])
    hits = 0
    for one in draws[300:]:
        low, high = jackknife_interval(jaccard(one, one), 0.95)
        assert low is not None
        assert high is not None
        hits += low <= truth <= high
    assert hits >= 0.88 * 300


def test_empty_sets_are_alike():
    nothing = np.zeros((3, 4), dtype=bool)
    assert likeness("heads", "abcd", nothing, nothing[0]).mean == 1
    assert jaccard(nothing[:1], ~nothing[:1])[0, 0] == 0


def test_the_result_is_plain_and_bad_input_is_refused():
    model, task = small()
    found = stability(model, task, "eap", n_bootstrap=2, **SETTINGS)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["table"][0]["low"] is None
    assert plain["settings"]["algorithm"] == "eap"
    assert plain["settings"]["settings"]["edges"] == 12
    assert len(plain["sizes"]) == plain["n"] == 2
    with pytest.raises(BadSetting):
        stability(model, task, "eap", n_bootstrap=1, **SETTINGS)
    with pytest.raises(BadTask):
        stability(model, Task("one", task.train[:1], ()), "eap", n_bootstrap=2, **SETTINGS)
    with pytest.raises(UnknownName):
        stability(model, task, "eapp", n_bootstrap=2)
