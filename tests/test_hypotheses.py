"""The hypothesis tests of a circuit, against values computed from the slow reference run and written-out counts."""

import json
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_examples, random_task, some_circuit
from models import model_of
from reference import masked_run
from scipy import stats

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.scoring.changes import complement, inflate, members, random_path, random_paths, without
from circuitdisc.scoring.exact_tests import holm, sign_test
from circuitdisc.scoring.hypotheses import _circuits, _matched, distance, hypothesis_tests
from circuitdisc.tasks.base import Task

torch.set_num_threads(1)
GRAPHS = [
    ComputationGraph(2, 3),
    ComputationGraph(2, 2, has_mlp=False),
    ComputationGraph(3, 2, parallel=True, split_embeddings=True),
]
SETTINGS: dict[str, Any] = {"ablation": "resample", "n_random": 6, "n_permutations": 30, "quantile": 0.5, "seed": 4}


@cache
def small():
    model = model_of("attention_only")
    return model, random_task(model, 5, seed=1)


def circuits_of(granularity):
    graph = small()[0].graph
    return Circuit.from_heads(graph, ["a0.h1", "a1.h0", "a1.h2"]) if granularity == "head" else some_circuit(graph, 2, 0.4)


def literal_values(circuit, split="heldout", random="paths", metric="logit_diff"):
    """Every circuit of the tests by the masked reference run."""
    model, task = small()
    (chunk,) = Patching(model, Ablation("resample"), task.train).hold(task.split(split))
    generator = np.random.default_rng([SETTINGS["seed"], 1])
    by_paths, n = random == "paths" and circuit.granularity == "edge", SETTINGS["n_random"]
    drawn = None if by_paths else random_circuits(circuit, n, np.random.default_rng([SETTINGS["seed"], 3])).circuits
    named = dict(_circuits(circuit, members(circuit), n, drawn, generator))
    measure = get_metric(metric)
    return {
        name: chunk.batch.per_example(measure(masked_run(model, chunk, one.mask.copy()), chunk.labels)).numpy()
        for name, one in named.items()
    }


@pytest.mark.parametrize(("granularity", "random"), [("edge", "matched"), ("edge", "paths"), ("head", "matched")])
def test_the_five_tests_are_what_the_reference_runs_give(granularity, random):
    model, task = small()
    circuit = circuits_of(granularity)
    values = literal_values(circuit, random=random)
    found = hypothesis_tests(model, task, circuit, random=random, **SETTINGS)

    def d(a, b):
        return float(np.mean([abs(x - y) for x, y in zip(values[a], values[b], strict=True)]))

    for name in ("full", "circuit", "complement"):
        assert found.values[name] == pytest.approx(values[name], abs=1e-9)
    n = SETTINGS["n_random"]
    assert found.random == pytest.approx([d("full", f"random{i}") for i in range(n)], abs=1e-9)
    assert found.random_complements == pytest.approx([d("full", f"random_complement{i}") for i in range(n)], abs=1e-9)
    better = sum(d("full", "circuit") < d("full", f"random{i}") for i in range(n))
    worse = sum(d("full", "complement") > d("full", f"random_complement{i}") for i in range(n))
    assert found.get("sufficiency").statistic == better / n
    assert found.get("sufficiency").p_value == pytest.approx(stats.binom.sf(better - 1, n, 0.5))
    assert found.get("partial necessity").p_value == pytest.approx(stats.binom.sf(worse - 1, n, 0.5))
    chance = [d(f"inflated{i}", f"reduced{i}") for i in range(n)]
    tails = []
    for name, effect, share in zip(found.members.names, found.members.effects, found.members.shares, strict=True):
        assert effect == pytest.approx(d("circuit", f"without {name}"), abs=1e-9)
        count = sum(d("circuit", f"without {name}") > other + 1e-9 for other in chance)
        assert share == count / n
        tails.append(stats.binom.cdf(count, n, 0.5))
    assert list(found.members.names) == members(circuit)
    assert found.members.adjusted == pytest.approx(holm(np.array(tails)))
    assert found.get("minimality").p_value == pytest.approx(min(1.0, min(tails) * len(tails)))
    share, p_value, n_untied = sign_test(values["circuit"], values["full"], 0.1)
    equivalence = found.get("equivalence")
    assert (equivalence.statistic, equivalence.p_value, equivalence.n) == (share, pytest.approx(p_value), n_untied)


def test_the_whole_model_without_one_idle_edge_is_equivalent_and_that_edge_alone_is_not_missed():
    """An edge into a head whose output goes nowhere does nothing, so it is found among those that do no more than chance."""
    model, task = small()
    graph = model.graph
    mask = graph.edge_mask.copy()
    mask[:, graph.sender_index["a1.h3"]] = False
    mask[graph.receiver_index["a1.h2<q>"], graph.sender_index["input"]] = False
    found = hypothesis_tests(model, task, Circuit(graph, mask), **(SETTINGS | {"n_random": 30, "quantile": 0.9}))
    idle = {name for name in found.members.names if "->a1.h3" in name}
    effects = dict(zip(found.members.names, found.members.effects, strict=True))
    assert idle
    assert all(effects[name] == 0 for name in idle)
    rejected = {name for name, hit in zip(found.members.names, found.members.rejected, strict=True) if hit}
    assert idle <= rejected
    assert found.get("minimality").reject


def test_a_distance_leaves_rounding_out():
    values = np.array([3.0, -8.0, 1.0])
    assert distance(values, values + 1e-6) == 0
    assert distance(values, values + np.array([0.0, 1e-6, 0.3])) == pytest.approx(0.1)


@pytest.mark.parametrize("graph", GRAPHS, ids=ComputationGraph.describe)
def test_random_paths_lead_from_an_embedding_to_logits(graph):
    generator = np.random.default_rng(0)
    mask = some_circuit(graph).mask
    for _ in range(30):
        path = random_path(graph, mask, generator)
        assert any(not mask[place] for place in path)
        names = [graph.edge(*place) for place in path]
        assert names[0].sender.kind not in ("head", "mlp")
        assert names[-1].receiver.kind == "logits"
        assert all(a.receiver.node == b.sender for a, b in pairwise(names))


@pytest.mark.parametrize("graph", GRAPHS, ids=ComputationGraph.describe)
def test_changes_of_circuits(graph):
    generator = np.random.default_rng(1)
    heads = [node.name for node in graph.senders if node.kind == "head"]
    for circuit in (some_circuit(graph), Circuit.from_heads(graph, heads[:2])):
        other = complement(circuit)
        assert set(members(other)) | set(members(circuit)) == set(
            members(Circuit.full(graph)) if circuit.granularity == "edge" else heads
        )
        assert not set(members(other)) & set(members(circuit))
        one = members(circuit)[0]
        assert set(members(without(circuit, one))) == set(members(circuit)) - {one}
        inflated, reduced = inflate(circuit, generator)
        assert set(members(circuit)) <= set(members(reduced)) < set(members(inflated))
        assert len(members(inflated)) == len(members(reduced)) + 1
    drawn = random_paths(some_circuit(graph, share=0.3), generator)
    assert drawn.n_edges >= some_circuit(graph, share=0.3).n_edges
    assert drawn.prune(unreached=True) == drawn


def test_most_members_are_drawn_and_the_result_is_plain():
    model, task = small()
    circuit = circuits_of("edge")
    found = hypothesis_tests(model, task, circuit, most_members=3, **SETTINGS)
    assert len(found.members.names) == 3
    assert set(found.members.names) <= set(circuit.edge_names())
    assert f"{circuit.n_edges - 3} were not tested" in found.get("minimality").note
    plain = json.loads(json.dumps(found.to_dict()))
    assert [row["name"] for row in plain["tests"]] == [row["test"] for row in found.table()]
    assert [row["effect"] for row in found.members.table()] == sorted(found.members.effects)
    assert plain["settings"]["ablation"] == "resample"


def test_what_cannot_be_tested_is_refused():
    model, task = small()
    circuit = circuits_of("edge")
    with pytest.raises(GraphMismatch):
        hypothesis_tests(model, task, Circuit.full(GRAPHS[0]))
    unusable: list[dict[str, Any]] = [{"epsilon": 0.5}, {"alpha": 2.0}, {"n_random": 0}, {"metric": "kl"}, {"most_members": 0}]
    for bad in unusable:
        with pytest.raises(BadSetting):
            hypothesis_tests(model, task, circuit, ablation="resample", **bad)
    with pytest.raises(UnknownName):
        hypothesis_tests(model, task, circuit, random="walks")
    with pytest.raises(BadSetting, match="empty"):
        hypothesis_tests(model, task, Circuit.empty(model.graph), ablation="resample")
    graph = ComputationGraph(2, 2)
    only = Circuit.from_edges(graph, ["input->m0", "m0->m1", "m1->logits"])
    with pytest.raises(BadSetting, match="cannot be controlled"):
        _matched(only, 5, np.random.default_rng(0))
    with pytest.raises(BadSetting, match="whole graph"):
        hypothesis_tests(model, task, Circuit.full(model.graph), ablation="resample")
    with pytest.raises(BadSetting, match="0 examples"):
        hypothesis_tests(model, Task("none", tuple(random_examples(model, 3)), ()), circuit, ablation="resample")
