"""Completeness and minimality against literal computations from reference runs."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task
from models import model_of, shared
from reference import masked_run
from scipy import stats

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.memory import bytes_per_token
from circuitdisc.engine.part_removal import PartRemoval
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import METRICS, Metric, get_metric
from circuitdisc.scoring.completeness import completeness
from circuitdisc.scoring.minimality import minimality
from circuitdisc.scoring.removals import grow, random_sets

FEW: dict[str, Any] = {"n_random": 2, "greedy_size": 0, "n_controls": 1}
HEADS = ["a0.h1", "a0.h3", "a1.h0", "a1.h2"]


def head_circuit(graph):
    return replace(Circuit.from_heads(graph, HEADS), groups={"early": ("a0.h1", "a0.h3"), "late": ("a1.h0", "a1.h2")})


def edge_circuit(graph, share=0.5):
    return Circuit(graph, graph.edge_mask & (np.random.default_rng(3).random(graph.edge_mask.shape) < share)).prune()


def few_edges(graph):
    names = ["input->a0.h0<v>", "input->a0.h1<k>", "a0.h0->a1.h1<v>", "a0.h1->a1.h1<k>", "a1.h1->logits", "a0.h0->logits"]
    return Circuit.from_edges(graph, names)


class Slow:
    """Metric values by the masked reference run."""

    def __init__(self, model, task, kind, split="heldout"):
        ablation, self.model = Ablation(kind), model
        (self.chunk,) = Patching(model, ablation, task.train).hold(task.split(split))
        self.metric, self.known = get_metric("logit_diff"), {}

    def values(self, edges):
        key = frozenset(edges)
        if key not in self.known:
            mask = torch.zeros(self.model.graph.edge_mask.shape, dtype=torch.bool)
            for name in key:
                mask[self.model.graph.parse_edge(name)] = True
            readings = self.metric(masked_run(self.model, self.chunk, mask), self.chunk.labels)
            self.known[key] = self.chunk.batch.per_example(readings).numpy()
        return self.known[key]

    def mean(self, edges):
        return float(self.values(edges).mean())


def left(circuit, removed):
    """Names of the edges that stay when these nodes or edges are taken out."""

    def ends(name):
        sender, receiver = name.split("->")
        return {sender, receiver.split("<")[0], name}

    return [name for name in circuit.edge_names() if not ends(name) & set(removed)]


CASES = [
    ("attention_only", head_circuit, "head", "resample"),
    ("attention_only", head_circuit, "head", "zero"),
    ("attention_only", edge_circuit, "node", "mean"),
    ("attention_only", edge_circuit, "head", "zero"),
    ("attention_only", few_edges, "edge", "resample"),
    ("parallel", head_circuit, "node", "mean"),
    ("gpt2", head_circuit, "head", "mean"),
    ("gpt2", edge_circuit, "node", "resample"),
]


def size_interval(apart):
    """Student's t, as four examples have it, of a mean; then of its absolute value."""
    if np.allclose(apart, apart[0], atol=1e-13):
        return abs(apart.mean()), abs(apart.mean())
    low, high = stats.t.interval(0.95, len(apart) - 1, apart.mean(), apart.std(ddof=1) / len(apart) ** 0.5)
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


@pytest.mark.parametrize(("family", "make", "by", "kind"), CASES)
def test_completeness_equals_reference_runs(family, make, by, kind):
    model = shared(family)
    task, circuit, full = random_task(model, n=4), make(model.graph), Circuit.full(model.graph)
    settings: dict[str, Any] = {**FEW, "greedy_size": 2, "greedy_width": 2, "greedy_starts": 1}
    found = completeness(model, task, circuit, by=by, ablation=kind, seed=2, **settings)
    slow = Slow(model, task, kind)
    assert (found.by, found.n, found.split, found.metric) == (by, 4, "heldout", "logit_diff")
    assert found.ablation == Ablation(kind).label
    classes = circuit.groups if by != "edge" else {}
    assert [gap.kind for gap in found.gaps] == ["empty", "random", "random", *["class"] * len(classes), "greedy"]
    assert {gap.name: gap.removed for gap in found.gaps if gap.kind == "class"} == dict(classes)
    for gap in found.gaps:
        assert set(gap.removed) <= set(found.parts)
        c, m = slow.values(left(circuit, gap.removed)), slow.values(left(full, gap.removed))
        assert (gap.circuit, gap.full) == pytest.approx((c.mean(), m.mean()), abs=1e-9)
        assert gap.value == pytest.approx(abs(c.mean() - m.mean()), abs=1e-9)
        assert (gap.low, gap.high) == pytest.approx(size_interval(c - m), abs=1e-9)
    assert found.worst.value == max(gap.value for gap in found.gaps)
    assert found.mean == pytest.approx(np.mean([gap.value for gap in found.gaps if gap.kind == "random"]))
    assert found.mean is not None
    assert found.mean_low is not None
    assert found.mean_high is not None
    assert found.mean_low < found.mean_high
    if circuit.granularity == "head":
        others, nothing = left(full, circuit.heads()), Circuit.from_heads(model.graph, []).edge_names()
    else:
        others, nothing = sorted(set(full.edge_names()) - set(circuit.edge_names())), []
    m, rest, floor = slow.mean(full.edge_names()), slow.mean(others), slow.mean(nothing)
    assert found.complement.value == pytest.approx((rest - floor) / (m - floor), rel=1e-7)


def test_parts_are_what_the_circuit_holds():
    model = shared("gpt2")
    task, circuit = random_task(model, n=3), edge_circuit(model.graph, 0.15)
    nodes = completeness(model, task, circuit, ablation="zero", **FEW).parts
    senders = {name.split("->")[0] for name in circuit.edge_names()} - {"input"}
    assert set(nodes) == senders
    assert any(name.startswith("m") for name in nodes)
    heads = completeness(model, task, circuit, by="head", ablation="zero", **FEW).parts
    assert set(heads) == {name for name in senders if name.startswith("a")} == set(circuit.heads())


def test_the_full_circuit_is_complete():
    """Whatever is taken out, circuit and model are the same; nothing is left outside."""
    model = shared("attention_only")
    found = completeness(model, random_task(model), Circuit.full(model.graph), ablation="mean", greedy_size=2, n_controls=0)
    assert found.worst.value == 0.0
    assert found.complement.value == pytest.approx(0.0, abs=1e-12)


def test_the_greedy_set_is_the_literal_one():
    """With all candidates at every step: grown on the train split by reference runs, judged on the other."""
    model = shared("attention_only")
    task, circuit, full = random_task(model, n=4), head_circuit(model.graph), Circuit.full(model.graph)
    settings: dict[str, Any] = {**FEW, "greedy_size": 4, "greedy_width": 99, "greedy_starts": 1}
    found = completeness(model, task, circuit, ablation="resample", **settings).gaps[-1]
    slow = Slow(model, task, "resample", "train")

    def gap(removed):
        return abs(slow.mean(left(circuit, removed)) - slow.mean(left(full, removed)))

    grown, best = [], (-1.0, [])
    for _ in range(4):
        grown = max(([*grown, head] for head in HEADS if head not in grown), key=gap)
        best = max(best, (gap(grown), grown), key=lambda pair: pair[0])
    assert found.kind == "greedy"
    assert set(found.removed) == set(best[1])


def test_controls_are_gaps_of_random_circuits():
    model = shared("attention_only")
    task, circuit = random_task(model, n=3), head_circuit(model.graph)
    found = completeness(model, task, circuit, ablation="zero", n_random=4, n_controls=3, greedy_size=0)
    assert len(found.controls) == 3
    assert all(0 < control.mean < control.worst for control in found.controls)
    assert found.matched == "random circuits with as many heads in each layer"
    every = Circuit.full(model.graph)
    only = completeness(model, task, every, ablation="zero", n_random=4, n_controls=2, greedy_size=0)
    assert only.controls == ()
    assert only.matched.startswith("cannot be controlled")


@pytest.mark.parametrize(("family", "make", "by", "kind"), CASES)
def test_minimality_equals_reference_runs(family, make, by, kind):
    model = shared(family)
    task, circuit = random_task(model, n=4), make(model.graph)
    size = 0 if by == "edge" or family == "gpt2" else 1
    settings: dict[str, Any] = {"n_random": 2, "greedy_size": size, "greedy_width": 2, "threshold": 0.2}
    found = minimality(model, task, circuit, by=by, ablation=kind, seed=1, **settings)
    slow, full = Slow(model, task, kind), Circuit.full(model.graph)
    assert found.full == pytest.approx(slow.mean(full.edge_names()), abs=1e-9)
    for need in found.needs:
        assert need.part not in need.removed
        before, after = (slow.values(left(circuit, k)) for k in (need.removed, (*need.removed, need.part)))
        change = abs(after.mean() - before.mean())
        assert (need.before, need.after) == pytest.approx((before.mean(), after.mean()), abs=1e-9)
        assert need.change == pytest.approx(change, abs=1e-9)
        assert need.share == pytest.approx(change / abs(found.full), abs=1e-9)
        assert need.passes == (need.share >= 0.2)
        assert (need.low, need.high) == pytest.approx(size_interval(after - before), abs=1e-9)
    assert found.share_passed == np.mean([need.passes for need in found.needs])


def test_each_part_has_the_set_in_whose_absence_it_matters_most():
    """Nothing and two classes to choose from, on the train split; a class serves its members without themselves."""
    model = shared("attention_only")
    task, circuit = random_task(model, n=4), head_circuit(model.graph)
    found = minimality(model, task, circuit, ablation="resample", n_random=0, greedy_size=0)
    slow = Slow(model, task, "resample", "train")
    chosen = set()
    for need in found.needs:
        changes = {}
        for k in ((), *circuit.groups.values()):
            rest = tuple(head for head in k if head != need.part)
            changes[rest] = abs(slow.mean(left(circuit, rest)) - slow.mean(left(circuit, (*rest, need.part))))
        assert need.removed == max(changes, key=changes.__getitem__)
        chosen.add(need.kind)
    assert len(chosen) > 1


def test_the_greedy_set_of_a_part_is_the_literal_one():
    model = shared("parallel")
    task, circuit = random_task(model, n=4), head_circuit(model.graph)
    found = minimality(model, task, circuit, ablation="zero", n_random=0, classes={}, greedy_size=3, greedy_width=99)
    slow = Slow(model, task, "zero", "train")
    for need in found.needs:

        def change(removed, part=need.part):
            return abs(slow.mean(left(circuit, removed)) - slow.mean(left(circuit, [*removed, part])))

        grown, best = [], (change([]), [])
        for _ in range(3):
            grown = max(([*grown, head] for head in HEADS if head not in (*grown, need.part)), key=change)
            best = max(best, (change(grown), grown), key=lambda pair: pair[0])
        assert set(need.removed) == set(best[1])
    assert any(need.kind == "greedy" for need in found.needs)


def test_an_edge_into_a_dead_end_is_not_needed():
    model = shared("attention_only")
    circuit = few_edges(model.graph) | Circuit.from_edges(model.graph, ["input->a1.h3<q>"])
    found = minimality(model, random_task(model, n=3), circuit, by="edge", ablation="zero")
    idle = {need.part: need for need in found.needs}["input->a1.h3<q>"]
    assert (idle.change, idle.passes) == (0.0, False)
    assert found.table()[0]["edge"] == "input->a1.h3<q>"


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("by", ["head", "node", "edge"])
def test_parts_removed_at_once_equal_those_removed_one_by_one(by, tight):
    """Also when the memory holds few rows, and few examples at a time."""
    model = shared("gpt2")
    task, metric = random_task(model, n=5), get_metric("logit_diff")
    memory = bytes_per_token(model) * 5 * max(map(len, task.heldout)) if tight else "4GiB"
    removal = PartRemoval(Patching(model, Ablation("resample"), task.train, memory=memory), task.heldout, metric, by)
    assert (len(removal.chunks) > 1) == tight
    graph = model.graph
    circuit = Circuit.from_heads(graph, ["a0.h1", "a1.h3", "a2.h0"]) if by == "head" else edge_circuit(graph)
    names = {"head": ["a0.h1", "a1.h3", "a2.h0"], "node": ["m0", "a1.h1", "m2"], "edge": circuit.edge_names()[::9]}[by]
    found = removal.each_removed(circuit.mask, names)
    slow = Slow(model, task, "resample")
    assert found == pytest.approx(np.stack([slow.values(left(circuit, [name])) for name in names]), abs=1e-9)


def test_a_model_with_hooks_alone_gives_the_same():
    fast, slow = shared("gpt2"), model_of("gpt2", components="hooks")
    task, circuit = random_task(fast, n=3), few_edges(fast.graph)
    settings: dict[str, Any] = {"by": "edge", "ablation": "mean", "n_random": 1}
    one, two = (minimality(model, task, circuit, **settings) for model in (fast, slow))
    assert [need.change for need in one.needs] == pytest.approx([need.change for need in two.needs], abs=1e-9)


def test_attention_patterns_are_removed_by_heads():
    model = shared("attention_only")
    task, circuit = random_task(model, n=3), head_circuit(model.graph)
    ablation = {"kind": "mean", "target": "pattern"}
    found = completeness(model, task, circuit, ablation=ablation, **FEW)
    assert found.ablation.endswith("of the attention pattern")
    assert found.worst.value > 0
    with pytest.raises(BadSetting, match="by=head"):
        completeness(model, task, circuit, by="edge", ablation=ablation)


def test_random_sets_hold_each_part_half_the_time():
    drawn = list(random_sets(("a", "b", "c"), 400, np.random.default_rng(0)))
    few, many = stats.binom.ppf((1e-4, 1 - 1e-4), 400, 0.5)
    assert all(few <= sum(part in k for k in drawn) <= many for part in "abc")
    assert len(set(drawn)) == 8


def test_a_greedy_set_is_the_best_on_the_way():
    gains = {("a",): 3.0, ("b",): 5.0, ("c",): 1.0, ("a", "b"): 4.0, ("b", "c"): 2.0, ("a", "b", "c"): 4.5}

    def gain(grown, candidates):
        return np.array([gains[tuple(sorted((*grown, one)))] for one in candidates])

    assert grow("abc", gain, 3, 9, np.random.default_rng(0)) == (("b",), 5.0)
    gains["a", "b", "c"] = 5.0 + 1e-9  # no more than rounding
    assert grow("abc", gain, 3, 9, np.random.default_rng(0)) == (("b",), 5.0)
    gains["a", "b", "c"] = 6.0
    assert grow("abc", gain, 3, 9, np.random.default_rng(0)) == (("a", "b", "c"), 6.0)
    assert grow("abc", gain, 2, 9, np.random.default_rng(0)) == (("b",), 5.0)


@pytest.mark.parametrize("tool", [completeness, minimality])
def test_the_same_seed_gives_the_same(tool):
    model = shared("attention_only")
    task, circuit = random_task(model, n=3), head_circuit(model.graph)
    first, again, other = (tool(model, task, circuit, ablation="mean", n_random=2, seed=seed).table() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("tool", [completeness, minimality])
def test_results_are_plain_json(tool):
    model = shared("attention_only")
    found = tool(model, random_task(model, n=1), head_circuit(model.graph), ablation="zero", n_random=1)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["n"], data["ablation"]) == (1, "zero")
    rows = data["gaps"] if tool is completeness else data["needs"]
    assert rows[0]["low"] is None  # one example has no interval
    json.dumps(found.table(), allow_nan=False)


BAD = [
    ({"by": "layer"}, UnknownName, "value of by"),
    ({"split": "test"}, UnknownName, "value of split"),
    ({"n_random": -1}, BadSetting, "n_random=-1"),
    ({"greedy_size": 1.5}, BadSetting, "greedy_size=1.5"),
    ({"greedy_width": 0}, BadSetting, "greedy_width=0"),
    ({"confidence": 2}, BadSetting, "confidence=2"),
    ({"classes": ["a0.h1"]}, BadSetting, "table of name"),
    ({"classes": {"one": "a0.h1"}}, BadSetting, "give a list"),
    ({"classes": {"one": ["a0.h0"]}}, GraphMismatch, "'a0.h0' .class one."),
    ({"memory": 1000}, BadSetting, "memory"),
]


@pytest.mark.parametrize("tool", [completeness, minimality])
@pytest.mark.parametrize(("settings", "error", "words"), BAD)
def test_bad_settings_get_a_sentence(tool, settings, error, words):
    model = shared("attention_only")
    with pytest.raises(error, match=words):
        tool(model, random_task(model, n=2), head_circuit(model.graph), **{"ablation": "zero", **settings})


@pytest.mark.parametrize("tool", [completeness, minimality])
def test_circuits_that_cannot_be_taken_apart(tool):
    model = shared("attention_only")
    task = random_task(model, n=2)
    with pytest.raises(GraphMismatch, match="belongs to a model of"):
        tool(model, task, Circuit.full(ComputationGraph(5, 2)))
    with pytest.raises(BadSetting, match="has no nodes"):
        tool(model, task, Circuit.empty(model.graph))
    with pytest.raises(BadSetting, match="no examples"):
        tool(model, replace(task, heldout=()), head_circuit(model.graph))


@pytest.mark.parametrize("by", ["node", "edge"])
@pytest.mark.parametrize("tool", [completeness, minimality])
def test_a_metric_without_a_mean_is_refused(tool, by, monkeypatch):
    """Where a right answer has probability 0, its log-probability is minus infinity."""
    model = shared("attention_only")
    nowhere = Metric("never", lambda logits, labels: torch.full(logits.shape[:-1], -torch.inf), "answers", False, "")
    monkeypatch.setitem(METRICS, "never", nowhere)
    with pytest.raises(BadSetting, match="'never' is not finite"):
        tool(model, random_task(model, n=2), few_edges(model.graph), by=by, ablation="zero", metric="never")


def test_no_part_changes_a_fraction_of_nothing():
    model = shared("attention_only")
    with pytest.raises(BadSetting, match="metric 'kl' is 0 for the full model"):
        minimality(model, random_task(model, n=2), head_circuit(model.graph), ablation="zero", metric="kl")
    with pytest.raises(BadSetting, match="threshold=-1"):
        minimality(model, random_task(model, n=2), head_circuit(model.graph), ablation="zero", threshold=-1)
