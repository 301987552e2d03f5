"""What two circuits share, against Python's sets, Fisher's exact test and random circuits that are really drawn."""

import math

import numpy as np
import pytest
from examples import some_circuit
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from circuitdisc.circuit import Circuit
from circuitdisc.errors import GraphMismatch
from circuitdisc.graph import ComputationGraph
from circuitdisc.scoring.overlap import HEADS_DECIDE, overlap, shared_distribution

SMALL = ComputationGraph(2, 3)
GRAPHS = [SMALL, ComputationGraph(2, 2, has_mlp=False), ComputationGraph(3, 2, parallel=True, split_embeddings=True)]
KINDS = ("heads", "nodes", "edges")


@st.composite
def pairs(draw):
    """Two circuits of one graph, of any density."""
    graph = draw(st.sampled_from(GRAPHS))
    return tuple(some_circuit(graph, draw(st.integers(0, 10**6)), draw(st.floats(0, 1))) for _ in range(2))


def members(circuit, kind):
    """A circuit's members by name, from the names of its edges alone."""
    edges = set(circuit.edge_names())
    if kind == "edges":
        return edges
    senders = {edge.split("->")[0] for edge in edges}
    receivers = {edge.split("->")[1].split("<")[0] for edge in edges}
    if kind == "heads":
        return {name for name in senders if name[0] == "a"}
    return {name for name in senders | receivers if name[0] in "am"}


@settings(deadline=None, max_examples=60)
@given(pairs())
def test_the_figures_are_those_of_sets(pair):
    a, b = pair
    for kind, found in overlap(a, b).items():
        in_a, in_b, everything = members(a, kind), members(b, kind), members(Circuit.full(a.graph), kind)
        shared = in_a & in_b
        assert (found.kind, found.n_all, found.n_a, found.n_b) == (kind, len(everything), len(in_a), len(in_b))
        assert found.n_shared == len(shared)
        assert found.jaccard == (len(shared) / len(in_a | in_b) if in_a | in_b else 1.0)
        assert found.precision == (len(shared) / len(in_b) if in_b else None)
        assert found.recall == (len(shared) / len(in_a) if in_a else None)
        if kind != "edges":
            assert (set(found.shared), set(found.only_a), set(found.only_b)) == (shared, in_a - in_b, in_b - in_a)
        table = [[len(shared), len(in_a - in_b)], [len(in_b - in_a), len(everything - in_a - in_b)]]
        assert found.uniform is not None
        assert found.uniform.p_value == pytest.approx(stats.fisher_exact(table, "greater")[1], rel=1e-6)
        assert found.uniform.expected == pytest.approx(len(in_a) * len(in_b) / len(everything))


@settings(deadline=None, max_examples=60)
@given(pairs())
def test_the_overlap_is_symmetric_and_bounded(pair):
    there, back = overlap(*pair), overlap(*reversed(pair))
    for kind in KINDS:
        one, other = there[kind], back[kind]
        assert one.n_shared == other.n_shared
        assert 0 <= one.jaccard == other.jaccard <= 1
        assert (one.precision, one.recall) == (other.recall, other.precision)
        for chance, reversed_chance in ((one.uniform, other.uniform), (one.matched, other.matched)):
            assert chance is not None
            assert reversed_chance is not None
            assert chance.expected == pytest.approx(reversed_chance.expected)
            assert chance.p_value == pytest.approx(reversed_chance.p_value, rel=1e-6)
            assert max(0, one.n_a + one.n_b - one.n_all) - 1e-9 <= chance.expected <= min(one.n_a, one.n_b) + 1e-9
            assert 0 < chance.p_value <= 1


@settings(deadline=None, max_examples=40)
@given(pairs())
def test_a_circuit_is_itself_and_not_its_complement(pair):
    circuit = pair[0]
    for found in overlap(circuit, circuit).values():
        assert found.jaccard == 1
        assert found.precision in (1, None)
    assert overlap(circuit, ~circuit)["edges"].n_shared == 0
    assume(0 < circuit.n_edges < circuit.graph.n_edges)
    assert overlap(circuit, ~circuit)["edges"].jaccard == 0


def redrawn(circuit, generator):
    """As many edges between each two kinds and layers, one kind after the other."""
    strata = {}
    for edge in Circuit.full(circuit.graph).edges():
        key = (edge.sender.kind, edge.sender.layer, edge.receiver.kind, edge.receiver.node.layer)
        strata.setdefault(key, []).append(edge.name)
    names = []
    for members in strata.values():
        names += generator.choice(members, sum(name in circuit for name in members), replace=False).tolist()
    return Circuit.from_edges(circuit.graph, names)


def test_chance_is_what_drawing_shares():
    """The exact distributions against 4,000 circuits drawn; the bounds are four standard errors."""
    a, b = some_circuit(SMALL, 1, 0.4), some_circuit(SMALL, 2, 0.5)
    a, b = a | Circuit.from_edges(SMALL, ["a0.h0->a1.h0<q>", "m0->m1"]), b | Circuit.from_edges(SMALL, ["a0.h0->a1.h0<q>"])
    found, generator, n = overlap(a, b)["edges"], np.random.default_rng(0), 4000
    edges = np.argwhere(SMALL.edge_mask)
    matched, uniform = [], []
    for _ in range(n):
        matched.append((redrawn(b, generator) & a).n_edges)
        chosen = edges[generator.choice(len(edges), b.n_edges, replace=False)]
        uniform.append(int(a.mask[chosen[:, 0], chosen[:, 1]].sum()))
    for chance, drawn in ((found.matched, matched), (found.uniform, uniform)):
        assert chance is not None
        assert np.mean(drawn) == pytest.approx(chance.expected, abs=4 * np.std(drawn) / n**0.5)
        as_many = np.mean(np.array(drawn) >= found.n_shared)
        assert as_many == pytest.approx(chance.p_value, abs=4 * (0.25 / n) ** 0.5)
        assert 0.01 < chance.p_value < 0.99


def test_heads_of_the_same_layers_are_drawn():
    graph = ComputationGraph(3, 6)
    a = Circuit.from_heads(graph, ["a1.h0", "a1.h1", "a1.h2", "a2.h0"])
    b = Circuit.from_heads(graph, ["a1.h1", "a1.h2", "a1.h4"])
    found, generator = overlap(a, b)["heads"], np.random.default_rng(0)
    in_a = {int(name[-1]) for name in a.heads() if name.startswith("a1")}
    drawn = [len(set(generator.choice(6, 3, replace=False).tolist()) & in_a) for _ in range(2000)]
    assert found.matched is not None
    assert found.matched.expected == 3 * 3 / 6
    assert found.matched.p_value == pytest.approx(1 / 2)  # at least 2 of 3, half of them in A
    assert np.mean(drawn) == pytest.approx(1.5, abs=0.06)
    assert found.uniform is not None
    assert found.uniform.expected == 3 * 4 / 18


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=5))
def test_the_distribution_of_the_number_shared(strata):
    sizes, n_a, n_b = np.array([(size, min(a, size), min(b, size)) for size, a, b in strata]).T
    fewest, likely = shared_distribution(sizes, n_a, n_b)
    assert likely.sum() == pytest.approx(1)
    assert len(likely) == np.minimum(n_a, n_b).sum() - fewest + 1
    assert (likely @ np.arange(fewest, fewest + len(likely))) == pytest.approx((n_a * n_b / sizes).sum())


def test_tiny_chances_keep_their_digits():
    graph = ComputationGraph(32, 32)
    heads = [f"a{layer}.h{head}" for layer in range(32) for head in (3, 17)]
    found = overlap(Circuit.from_heads(graph, heads), Circuit.from_heads(graph, heads))["heads"]
    assert found.uniform is not None
    assert found.matched is not None
    assert found.uniform.p_value == pytest.approx(1 / math.comb(1024, 64), rel=1e-6)
    assert found.matched.p_value == pytest.approx(math.comb(32, 2) ** -32, rel=1e-6)


def test_edges_of_head_circuits_are_no_evidence():
    heads = Circuit.from_heads(SMALL, ["a0.h0"])
    for pair in ((heads, heads), (heads, some_circuit(SMALL, 0, 0.3))):
        found = overlap(*pair)
        assert found["heads"].uniform is not None
        for kind in ("nodes", "edges"):
            assert (found[kind].uniform, found[kind].matched, found[kind].note) == (None, None, HEADS_DECIDE)


def test_circuits_of_different_graphs():
    with pytest.raises(GraphMismatch, match="2 layers x 3 heads and 2 layers x 2 heads"):
        overlap(Circuit.full(SMALL), Circuit.full(ComputationGraph(2, 2)))


def test_the_figures_as_json():
    found = overlap(some_circuit(SMALL, 0, 0.5), some_circuit(SMALL, 1, 0.5))["heads"]
    written = found.to_dict()
    assert written["precision"] == found.precision
    assert written["uniform"] == {"expected": found.uniform.expected, "p_value": found.uniform.p_value}  # type: ignore[union-attr]  # it is there
