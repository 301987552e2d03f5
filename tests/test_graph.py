"""The graph: which sender may feed which receiver, decided pair by pair, and names that lead back to their edge."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitdisc.errors import GraphMismatch
from circuitdisc.graph import ComputationGraph, Node, Receiver, heads_where

SWITCHES = list(product([True, False], repeat=3))  # has_mlp, parallel, split_embeddings
VARIANTS = [ComputationGraph(3, 2, *switches) for switches in SWITCHES]
GPT2 = ComputationGraph(12, 12)

graphs = st.builds(ComputationGraph, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
variants = pytest.mark.parametrize("graph", VARIANTS, ids=lambda graph: graph.describe())


def may_feed(sender: Node, receiver: Receiver, parallel: bool) -> bool:
    """The rule itself, from layers and kinds alone."""
    if sender.kind in ("input", "tok_embed", "pos_embed") or receiver.kind == "logits":
        return True
    if sender.layer != receiver.node.layer:
        return sender.layer < receiver.node.layer
    return sender.kind == "head" and receiver.kind == "mlp" and not parallel


@pytest.mark.parametrize(
    ("graph", "n_senders", "n_receivers", "n_edges"),
    [
        (GPT2, 157, 445, 32_491),
        (ComputationGraph(24, 14), 1 + 24 * 15, 24 * 43 + 1, 179_749),  # Qwen2.5 0.5B, as MIB counts it
        (ComputationGraph(1, 1), 3, 5, 3 + 2 + 3),
        (ComputationGraph(1, 1, parallel=True), 3, 5, 3 + 1 + 3),
        (ComputationGraph(2, 1, has_mlp=False), 3, 7, 3 * 1 + 3 * 2 + 3),
        (ComputationGraph(1, 1, split_embeddings=True), 4, 5, 6 + 3 + 4),
    ],
    ids=["GPT-2 small", "Qwen2.5", "one head", "one parallel head", "no MLP", "embeddings apart"],
)
def test_counts(graph, n_senders, n_receivers, n_edges):
    assert (graph.n_senders, graph.n_receivers, graph.n_edges) == (n_senders, n_receivers, n_edges)
    assert int(graph.edge_mask.sum()) == n_edges


def test_names_and_order():
    graph = ComputationGraph(2, 2)
    assert [node.name for node in graph.senders] == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert [receiver.name for receiver in graph.receivers] == [
        "a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0",
        "a1.h0<q>", "a1.h1<q>", "a1.h0<k>", "a1.h1<k>", "a1.h0<v>", "a1.h1<v>", "m1",
        "logits",
    ]  # fmt: skip
    assert [receiver.kind for receiver in graph.receivers[-4:]] == ["v", "v", "mlp", "logits"]
    apart = ComputationGraph(1, 1, has_mlp=False, split_embeddings=True)
    assert [node.name for node in apart.senders] == ["tok_embed", "pos_embed", "a0.h0"]
    assert [receiver.name for receiver in apart.receivers] == ["a0.h0<q>", "a0.h0<k>", "a0.h0<v>", "logits"]


def test_edges_are_written_as_eap_ig_and_mib_write_them():
    for name in ("input->a3.h5<q>", "m2->a7.h0<v>", "a9.h6->logits", "a9.h6->m9", "input->logits"):
        receiver, sender = GPT2.parse_edge(name)
        assert GPT2.edge_name(receiver, sender) == name
        assert GPT2.edge(receiver, sender).name == name


@given(graphs)
def test_every_pair_follows_the_rule(graph):
    for r, receiver in enumerate(graph.receivers):
        for s, sender in enumerate(graph.senders):
            assert bool(graph.edge_mask[r, s]) == may_feed(sender, receiver, graph.parallel)
        assert int(graph.n_upstream[r]) == sum(may_feed(sender, receiver, graph.parallel) for sender in graph.senders)


@variants
def test_every_edge_name_leads_back_to_its_edge(graph):
    names = set()
    for r, s in np.argwhere(graph.edge_mask):
        name = graph.edge_name(int(r), int(s))
        assert graph.parse_edge(name) == (r, s)
        names.add(name)
    assert len(names) == graph.n_edges


@variants
def test_pairs_that_are_no_edges_have_no_name(graph):
    for r, s in np.argwhere(~graph.edge_mask):
        with pytest.raises(GraphMismatch):
            graph.parse_edge(f"{graph.senders[s].name}->{graph.receivers[r].name}")


@pytest.mark.parametrize(
    "name",
    ["", "->", "input", "input->", "->logits", "input->a0.h0", "input->a0.h0<x>", "input->a0.h0<q><k>", "input->logits<q>",
     "logits->input", "a0.h0->input", "m0->a0.h0<q>", "a1.h0->a1.h1<k>", "a2.h0->a1.h0<q>", "input->a3.h0<q>",
     "input->a0.h2<q>", "input->a00.h0<q>", " input->logits", "input->logits ", "input -> logits", "tok_embed->logits",
     "input->logits->logits", "INPUT->logits", "input→logits", "input->m0<v>", "m2->m2"],
)  # fmt: skip
def test_a_name_that_is_no_edge_is_refused_with_the_graph(name):
    graph = ComputationGraph(3, 2)
    with pytest.raises(GraphMismatch) as caught:
        graph.parse_edge(name)
    assert f"'{name}' is not an edge of this graph (3 layers x 2 heads)" in str(caught.value)


def test_no_head_feeds_its_own_blocks_mlp_in_parallel_blocks():
    receiver, sender = ComputationGraph(2, 2).parse_edge("a1.h0->m1")
    assert (receiver, sender) == (13, 4)
    with pytest.raises(GraphMismatch, match="parallel blocks"):
        ComputationGraph(2, 2, parallel=True).parse_edge("a1.h0->m1")


@given(graphs)
def test_groups_partition_the_receivers_in_order(graph):
    assert [r for group in graph.groups for r in group] == list(range(graph.n_receivers))
    places = []
    for group in graph.groups:
        (place,) = {(graph.receivers[r].node.layer, graph.receivers[r].kind in "qkv") for r in group}
        places.append(place)
        assert len({int(graph.n_upstream[r]) for r in group}) == 1
    assert len(places) == len(set(places)) == graph.n_layers * (1 + graph.has_mlp) + 1
    for before, after in pairwise(graph.groups):
        assert graph.n_upstream[before[0]] <= graph.n_upstream[after[0]]


@given(graphs)
def test_indices_and_receivers_of_nodes(graph):
    for index, node in enumerate(graph.senders):
        assert graph.sender_index[node.name] == index
    for index, receiver in enumerate(graph.receivers):
        assert graph.receiver_index[receiver.name] == index
    for name, indices in graph.node_receivers.items():
        assert list(indices) == [r for r, receiver in enumerate(graph.receivers) if receiver.node.name == name]
    assert set(graph.node_receivers) == {*graph.sender_index, "logits"}


@given(graphs)
def test_a_sender_comes_after_everything_its_node_reads(graph):
    """Topological order: what a node reads lies before it, and all that reads it lies after its own inputs."""
    for index, node in enumerate(graph.senders):
        own = graph.node_receivers[node.name]
        assert all(graph.n_upstream[r] <= index for r in own)
        readers = np.flatnonzero(graph.edge_mask[:, index])
        assert all(r > max(own, default=-1) for r in readers)


@given(graphs)
def test_a_graph_is_what_its_dictionary_says(graph):
    again = ComputationGraph(**graph.to_dict())
    assert again == graph
    assert hash(again) == hash(graph)


def test_the_edge_mask_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        GPT2.edge_mask[0, 0] = False


@given(graphs)
def test_names_are_parsed_back(graph):
    for node in (*graph.senders, Node("logits")):
        assert Node.parse(node.name) == graph.parse_node(node.name) == node
    named = [(node.name, (node.layer, node.head)) for node in graph.senders if node.kind == "head"]
    assert list(graph.heads.items()) == named
    assert all(graph.parse_head(name) == place for name, place in named)
    assert heads_where(np.ones((graph.n_layers, graph.n_heads), dtype=bool)) == [name for name, _ in named]


@pytest.mark.parametrize(
    "name", ["", "a0", "a0.h", "a0.h0<q>", "m", "m²", " m0", "m0\n", "logit", "a-1.h0", "input->m0", "A0.h0"]
)
def test_a_name_that_is_no_node_is_refused(name):
    with pytest.raises(GraphMismatch, match=r"is not a node; nodes are written like input, a0\.h0, m0 and logits"):
        Node.parse(name)
    with pytest.raises(GraphMismatch, match=r"is not a node of this graph \(3 layers x 2 heads\)"):
        ComputationGraph(3, 2).parse_node(name)


def test_the_nearest_heads_are_named():
    graph = ComputationGraph(3, 2)
    with pytest.raises(GraphMismatch, match=r"'a3\.h1' is not a head of this graph .*Did you mean a\d\.h1 or "):
        graph.parse_head("a3.h1")
    for name in ("m0", "input", "a0.h2", "a00.h1"):
        with pytest.raises(GraphMismatch, match=r"heads are written like a0\.h0"):
            graph.parse_head(name)
