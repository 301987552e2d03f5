"""Positioned circuits: spans, their runs and their pruning against whole masked runs, files, and bad input."""

import json
from dataclasses import replace
from itertools import product

import networkx as nx
import numpy as np
import pytest
import torch
from examples import some_circuit
from models import TOYS, shared
from positioned import example, made_ready, reference, run_of, some_units, with_roles
from test_contract_exact import FAMILIES

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, BadSetting, BadTask, GraphMismatch, UnknownName
from circuitdisc.positioned.circuit import PositionedCircuit
from circuitdisc.tasks.spans import Spans

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
    assert set(Spans.of(examples, [2]).names) == {"before:all", "2", "after:2"}  # pyright: ignore[reportArgumentType] - as YAML has it
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


# --- circuits and files -------------------------------------------------------------------------------------------------------


def test_sets_spans_and_files(tmp_path):
    graph = shared("gpt2").graph
    spans = Spans.of(with_roles(shared("gpt2"), 4))
    one, two = some_units(graph, spans, 0, 0.1), some_units(graph, spans, 1, 0.3)
    assert np.array_equal((one | two).mask, one.mask | two.mask)
    assert np.array_equal((one - two).mask, one.mask & ~two.mask)
    assert (one & two) <= one
    assert not one <= two
    assert one.flat() == Circuit(graph, np.logical_or.reduce(one.mask))
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
