"""Positioned circuits: spans, their runs and their pruning against whole masked runs, files, and bad input."""

import json
import warnings
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from direct_attribution import big_buffer, embedding_senders, gradients, interpolated
from examples import random_examples, some_circuit
from models import TOYS, model_of, shared
from reference import masked_run
from test_contract_exact import FAMILIES

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.rules import KeepRule
from circuitdisc.discovery.scored import takes_gauss
from circuitdisc.engine.forward import logits_at
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import gauss_between, published_between
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.positioned_run import PositionedRun
from circuitdisc.errors import (
    BadFile,
    BadRun,
    BadSetting,
    BadTask,
    CircuitdiscError,
    CircuitdiscWarning,
    GraphMismatch,
    UnknownName,
)
from circuitdisc.metrics import get_metric
from circuitdisc.positioned.attribution import unit_scores
from circuitdisc.positioned.circuit import PositionedCircuit, live_units
from circuitdisc.positioned.search import PositionedRuns, plain_of_size, random_positioned
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.spans import Spans


def with_roles(model, n, seed=0):
    """Random prompts of unequal lengths, with the roles `a` and `b` in either order."""
    examples = random_examples(model, n, seed)
    return [replace(e, roles={"a": 1 + index % 2, "b": 2 - index % 2}) for index, e in enumerate(examples)]


def role_task(model, n=6, seed=0):
    examples = tuple(with_roles(model, 2 * n, seed))
    return Task("roles", examples[:n], examples[n:])


def some_units(graph, spans, seed=0, share=0.5):
    """About this share of all units."""
    random = np.random.default_rng(seed).random((len(spans), *graph.edge_mask.shape))
    return PositionedCircuit(graph, spans, graph.edge_mask & (random < share))


def made_ready(model, kind="resample", n=6, padding_side="right"):
    examples = with_roles(model, n)
    patching = Patching(model, Ablation(kind), examples, padding_side=padding_side)
    (chunk,) = patching.hold(examples)
    return chunk, Spans.of(examples, causal=model.backend.causal)


def run_of(model, chunk, circuit):
    run = PositionedRun(model.components, model.graph, chunk, circuit.mask, circuit.spans.of_batch(chunk.batch))
    return logits_at(model.components, run.residual, chunk.batch.reads)


def reference(model, chunk, circuit):
    """Where each edge is kept, token by token; nowhere at padding."""
    spans = circuit.spans.of_batch(chunk.batch)
    kept = np.concatenate([circuit.mask, np.zeros_like(circuit.mask[:1])])
    return masked_run(model, chunk, torch.tensor(kept[spans]).permute(2, 3, 0, 1))


def example(length, positions=None, **roles):
    positions = positions or (length - 1,)
    return Example(tuple(range(length)), None, positions, ((0,),) * len(positions), ((1,),) * len(positions), roles=roles)


# --- spans --------------------------------------------------------------------------------------------------------------------


def test_every_token_belongs_to_one_span_by_the_role_before_it():
    examples = [example(7, a=1, b=3), example(5, b=1, a=2)]
    spans = Spans.of(examples)
    assert [spans.names[index] for index in spans.tokens(examples[0])] == [
        "before:all", "a", "after:a", "b", "after:b", "after:b", "end",
    ]  # fmt: skip
    assert [spans.names[index] for index in spans.tokens(examples[1])] == ["before:all", "b", "a", "after:a", "end"]
    assert spans.read == ("end",)
    assert set(spans.sees["a"]) == {"before:all", "a", "b"}, "b stands before a in the second"
    assert set(spans.sees["before:all"]) == {"before:all"}
    assert spans.names[0] == "before:all"
    assert spans.names[-1] == "end"
    two_ways = Spans.of(examples, causal=False)
    assert set(two_ways.sees["before:all"]) == set(two_ways.names)


def test_roles_that_are_asked_for():
    examples = [example(6, (4, 5), a=1, b=5)]
    assert set(Spans.of(examples).names) == {"before:all", "a", "after:a", "b"}, "b has the last token: there is no end"
    assert Spans.of(examples).read == ("after:a", "b")
    assert set(Spans.of(examples, ["a+1", "end"]).names) == {"before:all", "a+1", "after:a+1", "end"}
    with pytest.raises(BadSetting, match="role end stands at the token of another one"):
        Spans.of(examples, ["b", "end"])
    with pytest.raises(UnknownName, match="unknown position 'c'"):
        Spans.of(examples, ["c"])
    with pytest.raises(BadSetting, match="make 102 spans, over 100"):
        Spans.of([example(200)], [str(2 * place) for place in range(51)])
    with pytest.raises(BadTask, match="has tokens in after:a"):
        Spans.of([example(3, a=1)], ["a", "end"]).tokens(example(4, a=1))


# --- runs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, *TOYS])
def test_runs_equal_the_masked_reference_of_every_family(family):
    model = shared(family)
    kinds = ("zero", "mean", "resample") if family in ("gpt2", "parallel") else ("resample",)
    for kind in kinds:
        chunk, spans = made_ready(model, kind)
        some, full = some_units(model.graph, spans), PositionedCircuit.from_circuit(Circuit.full(model.graph), spans)
        own = model.own_logits(chunk.batch.clean, chunk.batch.is_token.long(), chunk.batch.position_ids)
        scale = max(1.0, float(own.abs().max()))
        torch.testing.assert_close(run_of(model, chunk, some), reference(model, chunk, some), atol=1e-9 * scale, rtol=0)
        torch.testing.assert_close(run_of(model, chunk, full), own[chunk.batch.reads], atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "bidirectional", "rms_rotary_grouped"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_same_edges_at_all_spans_are_the_circuit(family, padding_side):
    model = shared(family)
    chunk, spans = made_ready(model, padding_side=padding_side)
    patching = Patching(model, Ablation("resample"), with_roles(model, 6))
    for circuit in (Circuit.full(model.graph), Circuit.empty(model.graph), some_circuit(model.graph, 1)):
        positioned = PositionedCircuit.from_circuit(circuit, spans)
        want = patching.circuit_logits(chunk, circuit.mask)
        torch.testing.assert_close(run_of(model, chunk, positioned), want, atol=1e-9, rtol=0)


# --- pruning ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["attention_only", "parallel", "bidirectional"])
def test_units_that_are_pruned_change_nothing(family):
    model = shared(family)
    chunk, spans = made_ready(model, "zero")
    circuit = some_units(model.graph, spans, 3, 0.4)
    live = circuit.prune().mask
    assert 0.1 < live.sum() / circuit.n_units < 0.95
    whole = run_of(model, chunk, circuit)
    torch.testing.assert_close(run_of(model, chunk, circuit.prune()), whole, atol=1e-12, rtol=0)
    for unit in np.argwhere(circuit.mask & ~live):
        left = circuit.mask.copy()
        left[tuple(unit)] = False
        torch.testing.assert_close(run_of(model, chunk, replace(circuit, mask=left)), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["attention_only", "parallel", "bidirectional"])
@pytest.mark.parametrize("seed", range(3))
def test_live_units_are_those_with_a_path_of_tokens_to_a_reading(family, seed):
    """Token by token with networkx: exact where each token is a span of its own, else no live unit is missed."""
    model, causal = shared(family), family != "bidirectional"
    graph = model.graph
    every = [example(5, (3,), **{f"t{place}": place for place in range(5)})]
    for examples, exact in ((every, True), (with_roles(model, 4), False)):
        spans = Spans.of(examples, causal=causal)
        circuit = some_units(graph, spans, seed, 0.12)
        live = np.zeros_like(circuit.mask)
        for each in examples:
            of_tokens, paths = spans.tokens(each), nx.DiGraph()
            paths.add_edges_from((("read", graph.n_receivers - 1, place), "answer") for place in each.positions)
            for at, (index, receiver) in product(range(len(each)), enumerate(graph.receivers[:-1])):
                moves = receiver.qkv in ("k", "v")
                to = range(at if causal else 0, len(each)) if moves else (at,)
                writes = graph.sender_index[receiver.node.name]
                paths.add_edges_from((("read", index, at), ("write", writes, query)) for query in to)
            units = [(at, *unit) for at, span in enumerate(of_tokens) for unit in np.argwhere(circuit.mask[span]).tolist()]
            paths.add_edges_from((("write", sender, at), ("read", receiver, at)) for at, receiver, sender in units)
            reaching = nx.ancestors(paths, "answer")
            for at, receiver, sender in units:
                live[of_tokens[at], receiver, sender] |= ("read", receiver, at) in reaching
        assert not (live & ~circuit.prune().mask).any()
        assert not exact or np.array_equal(live, circuit.prune().mask)


# --- attribution --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "resample"), ("parallel", "mean"), ("bidirectional", "zero")])
@pytest.mark.parametrize("ranking", ["eap", "eap_ig"])
def test_scores_of_units_are_those_of_autograd_with_a_leaf_a_token(family, kind, ranking):
    model, task, ablation, metric = shared(family), role_task(shared(family)), Ablation(kind), get_metric("logit_diff")
    spans = Spans.of(task.train, causal=model.backend.causal)
    chunk, delta = big_buffer(model, ablation, task.train)
    if ranking == "eap":
        g = gradients(model, chunk, metric)
    else:
        points = (gauss_between if kind == "zero" and takes_gauss("auto", model, ablation) else published_between)(5)
        g = interpolated(model, chunk, delta, metric, embedding_senders(model), points)
    products = torch.einsum("sbtd,rbtd->btrs", delta, g).numpy()
    of_tokens, edges = spans.of_batch(chunk.batch), model.graph.edge_mask
    scores, cost = unit_scores(model, task, spans, ablation, metric, ranking=ranking)
    for span in range(len(spans)):
        np.testing.assert_allclose(scores[span][edges], products[of_tokens == span].sum(0)[edges], atol=1e-9)
    plain = cd.discover(model, task, ranking, ablation=ablation, allow_chance=True)
    np.testing.assert_allclose(scores.sum(0)[edges], plain.edge_scores[edges], atol=1e-9)
    assert cost.backward_runs == plain.cost.backward_runs, "the spans cost no pass more"


def test_scores_of_units_need_room():
    task = role_task(shared("gpt2"), 2)
    attribution = Attribution(shared("gpt2"), Ablation("zero"), task.train, get_metric("logit_diff"), gradient=Gradient())
    attribution.memory = 10_000
    with pytest.raises(BadSetting, match=r"the scores of 6 spans take .*raise memory=, or name fewer roles"):
        attribution.keep_spans([], 6)


# --- the search ---------------------------------------------------------------------------------------------------------------


class Slow:
    """Metrics of positioned circuits, each by a masked run of the whole model."""

    def __init__(self, model, task, kind, spans):
        self.model, self.spans, self.metric = model, spans, get_metric("logit_diff")
        patching = Patching(model, Ablation(kind), task.train)
        self.chunks = {split: patching.hold(task.split(split)) for split in ("train", "heldout")}

    def values(self, mask, split="train"):
        (chunk,) = self.chunks[split]
        circuit = PositionedCircuit(self.model.graph, self.spans, mask)
        return chunk.batch.per_example(self.metric(reference(self.model, chunk, circuit), chunk.labels)).numpy()

    def mean(self, mask):
        return float(self.values(mask).mean())


@cache
def run_on(family):
    """A model, a task, and a circuit that does it about as well as the model."""
    model = shared(family)
    task, fraction = role_task(model), {"attention_only": 0.5, "parallel": 0.85}[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CircuitdiscWarning)
        found = cd.discover(model, task, "eap_ig", ablation="zero", fraction=fraction, allow_chance=True)
    return model, task, found.circuit


FEW: dict[str, Any] = {"n_random": 2, "ablation": "zero", "metric": "logit_diff"}


@pytest.mark.parametrize("start", ["circuit", "graph"])
def test_the_search_decides_by_whole_masked_runs_and_no_unit_can_be_cut(start, monkeypatch):
    model, task, circuit = run_on("attention_only")
    result = cd.positions(model, task, circuit, start=start, keep=0.5 if start == "graph" else "auto", prune_first=None, **FEW)
    slow = Slow(model, task, "zero", result.spans)
    full = np.repeat(model.graph.edge_mask[None], len(result.spans), 0)
    ends = slow.mean(full), slow.mean(np.zeros_like(full))
    rule = KeepRule(result.keep, *ends)
    if start == "circuit":
        own = slow.mean(np.repeat(circuit.mask[None], len(result.spans), 0))
        assert result.keep == pytest.approx(1 - abs(1 - rule.share(own)) - 0.02)
        assert result.circuit <= PositionedCircuit.from_circuit(circuit, result.spans)
    mask = result.circuit.mask
    assert 0 < mask.sum() < result.n_tried
    assert rule.margin(0.0, slow.mean(mask)) >= -1e-9
    for unit in np.argwhere(mask):
        left = mask.copy()
        left[tuple(unit)] = False
        assert rule.margin(0.0, slow.mean(left)) < 1e-9, unit
    monkeypatch.setattr("circuitdisc.positioned.search.PositionedRuns.mean", lambda self, ready, mask: slow.mean(mask))
    again = cd.positions(model, task, circuit, start=start, keep=0.5 if start == "graph" else "auto", prune_first=None, **FEW)
    assert again.edges == result.edges, "decided by the reference, the same"


def test_every_figure_is_that_of_whole_masked_runs():
    model, task, circuit = run_on("parallel")
    result = cd.positions(model, task, circuit, others={"itself": (model, task)}, **FEW)
    slow = Slow(model, task, "zero", result.spans)
    full = np.repeat(model.graph.edge_mask[None], len(result.spans), 0)

    def share(mask, split="heldout"):
        top, value, nothing = (slow.values(each, split).mean() for each in (full, mask, np.zeros_like(full)))
        return (value - nothing) / (top - nothing)

    own = np.repeat(circuit.mask[None], len(result.spans), 0)
    mask = result.circuit.mask
    flat = np.repeat(mask.any(0)[None], len(result.spans), 0)
    for name, each in (("positioned", mask), ("run's circuit", own), ("its edges at all spans", flat)):
        row = result.named(name)
        assert row.faithfulness == pytest.approx(share(each), abs=1e-9)
        assert row.searched == pytest.approx(share(each, "train"), abs=1e-9)
        assert (row.n_units, row.n_edges) == (live_units(model.graph, result.spans, each).sum(), each.any(0).sum())
        if name != "positioned":
            assert row.nearer == pytest.approx(abs(1 - share(each)) - abs(1 - share(mask)), abs=1e-9)
    assert result.rest == pytest.approx(share(full & ~mask), abs=1e-9)
    scores, _ = unit_scores(model, task, result.spans, Ablation("zero"), get_metric("logit_diff"))
    live = live_units(model.graph, result.spans, full)
    best = np.zeros_like(full)
    best.flat[sorted(np.flatnonzero(live), key=lambda unit: -abs(scores.flat[unit]))[: mask.sum()]] = True
    assert result.named("best units").faithfulness == pytest.approx(share(best), abs=1e-9)
    units, edges = result.named("best edges, as many units"), result.named("best edges, as many edges")
    assert units.n_units <= mask.sum()
    assert edges.n_edges <= mask.any(0).sum()
    assert result.traded == pytest.approx(abs(1 - units.faithfulness) - abs(1 - share(best)), abs=1e-9)
    (there,) = result.checkpoints
    assert (there.positioned, there.plain) == pytest.approx((share(mask), share(own)), abs=1e-9)


def test_random_circuits_keep_the_wiring_or_the_edges():
    model = shared("gpt2")
    spans = Spans.of(with_roles(model, 4))
    mask = some_units(model.graph, spans, 0, 0.2).prune().mask
    drawn = dict(random_positioned(mask, model.graph, spans, 3, np.random.default_rng(0)))
    assert len(drawn) == 6
    full = live_units(model.graph, spans, np.repeat(model.graph.edge_mask[None], len(spans), 0))
    for name, other in drawn.items():
        assert not np.array_equal(other, mask)
        assert not (other & ~model.graph.edge_mask).any()
        if name.startswith("other spans"):
            assert np.array_equal(other.sum(0), mask.sum(0))
            assert not (other & ~full).any()
        else:
            assert np.array_equal(other.sum((1, 2)), mask.sum((1, 2)))
            assert live_units(model.graph, spans, other).sum() == mask.sum()


def test_the_largest_plain_circuit_of_a_size():
    model = shared("gpt2")
    spans = Spans.of(with_roles(model, 4))
    scores = np.random.default_rng(0).normal(size=(len(spans), *model.graph.edge_mask.shape))
    order = np.flatnonzero(model.graph.edge_mask)[np.argsort(-abs(scores.sum(0))[model.graph.edge_mask])]

    def size(k, units):
        mask = np.zeros_like(model.graph.edge_mask)
        mask.flat[order[:k]] = True
        live = live_units(model.graph, spans, np.repeat(mask[None], len(spans), 0))
        return (live if units else live.any(0)).sum()

    for n, units in ((40, True), (25, False), (0, True)):
        plain = plain_of_size(model.graph, spans, scores, n, units)
        most = max(k for k in range(model.graph.n_edges + 1) if size(k, units) <= n)
        assert (plain if units else plain.any(0)).sum() == size(most, units)


def test_a_killed_search_goes_on_to_the_same_result(tmp_path, monkeypatch):
    about = run_on("attention_only")
    whole = cd.positions(*about, **FEW)
    journal, calls = tmp_path / "journal.jsonl", []
    with monkeypatch.context() as patch:
        own = PositionedRuns._mean

        def killed(self, *args):
            calls.append(args)
            if len(calls) > 12:
                raise KeyboardInterrupt
            return own(self, *args)

        patch.setattr(PositionedRuns, "_mean", killed)
        with pytest.raises(KeyboardInterrupt):
            cd.positions(*about, journal=journal, **FEW)
    again = cd.positions(*about, journal=journal, **FEW)
    assert replace(again, seconds=0.0) == replace(whole, seconds=0.0)
    with pytest.raises(BadRun, match="another keep"):
        cd.positions(*about, journal=journal, keep=0.5, **FEW)


def test_bad_input():
    about = run_on("attention_only")
    for given, words in (
        ({"keep": 0.99999}, "keep=1: the run's circuit has .* lower keep="),
        ({"keep": 0.99999, "start": "graph", "prune_first": 3}, "the units that attribution proposed have"),
        ({"keep": 2.0}, "keep=2.0 must be"),
        ({"ranking": "acdc"}, "unknown value of ranking 'acdc'"),
        ({"start": "nowhere"}, "unknown value of start"),
        ({"metric": "accuracy"}, "follows the metric's gradient"),
        ({"roles": ["nobody"]}, "unknown position 'nobody'"),
    ):
        with pytest.raises(CircuitdiscError, match=words):
            cd.positions(*about, **{**FEW, **given})
    with pytest.raises(BadSetting, match="runs through hooks"):
        cd.positions(model_of("gpt2", components="hooks"), about[1], Circuit.full(shared("gpt2").graph), **FEW)


# --- circuits and files -------------------------------------------------------------------------------------------------------


def test_sets_spans_and_files(tmp_path):
    graph = shared("gpt2").graph
    spans = Spans.of(with_roles(shared("gpt2"), 4))
    one, two = some_units(graph, spans, 0, 0.1), some_units(graph, spans, 1, 0.3)
    assert np.array_equal((one | two).mask, one.mask | two.mask)
    assert np.array_equal((one - two).mask, one.mask & ~two.mask)
    assert (one & two) <= one
    assert not one <= two
    assert one.flat() == Circuit(graph, one.mask.any(0))
    assert sum(one.at(name).n_edges for name in spans.names) == one.n_units == len(one)
    assert one.nodes("end") == one.at("end").nodes()
    assert one.n_edges == len(one.table()) == len(one.edge_spans())
    one.save(tmp_path / "one.json")
    again = PositionedCircuit.load(tmp_path / "one.json")
    assert again == one
    assert again.spans == spans
    assert hash(again) == hash(one)
    assert again != two


def test_a_strangers_file_is_only_data(tmp_path):
    graph = shared("gpt2").graph
    good = some_units(graph, Spans.of(with_roles(shared("gpt2"), 4)), 0, 0.01).to_dict()
    edge = next(iter(good["edges"]))
    many = {**good["graph"], "n_layers": 80, "n_heads": 60}
    for change, words in (
        ({"format": "circuitdisc.circuit"}, "format is 'circuitdisc.circuit'"),
        ({"edges": [edge]}, "'edges' is"),
        ({"edges": {edge: ["nowhere"]}}, "'nowhere', which is none of the spans"),
        ({"edges": {"a9.h9->logits": ["end"]}}, "'a9.h9->logits' is not an edge"),
        ({"n_units": 3}, "it says that it has 3 units"),
        ({"more": 1}, "'more' is not known"),
        ({"graph": many}, "places for units, over"),
        ({"spans": {**good["spans"], "names": ["a", "a"]}}, "2 names of spans"),
        ({"spans": {**good["spans"], "read": ["x"]}}, "'x' is none of the spans"),
        ({"provenance": {"identity": 3}}, "identity"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(BadFile, match=words):
            PositionedCircuit.load(tmp_path / "bad.json")
    with pytest.raises(GraphMismatch, match="does not fit"):
        PositionedCircuit(graph, Spans.of([example(3)]), np.zeros((9, 2, 2), dtype=bool))
    with pytest.raises(GraphMismatch, match="none of the spans"):
        PositionedCircuit.from_dict(good).at("nowhere")
