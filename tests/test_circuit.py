"""Circuits: sets of edges against Python's sets, paths against networkx, files that come back or say why not."""

import dataclasses
import json
from io import BytesIO
from itertools import product

import networkx as nx
import numpy as np
import pytest
import torch
from examples import random_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit, Provenance, live_receivers, live_senders
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, GraphMismatch
from circuitdisc.graph import ComputationGraph

SMALL = ComputationGraph(2, 2)
NAMES = Circuit.full(SMALL).edge_names()
VARIANTS = [ComputationGraph(2, 2, *switches) for switches in product([True, False], repeat=3)]

edge_sets = st.frozensets(st.sampled_from(NAMES))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
settings_dicts = st.dictionaries(st.text(), json_values, max_size=3)
provenances = st.builds(
    Provenance,
    model=st.text(),
    task=st.text(),
    ablation=st.sampled_from(
        [{}, {"kind": "zero"}, {"kind": "mean", "scope": "position", "prompts": "clean", "target": "output"}]
    ),
    metric=st.text(),
    algorithm=st.text(),
    settings=settings_dicts,
    seed=st.none() | st.integers(),
    versions=st.dictionaries(st.text(), st.text(), max_size=3),
)


@st.composite
def circuits(draw):
    """Circuits of every kind of graph and every density."""
    graph = draw(st.sampled_from(VARIANTS))
    random = np.random.default_rng(draw(st.integers(0, 10**6))).random(graph.edge_mask.shape)
    return Circuit(graph, graph.edge_mask & (random < draw(st.floats(0, 1))))


def of(names):
    return Circuit.from_edges(SMALL, names)


def nodes_graph(names) -> nx.DiGraph:
    """Nodes and arrows, from the names of the edges alone."""
    arrows = nx.DiGraph([(name.split("->")[0], name.split("->")[1].split("<")[0]) for name in names])
    arrows.add_nodes_from(["input", "tok_embed", "pos_embed", "logits"])
    return arrows


# --- sets ----------------------------------------------------------------------------------------------------------------


@given(edge_sets, edge_sets)
def test_set_algebra_is_that_of_sets_of_names(a, b):
    for circuit, names in (
        (of(a) | of(b), a | b),
        (of(a) & of(b), a & b),
        (of(a) - of(b), a - b),
        (of(a) ^ of(b), a ^ b),
        (~of(a), set(NAMES) - a),
    ):
        assert set(circuit.edge_names()) == names
        assert len(circuit) == circuit.n_edges == len(circuit.edge_names()) == len(names)
    assert (of(a) <= of(b)) == (a <= b)
    assert (of(a) == of(b)) == (a == b)
    assert of(a).jaccard(of(b)) == (len(a & b) / len(a | b) if a | b else 1.0)
    assert len({of(a), of(b), of(a)}) == len({a, b})


@given(edge_sets)
def test_membership_nodes_and_heads(names):
    circuit = of(names)
    assert [name for name in NAMES if name in circuit] == [name for name in NAMES if name in names]
    touched = {part.split("<")[0] for name in names for part in name.split("->")}
    order = [node.name for node in SMALL.senders] + ["logits"]
    assert circuit.nodes() == [name for name in order if name in touched]
    carried = {name.split("->")[0] for name in names}
    assert circuit.heads() == [name for name in order if name in carried and name.startswith("a")]


def test_full_and_empty():
    full, empty = Circuit.full(SMALL), Circuit.empty(SMALL)
    assert full.n_edges == SMALL.n_edges
    assert empty.n_edges == 0
    assert ~full == empty
    assert empty <= full
    assert not full <= empty
    assert full.jaccard(empty) == 0.0
    assert empty.jaccard(empty) == 1.0
    assert full != SMALL


def test_an_unknown_edge_is_refused_rather_than_absent():
    with pytest.raises(GraphMismatch, match=r"a5\.h0->logits"):
        assert "a5.h0->logits" in Circuit.full(SMALL)
    with pytest.raises(GraphMismatch, match=r"a5\.h0->logits"):
        of(["input->logits", "a5.h0->logits"])


@pytest.mark.parametrize("operation", ["__or__", "__and__", "__sub__", "__xor__", "__le__", "jaccard"])
def test_circuits_of_different_graphs_do_not_mix(operation):
    other = Circuit.full(ComputationGraph(2, 2, parallel=True))
    with pytest.raises(GraphMismatch, match=r"different graphs: 2 layers x 2 heads and .*parallel blocks"):
        getattr(Circuit.full(SMALL), operation)(other)
    assert Circuit.empty(SMALL) != Circuit.empty(other.graph)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(GraphMismatch, match=r"shape \(3, 4\) does not fit.*2 layers x 2 heads"):
        Circuit(SMALL, np.zeros((3, 4), dtype=bool))
    with pytest.raises(GraphMismatch, match="does not come before its receiver"):
        Circuit(SMALL, np.ones_like(SMALL.edge_mask))


def test_a_circuit_cannot_be_changed():
    mask = SMALL.edge_mask.copy()
    circuit = Circuit(SMALL, mask)
    mask[:] = False
    assert circuit == Circuit.full(SMALL)
    with pytest.raises(ValueError, match="read-only"):
        circuit.mask[0, 0] = False
    with pytest.raises(dataclasses.FrozenInstanceError):
        circuit.mask = mask  # type: ignore[misc]  # the point of the test


# --- heads ---------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(VARIANTS), st.data())
def test_a_head_circuit_keeps_all_edges_among_what_it_keeps(graph, data):
    heads = [node.name for node in graph.senders if node.kind == "head"]
    kept = data.draw(st.sets(st.sampled_from(heads)))
    circuit = Circuit.from_heads(graph, kept)
    dropped = set(heads) - kept
    for edge in Circuit.full(graph).edges():
        assert (edge.name in circuit) == (edge.sender.name not in dropped and edge.receiver.node.name not in dropped)
    assert circuit.granularity == "head"
    assert set(circuit.heads()) == kept


@pytest.mark.parametrize("name", ["m0", "input", "logits", "a9.h0", "a0.h0<q>", "", "head"])
def test_only_heads_make_a_head_circuit(name):
    with pytest.raises(GraphMismatch, match="is not a head of this graph"):
        Circuit.from_heads(SMALL, ["a0.h0", name])


# --- paths ---------------------------------------------------------------------------------------------------------------


@given(circuits())
def test_live_and_reached_nodes_against_networkx(circuit):
    arrows, graph = nodes_graph(circuit.edge_names()), circuit.graph
    to_logits = nx.ancestors(arrows, "logits") | {"logits"}
    embeddings = {node.name for node in graph.senders if node.layer == -1}
    reached = embeddings.union(*(nx.descendants(arrows, name) for name in embeddings))
    senders = [node.name for node in graph.senders]
    assert circuit.live_senders().tolist() == [name in to_logits for name in senders]
    assert live_senders(graph, circuit.mask).tolist() == [name in to_logits for name in senders]
    assert live_receivers(graph, circuit.mask).tolist() == [r.node.name in to_logits for r in graph.receivers]
    assert circuit.reached_senders().tolist() == [name in reached for name in senders]


@given(circuits())
def test_pruning_against_networkx(circuit):
    """Edges into a node with a path to the logits stay; `unreached` also drops those that no embedding reaches."""
    names = circuit.edge_names()
    arrows = nodes_graph(names)

    def leading_somewhere(kept):
        to_logits = nx.ancestors(nodes_graph(kept), "logits") | {"logits"}
        return [name for name in kept if name.split("->")[1].split("<")[0] in to_logits]

    embeddings = {node.name for node in circuit.graph.senders if node.layer == -1}
    reached = embeddings.union(*(nx.descendants(arrows, name) for name in embeddings))
    assert circuit.prune().edge_names() == leading_somewhere(names)
    wanted = leading_somewhere([name for name in names if name.split("->")[0] in reached])
    assert circuit.prune(unreached=True).edge_names() == wanted
    for unreached in (False, True):
        once = circuit.prune(unreached)
        assert once.prune(unreached) == once <= circuit


@pytest.mark.parametrize("ablation", [Ablation("zero"), Ablation("mean"), Ablation("resample")], ids=lambda a: a.kind)
def test_pruning_leaves_the_logits_alone(ablation):
    model = model_of("no_norm")
    examples = random_examples(model, 4)
    patching = Patching(model, ablation, examples)
    (chunk,) = patching.hold(examples)
    for seed in range(5):
        mask = model.graph.edge_mask & (np.random.default_rng(seed).random(model.graph.edge_mask.shape) < 0.2)
        circuit = Circuit(model.graph, mask)
        for unreached in (False, True) if ablation.kind == "resample" else (False,):
            pruned = circuit.prune(unreached)
            assert pruned <= circuit
            runs = [patching.circuit_logits(chunk, one.mask) for one in (circuit, pruned)]
            torch.testing.assert_close(runs[0], runs[1], atol=1e-10, rtol=0)


def test_paths_against_networkx():
    kept = ["input->a0.h0<q>", "input->a0.h0<k>", "input->m0", "a0.h0->m0", "a0.h0->a1.h1<v>", "m0->a1.h1<v>", "m0->m1",
            "a1.h1->m1", "a1.h1->logits", "m1->logits", "input->logits", "input->a1.h0<q>"]  # fmt: skip
    circuit, arrows = of(kept), nodes_graph(kept)
    for source, target in (("input", "logits"), ("a0.h0", "logits"), ("input", "m1"), ("m1", "input")):
        for limit in (None, 1, 2, 3):
            found = list(circuit.paths(source, target, limit))
            wanted = list(nx.all_simple_paths(arrows, source, target, cutoff=limit))
            assert sorted(found) == sorted(wanted)
            assert [len(path) for path in found] == sorted(len(path) for path in wanted)
    assert list(circuit.paths("a0.h1")) == []  # a node of the graph that the circuit does not touch
    assert ["input", "a0.h0", "m0", "a1.h1", "m1", "logits"] in circuit.paths()


@pytest.mark.parametrize("ends", [("a7.h7", "logits"), ("input", "a7.h7")])
def test_paths_between_unknown_nodes_are_refused(ends):
    with pytest.raises(GraphMismatch, match=r"'a7\.h7' is not a node"):
        Circuit.full(SMALL).paths(*ends)


# --- networkx ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(circuits())
def test_networkx_holds_the_same_edges_and_its_writers_take_them(circuit):
    graph = circuit.to_networkx()
    assert {data["name"] for *_, data in graph.edges(data=True)} == set(circuit.edge_names())
    assert list(graph.nodes) == circuit.nodes()
    for name, data in graph.nodes(data=True):
        if data["kind"] == "head":
            assert name == f"a{data['layer']}.h{data['head']}"
    for write, read in (
        (nx.write_graphml, nx.read_graphml),
        (nx.write_gexf, nx.read_gexf),
        (nx.write_gml, nx.read_gml),
    ):
        file = BytesIO()
        write(graph, file)
        file.seek(0)
        again = read(file)
        assert again.number_of_edges() == circuit.n_edges
        assert set(again.nodes) == set(circuit.nodes())


# --- files ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(circuits(), provenances)
def test_json_brings_back_the_circuit_and_where_it_came_from(circuit, provenance):
    circuit = circuit.with_provenance(provenance)
    again = Circuit.from_dict(json.loads(json.dumps(circuit.to_dict())))
    assert again == circuit
    assert again.provenance == provenance
    assert again.granularity == circuit.granularity


def test_files_bring_back_the_circuit(tmp_path):
    provenance = Provenance("gpt2", "ioi", {"kind": "mean"}, "logit_diff", "acdc", {"threshold": 0.1}, 7, {"torch": "2"})
    for index, circuit in enumerate(
        [Circuit.full(ComputationGraph(12, 12)), Circuit.empty(SMALL), Circuit.from_heads(SMALL, ["a1.h0"])]
    ):
        circuit.with_provenance(provenance).save(tmp_path / f"{index}.json")
        again = Circuit.load(str(tmp_path / f"{index}.json"))
        assert again == circuit
        assert again.provenance == provenance
        assert again.granularity == circuit.granularity
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", "2.json"]


def test_provenance_survives_pruning_and_is_dropped_by_set_algebra():
    provenance = Provenance(model="gpt2", seed=3)
    circuit = Circuit.from_heads(SMALL, ["a0.h0"]).with_provenance(provenance)
    assert circuit.prune().provenance == provenance
    assert circuit.prune(unreached=True).granularity == "head"
    assert (circuit | circuit).provenance == Provenance()  # nobody found this circuit: it was put together


def refused(path, text):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadFile) as caught:
        Circuit.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_cut_short_is_refused_wherever_it_was_cut(tmp_path):
    circuit = of(NAMES[:5])
    circuit.save(tmp_path / "whole.json")
    text = (tmp_path / "whole.json").read_text()
    for length in range(0, len(text.rstrip()), 7):
        assert "is not JSON" in refused(tmp_path / "cut.json", text[:length])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "circuitdisc.scores"}, "format is 'circuitdisc.scores'"),
        ({"graph": ComputationGraph(1, 2).to_dict()}, "is not an edge of this graph (1 layers x 2 heads)"),
        ({"graph": {**SMALL.to_dict(), "colour": 1}}, "colour"),
        ({"graph": {"n_layers": 2, "n_heads": 2}}, "'graph.has_mlp' is missing"),
        ({"graph": {**SMALL.to_dict(), "n_layers": 10**6}}, "more than are handled here"),
        ({"graph": {**SMALL.to_dict(), "n_layers": 200, "n_heads": 200}}, "more than are handled here"),
        ({"n_edges": 3}, "it says that it has 3 edges"),
        ({"groups": {"A": ["m0"]}}, "'m0' in its groups is not a head"),
        ({"provenance": {"ablation": {"kind": 3}}}, "'kind' is 3"),
        ({"graph": {"n_layers": "two", "n_heads": 2}}, "not a circuit"),
        ({"graph": None}, "not a circuit"),
        ({"edges": ["input->nowhere"]}, "'input->nowhere' is not an edge"),
        ({"edges": [3]}, "not a circuit"),
        ({"edges": None}, "not a circuit"),
        ({"provenance": {"model": "gpt2", "author": "x"}}, "author"),
        ({"provenance": None}, "not a circuit"),
        ({"granularity": "neuron"}, "neuron"),
    ],
)
def test_a_file_that_is_no_circuit_is_refused_with_what_is_wrong(tmp_path, changes, says):
    data = {**of(NAMES).to_dict(), **changes}
    assert says in refused(tmp_path / "bad.json", json.dumps(data))


@pytest.mark.parametrize("key", ["format", "graph", "edges", "provenance", "granularity"])
def test_a_missing_key_is_named(tmp_path, key):
    data = {name: value for name, value in of(NAMES).to_dict().items() if name != key}
    assert key in refused(tmp_path / "bad.json", json.dumps(data))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"circuit"', "{}"])
def test_other_json_is_refused(tmp_path, text):
    refused(tmp_path / "other.json", text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadFile, match=r"nothing\.json"):
        Circuit.load(tmp_path / "nothing.json")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\x80\x02}q\x00")
    with pytest.raises(BadFile, match=r"binary\.json.*not UTF-8"):
        Circuit.load(tmp_path / "binary.json")
