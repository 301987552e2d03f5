"""Random controls: what they have in common with a circuit, that they differ, and what is said where they cannot."""

from collections import Counter
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from examples import some_circuit
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.circuit import Circuit
from circuitdisc.controls import different_sets, edge_strata, random_circuits, random_places, relabelled
from circuitdisc.graph import ComputationGraph

GRAPH = ComputationGraph(2, 4)
GRAPHS = [
    GRAPH,
    ComputationGraph(3, 2, parallel=True),
    ComputationGraph(2, 5, has_mlp=False, split_embeddings=True),
    ComputationGraph(4, 3),
]


def some_heads(graph, seed=0, share=0.5):
    generator = np.random.default_rng(seed)
    names = [node.name for node in graph.senders if node.kind == "head"]
    return Circuit.from_heads(graph, [name for name in names if generator.random() < share])


def drawn(circuit, n=20, seed=0):
    return random_circuits(circuit, n, np.random.default_rng(seed))


def mix(circuit):
    """How many edges there are from each kind and layer of sender into each kind and layer of receiver."""
    return Counter((e.sender.kind, e.sender.layer, e.receiver.kind, e.receiver.node.layer) for e in circuit.edges())


def heads_in_layers(circuit):
    return Counter(name.split(".")[0] for name in circuit.heads())


def live_edges(circuit):
    """Names of the edges on a path from an embedding to `logits`, found edge by edge."""
    edges = list(circuit.edges())
    embeddings = {node.name for node in circuit.graph.senders if node.kind not in ("head", "mlp")}
    reached, leading = set(embeddings), {"logits"}
    for _ in range(len(circuit.graph.senders)):
        reached |= {e.receiver.node.name for e in edges if e.sender.name in reached}
        leading |= {e.sender.name for e in edges if e.receiver.node.name in leading}
    return {e.name for e in edges if e.sender.name in reached and e.receiver.node.name in leading}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GRAPHS), st.integers(0, 10**6), st.sampled_from([0.05, 0.15, 0.3, 0.6, 0.9, 1.0]))
def test_edge_controls_are_matched_in_their_live_edges(graph, seed, share):
    circuit = some_circuit(graph, seed, share)
    live = Circuit.from_edges(graph, live_edges(circuit))
    found = drawn(circuit, 4, seed)
    for control in found.circuits:
        assert live_edges(control) == set(control.edge_names())
        assert control.n_edges == live.n_edges
        assert mix(control) == mix(live)
        assert heads_in_layers(control) == heads_in_layers(live)
        assert control != live
        assert control.granularity == "edge"
    assert len(set(found.circuits)) == len(found) <= 4
    assert drawn(circuit, 4, seed).circuits == found.circuits
    if not live.n_edges:
        assert found.words.startswith("cannot be controlled")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.7, 1.0]))
def test_head_controls_have_as_many_heads_in_each_layer(seed, share):
    circuit = some_heads(GRAPH, seed, share)
    found = drawn(circuit, 30, seed)
    for control in found.circuits:
        assert heads_in_layers(control) == heads_in_layers(circuit)
        assert control == Circuit.from_heads(GRAPH, control.heads())
        assert control != circuit
        assert control.granularity == "head"
    per_layer = heads_in_layers(circuit)
    assert found.possible == comb(4, per_layer["a0"]) * comb(4, per_layer["a1"]) - 1
    assert len(set(found.circuits)) == len(found) == min(30, found.possible or 0)


def test_dead_edges_of_a_circuit_have_no_share_in_its_controls():
    """Two edges lead nowhere and one comes from nowhere: three edges are matched, not six."""
    names = ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits"]
    dead = ["input->a1.h3<q>", "a0.h0->m1", "a0.h2->logits"]
    with_dead, without = Circuit.from_edges(GRAPH, [*names, *dead]), Circuit.from_edges(GRAPH, names)
    assert drawn(with_dead).circuits == drawn(without).circuits
    assert all(one.n_edges == 3 for one in drawn(with_dead).circuits)


def every_matched(circuit):
    """All other circuits that are matched, by going through all sets of as many edges of each kind and layers."""
    strata = {}
    for e in Circuit.full(circuit.graph).edges():
        strata.setdefault((e.sender.kind, e.sender.layer, e.receiver.kind, e.receiver.node.layer), []).append(e.name)
    counts = mix(circuit)
    found = []
    for choice in product(*(combinations(strata[key], count) for key, count in counts.items())):
        other = Circuit.from_edges(circuit.graph, [name for names in choice for name in names])
        if (
            len(live_edges(other)) == circuit.n_edges
            and heads_in_layers(other) == heads_in_layers(circuit)
            and other != circuit
        ):
            found.append(other)
    return found


@pytest.mark.parametrize(
    "names",
    [
        ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits"],
        ["input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->logits", "a0.h1->m0", "m0->logits"],
        ["input->a0.h0<q>", "input->a0.h0<v>", "a0.h0->a1.h2<k>", "a1.h2->logits"],
    ],
)
def test_where_few_circuits_are_matched_all_can_be_drawn_and_are_counted(names):
    circuit = Circuit.from_edges(GRAPH, names)
    everything = every_matched(circuit)
    found = drawn(circuit, 1000)
    assert found.possible == len(everything) == len(found)
    assert set(found.circuits) == set(everything)
    assert found.note == f"{len(everything)} different controls of the {len(everything)} that there are"
    some = drawn(circuit, 2)
    assert set(some.circuits) < set(everything)


def test_a_circuit_that_is_the_only_one_of_its_kind_cannot_be_controlled():
    everything = drawn(Circuit.full(GRAPH))
    assert (everything.circuits, everything.possible) == ((), 0)
    assert everything.note.startswith("cannot be controlled: no other circuit has as many live edges")
    heads = drawn(Circuit.from_heads(GRAPH, []))
    assert heads.words == "cannot be controlled: no other circuit has as many heads in each layer"
    only = Circuit.from_edges(GRAPH, ["input->m0", "m0->m1", "m1->logits"])
    assert drawn(only).circuits == ()
    assert drawn(Circuit.empty(GRAPH)).note.startswith("cannot be controlled")


def test_many_draws_use_every_edge_and_few_are_like_the_circuit():
    graph = ComputationGraph(3, 6)
    circuit = some_circuit(graph, 0, 0.3).prune(unreached=True)
    found = drawn(circuit, 100)
    assert len(found) == 100
    assert (found.note, found.possible) == ("", None)
    ever = np.any([one.mask for one in found.circuits], axis=0)
    strata = edge_strata(graph)
    occupied = np.isin(strata, strata[circuit.mask]) & graph.edge_mask
    assert ever[occupied].mean() > 0.95
    assert np.mean([one.jaccard(circuit) for one in found.circuits]) < 0.5


def test_relabelling_moves_heads_within_their_layers():
    places = random_places(GRAPH, np.random.default_rng(0))
    circuit = Circuit.from_edges(GRAPH, ["input->a0.h1<q>", "a0.h1->a1.h3<v>", "m0->a1.h3<k>", "a1.h3->logits", "m1->logits"])
    first, second = f"a0.h{places[0, 1]}", f"a1.h{places[1, 3]}"
    wanted = {f"input->{first}<q>", f"{first}->{second}<v>", f"m0->{second}<k>", f"{second}->logits", "m1->logits"}
    assert set(relabelled(circuit, places).edge_names()) == wanted


# --- sets ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4), st.integers(0, 12), st.integers(0, 99)
)
def test_sets_are_different_and_as_many_as_there_are(sizes, n, seed):
    sizes = [(max(size, count), min(size, count)) for size, count in sizes]
    own = tuple(tuple(range(count)) for _, count in sizes)
    found = different_sets([a for a, _ in sizes], [b for _, b in sizes], n, np.random.default_rng(seed), {own})
    there_are = np.prod([comb(size, count) for size, count in sizes]) - 1
    assert len(found) == len(set(found)) == min(n, there_are)
    assert own not in found
    for choice in found:
        for (size, count), members in zip(sizes, choice, strict=True):
            assert list(members) == sorted(set(members))
            assert len(members) == count
            assert all(0 <= member < size for member in members)


def test_sets_are_drawn_evenly():
    found = Counter(different_sets([5, 4], [2, 1], 1, np.random.default_rng(seed))[0] for seed in range(4000))
    assert len(found) == 40
    assert max(abs(count - 100) for count in found.values()) < 50
    large = Counter(m for seed in range(300) for m in different_sets([40], [9], 1, np.random.default_rng(seed))[0][0])
    assert len(large) == 40
    assert max(abs(count - 67.5) for count in large.values()) < 35
