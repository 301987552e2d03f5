"""Heads, nodes, edges and neurons: what comes back when one is turned into the other, and what is more than it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.errors import GraphMismatch
from circuitdisc.graph import ComputationGraph
from circuitdisc.heads.neurons.sets import Neuron, circuit_of_neurons, mlps_of_neurons, neurons_of_circuit

GRAPH = ComputationGraph(3, 2)
GRAPHS = [GRAPH, ComputationGraph(2, 3, has_mlp=False), ComputationGraph(2, 2, parallel=True, split_embeddings=True)]
D_MLP = 5
neuron_sets = st.frozensets(st.tuples(st.integers(0, 2), st.integers(0, D_MLP - 1)))


@st.composite
def node_sets(draw):
    graph = draw(st.sampled_from(GRAPHS))
    names = [node.name for node in graph.senders if node.kind in ("head", "mlp")]
    return graph, draw(st.frozensets(st.sampled_from(names)))


@settings(deadline=None)
@given(node_sets())
def test_nodes_come_back_from_their_circuit(case):
    graph, names = case
    circuit = Circuit.from_nodes(graph, names)
    always = {node.name for node in graph.senders if node.kind not in ("head", "mlp")} | {"logits"}
    assert set(circuit.nodes()) == names | always
    assert Circuit.from_nodes(graph, circuit.nodes()) == circuit
    assert set(circuit.heads()) == {name for name in names if name.startswith("a")}
    assert circuit.prune(unreached=True) == circuit  # every node is reached from an embedding and reaches logits
    for edge in Circuit.full(graph).edges():  # all edges among the nodes, and no others
        ends = {edge.sender.name, edge.receiver.node.name}
        assert (edge.name in circuit) == (ends <= names | always)


@settings(deadline=None)
@given(node_sets())
def test_heads_come_back_from_their_circuits(case):
    graph, names = case
    heads = [node.name for node in graph.senders if node.name in names and node.kind == "head"]
    head_circuit = Circuit.from_heads(graph, heads)
    assert head_circuit.heads() == heads
    assert head_circuit.as_head_circuit() == head_circuit
    assert Circuit.from_nodes(graph, heads, keep_mlps=True) == head_circuit
    assert Circuit.from_nodes(graph, heads) <= head_circuit
    assert Circuit.from_nodes(graph, heads).as_head_circuit() == head_circuit


@settings(deadline=None)
@given(st.sampled_from(GRAPHS), st.integers(0, 10**6), st.floats(0, 1))
def test_an_edge_circuit_lies_within_that_of_its_nodes(graph, seed, share):
    mask = graph.edge_mask & (np.random.default_rng(seed).random(graph.edge_mask.shape) < share)
    circuit = Circuit(graph, mask, Provenance(model="m")).prune(unreached=True)
    assert circuit <= Circuit.from_nodes(graph, circuit.nodes())
    wider = circuit.as_head_circuit()
    assert circuit <= wider
    assert wider.heads() == circuit.heads()
    assert (wider.granularity, wider.provenance) == ("head", circuit.provenance)


@settings(deadline=None)
@given(neuron_sets)
def test_a_circuit_keeps_the_whole_of_each_neurons_mlp(neurons):
    circuit = circuit_of_neurons(GRAPH, neurons, heads=["a1.h0"])
    layers = {layer for layer, _ in neurons}
    assert mlps_of_neurons(GRAPH, neurons) == [f"m{layer}" for layer in sorted(layers)]
    assert set(circuit.nodes()) == {"input", "logits", "a1.h0"} | {f"m{layer}" for layer in layers}
    back = neurons_of_circuit(circuit, D_MLP)
    assert neurons <= set(back)
    assert len(back) == D_MLP * len(layers)
    assert circuit_of_neurons(GRAPH, back, heads=["a1.h0"]) == circuit


def test_neurons_of_an_mlp_that_reaches_nothing():
    circuit = Circuit.from_edges(GRAPH, ["input->m0", "m1->logits", "input->m2", "m2->logits"])
    assert neurons_of_circuit(circuit, 2) == [Neuron(1, 0), Neuron(1, 1), Neuron(2, 0), Neuron(2, 1)]
    assert Neuron(1, 0).node == "m1"


def test_what_is_no_node_is_refused():
    with pytest.raises(GraphMismatch, match=r"'a9\.h9' is not a node of this graph \(3 layers x 2 heads\)"):
        Circuit.from_nodes(GRAPH, ["a9.h9"])
    with pytest.raises(GraphMismatch, match="no MLP in layer 7"):
        circuit_of_neurons(GRAPH, [(7, 0)])
    with pytest.raises(GraphMismatch, match="no MLP in layer 0"):
        circuit_of_neurons(ComputationGraph(2, 2, has_mlp=False), [(0, 0)])
