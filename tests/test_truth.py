"""Scores against a ground truth: every figure counted pair by pair, threshold by threshold; truths and their files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import BadFile, BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.scoring.against_truth import against_truth
from circuitdisc.scoring.roc import auroc, average_precision, curve
from circuitdisc.scoring.truth import Truth

GRAPH = ComputationGraph(2, 2)
TRUE = ("input->a0.h1<v>", "a0.h1->a1.h0<k>", "a1.h0->logits")
TRUTH = Truth(GRAPH, {"resample": TRUE, "zero": (*TRUE, "m0->logits")}, "toy")
EDGES = [GRAPH.edge_name(int(r), int(s)) for r, s in np.argwhere(GRAPH.edge_mask)]


def scores_of(values, others=0.0):
    """Scores of all edges: these, and the others'."""
    found = np.full(GRAPH.edge_mask.shape, np.nan)
    found[GRAPH.edge_mask] = others
    for name, value in values.items():
        found[GRAPH.parse_edge(name)] = value
    return found


@st.composite
def labelled(draw):
    """Few different scores, so that there are many ties."""
    rows = draw(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=12))
    return np.array([float(score) for score, _ in rows]), np.array([is_true for _, is_true in rows])


@settings(deadline=None)
@given(labelled())
def test_auroc_counts_pairs_and_is_the_area_under_the_curve(case):
    scores, is_true = case
    pairs = [(a > b) + (a == b) / 2 for a in scores[is_true] for b in scores[~is_true]]
    found = auroc(scores, is_true)
    if not pairs:
        assert found is None
        return
    assert found == pytest.approx(np.mean(pairs))
    points = curve(scores, is_true)
    assert found == pytest.approx(np.trapezoid(points.tpr, points.fpr))


@settings(deadline=None)
@given(labelled())
def test_the_curve_takes_whole_groups(case):
    scores, is_true = case
    points = curve(scores, is_true)
    assert (points.n_taken[0], points.n_hits[0], points.thresholds[0]) == (0, 0, np.inf)
    thresholds = sorted(set(scores.tolist()), reverse=True)
    assert points.thresholds[1:].tolist() == thresholds
    total, before = 0.0, 0
    for index, threshold in enumerate(thresholds, start=1):
        taken = scores >= threshold
        hits = int((taken & is_true).sum())
        assert (points.n_taken[index], points.n_hits[index]) == (taken.sum(), hits)
        assert points.precision[index] == pytest.approx(hits / taken.sum())
        total += (hits - before) * hits / taken.sum()
        before = hits
    assert average_precision(points) == (pytest.approx(total / is_true.sum()) if is_true.any() else None)


def test_scores_are_read_at_the_true_size_with_whole_groups():
    scores = scores_of({TRUE[0]: -3.0, "m0->logits": 2.0, TRUE[1]: 1.0, "m1->logits": -1.0, TRUE[2]: 0.5})
    found = against_truth(scores, TRUTH, ablation="resample")
    edges = found.edges
    assert found.scored
    taken = {name for name, hit in zip(edges.names, edges.is_taken, strict=True) if hit}
    assert taken == {TRUE[0], "m0->logits", TRUE[1], "m1->logits"}  # three are true; the third is tied with a fourth
    assert (edges.precision, edges.recall, edges.f1) == (2 / 4, 2 / 3, 4 / 7)
    assert edges.missed() == [TRUE[2]]
    assert sorted(edges.wrong()) == ["m0->logits", "m1->logits"]
    n = len(EDGES)
    wins = (n - 3) + (n - 3 - 1 - 0.5) + (n - 3 - 2)  # pairs won by each true edge
    assert edges.auroc == pytest.approx(wins / (3 * (n - 3)))
    assert edges.average_precision == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_signed_scores_put_the_largest_falls_first():
    scores = scores_of({TRUE[0]: -1.0, TRUE[1]: -1.0, TRUE[2]: -1.0, "m0->logits": 5.0})
    assert against_truth(scores, TRUTH, ablation="resample", by="signed").edges.auroc == 1
    absolute = against_truth(scores, TRUTH, ablation="resample").edges
    assert absolute.auroc == pytest.approx(1 - 1 / (GRAPH.n_edges - 3))  # m0->logits above all three
    with pytest.raises(UnknownName):
        against_truth(scores, TRUTH, ablation="resample", by="size")


def test_nodes_score_as_their_best_edge():
    scores = np.full(GRAPH.edge_mask.shape, np.nan)
    scores[GRAPH.edge_mask] = np.random.default_rng(0).normal(size=GRAPH.n_edges)
    nodes = against_truth(scores, TRUTH, ablation="resample").nodes
    assert list(nodes.names) == ["a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    for name, score, is_true in zip(nodes.names, nodes.scores, nodes.is_true, strict=True):
        own = [edge for edge in EDGES if name in (edge.split("->")[0], edge.split("->")[1].split("<")[0])]
        assert score == max(abs(scores[GRAPH.parse_edge(edge)]) for edge in own)
        assert is_true == (name in ("a0.h1", "a1.h0"))


def test_a_circuit_is_read_as_it_is():
    circuit = Circuit.from_edges(GRAPH, [TRUE[0], "m0->logits"])
    found = against_truth(circuit, TRUTH, ablation="resample")
    edges = found.edges
    assert not found.scored
    assert (edges.precision, edges.recall, edges.f1) == (1 / 2, 1 / 3, 2 / 5)
    n_false = GRAPH.n_edges - 3
    assert edges.auroc == pytest.approx((1 + 1 / 3 - 1 / n_false) / 2)  # one point between the ends
    assert (found.nodes.precision, found.nodes.recall) == (1 / 2, 1 / 2)  # a0.h1 and m0 against a0.h1 and a1.h0
    nothing = against_truth(Circuit.empty(GRAPH), TRUTH, ablation="resample")
    assert (nothing.edges.precision, nothing.edges.recall, nothing.edges.auroc) == (None, 0, 0.5)
    perfect = against_truth(TRUTH.circuit("zero"), TRUTH, ablation="zero")
    assert all((row["AUROC"], row["F1"]) == (1, 1) for row in perfect.table())


def test_a_truth_belongs_to_one_ablation():
    circuit = Circuit.from_edges(GRAPH, TRUE)
    zero = circuit.with_provenance(Provenance(ablation=Ablation("zero").to_dict()))
    assert against_truth(zero, TRUTH).edges.recall == 3 / 4
    assert against_truth(Discovery(zero, scores_of(dict.fromkeys(TRUE, -1.0))), TRUTH).ablation == "zero"
    assert not against_truth(Discovery(zero), TRUTH).scored
    with pytest.raises(BadSetting, match="says nothing of mean"):
        against_truth(circuit.with_provenance(Provenance(ablation=Ablation("mean").to_dict())), TRUTH)
    with pytest.raises(BadSetting, match="none is known here"):
        against_truth(circuit, TRUTH)
    with pytest.raises(UnknownName):
        against_truth(circuit, TRUTH, ablation="resampel")
    per_position = Truth(GRAPH, {Ablation("mean", scope="position").label: frozenset(TRUE)})  # pyright: ignore[reportArgumentType] - sets are taken, too
    assert per_position.edges == {"mean (per position)": tuple(sorted(TRUE, key=EDGES.index))}
    assert per_position.circuit(Ablation("mean", scope="position")).n_edges == 3
    with pytest.raises(BadSetting):
        per_position.circuit("mean")


def test_a_truth_survives_its_file(tmp_path):
    path = tmp_path / "truth.json"
    TRUTH.save(path)
    assert Truth.load(path) == TRUTH
    data = json.loads(path.read_text())
    for broken in ({**data, "format": "circuit"}, {**data, "edges": {"zero": ["m9->logits"]}}, {**data, "graph": 3}, []):
        path.write_text(json.dumps(broken))
        with pytest.raises(BadFile, match=r"truth\.json"):
            Truth.load(path)


def test_what_does_not_fit_is_refused():
    with pytest.raises(GraphMismatch):
        Truth(GRAPH, {"zero": ("m0->a0.h0<q>",)})
    with pytest.raises(UnknownName):
        Truth(GRAPH, {"noise": TRUE})
    with pytest.raises(GraphMismatch):
        against_truth(Circuit.empty(ComputationGraph(1, 1)), TRUTH, ablation="zero")
    with pytest.raises(BadSetting, match="not finite"):
        against_truth(np.full(GRAPH.edge_mask.shape, np.nan), TRUTH, ablation="zero")
    with pytest.raises(BadSetting, match="do not fit"):
        against_truth(np.zeros((2, 2)), TRUTH, ablation="zero")


def test_the_result_is_plain():
    whole = replace(TRUTH, edges={"zero": tuple(EDGES)})
    for truth in (TRUTH, whole):
        plain = json.loads(
            json.dumps(against_truth(scores_of({TRUE[0]: 1.0}), truth, ablation="zero").to_dict(), allow_nan=False)
        )
        assert [row["of"] for row in plain["table"]] == ["edges", "nodes"]
    assert plain["table"][0]["AUROC"] is None
    assert set(plain["roc"]["edges"]["fpr"]) == {None}
