"""The drawings hold what the circuit holds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_pages import RANDOM, SMALL, USUAL, made_up_score, made_up_scores, random_circuit, written

from circuitdisc.circuit import Circuit
from circuitdisc.graph import ComputationGraph, Node
from circuitdisc.pages import draw_circuit
from circuitdisc.pages.drawing import DRAWN_AT_MOST, edges_to_draw, heads_touched, node_hover
from circuitdisc.pages.figures import controls_figure, search_figure
from circuitdisc.pages.layout import Layout

GRAPHS = [
    SMALL,
    ComputationGraph(2, 3, has_mlp=False),
    ComputationGraph(2, 3, parallel=True, split_embeddings=True),
    ComputationGraph(1, 1),
    ComputationGraph(32, 32),
]


def traces(figure: Any) -> list[Any]:
    return list(figure.data)


def hover_texts(circuit: Circuit, **options: Any) -> list[str]:
    return [text for trace in traces(draw_circuit(circuit, **options)) for text in (trace.hovertext or ())]


@pytest.mark.parametrize("graph", GRAPHS, ids=ComputationGraph.describe)
def test_drawing_has_every_edge_and_node_once(graph):
    circuit = random_circuit(graph, min(50, graph.n_edges))
    texts = hover_texts(circuit)
    for name in circuit.edge_names():
        assert texts.count(name.replace(">", "&gt;").replace("<", "&lt;")) == 1
    assert len(texts) == circuit.n_edges + graph.n_senders + 1


@pytest.mark.parametrize("graph", GRAPHS, ids=ComputationGraph.describe)
def test_curves_join_their_nodes(graph):
    layout, circuit = Layout(graph), random_circuit(graph, min(200, graph.n_edges))
    receivers, senders = np.argwhere(circuit.mask).T
    curves = layout.curves(receivers, senders, 9, heads_touched(circuit))
    radius = np.array([layout.radius_x, layout.radius_y]) + 1e-9
    assert (abs(curves[:, 0] - layout.sender_xy[senders]) <= radius).all()
    assert (abs(curves[:, -1] - layout.receiver_xy[receivers]) <= radius).all()
    (left, right), (bottom, top) = layout.x_range, layout.y_range
    assert left - 1 < curves[..., 0].min()
    assert curves[..., 0].max() < right
    assert bottom < curves[..., 1].min()
    assert curves[..., 1].max() < top


def test_an_edge_bends_around_a_head_that_it_passes():
    circuit = Circuit.from_edges(SMALL, ["a0.h2->a3.h2<k>", "a0.h1->a1.h2<k>", "a0.h1->a2.h2<k>"])
    layout = Layout(SMALL)
    edge = [np.array([index]) for index in SMALL.parse_edge("a0.h2->a3.h2<k>")]
    centres = np.array([[2.0, 1.0], [2.0, 2.0]])

    def nearest(curve: np.ndarray) -> float:
        return float(np.hypot(*np.moveaxis((curve[0, :, None] - centres) / [layout.radius_x, layout.radius_y], -1, 0)).min())

    assert nearest(layout.curves(edge[0], edge[1], 61)) < 0.1
    assert nearest(layout.curves(edge[0], edge[1], 61, heads_touched(circuit))) > 1


def test_edges_above_the_limit_are_the_largest_and_it_says_so():
    graph = ComputationGraph(12, 12)
    circuit = Circuit.full(graph)
    scores = np.random.default_rng(0).normal(size=graph.edge_mask.shape)
    drawn = edges_to_draw(circuit, scores)
    shown = np.zeros_like(circuit.mask)
    shown[tuple(drawn.T)] = True
    assert shown.sum() == DRAWN_AT_MOST
    assert abs(scores[shown]).min() >= abs(scores[circuit.mask & ~shown]).max()
    assert len(np.unique(edges_to_draw(circuit), axis=0)) == DRAWN_AT_MOST
    title = draw_circuit(circuit, edge_scores=scores).to_plotly_json()["layout"]["title"]["text"]
    assert "4,000 edges are drawn, those with the largest |score|; 28,491 are left out" in title


def test_node_hover_lists_inputs_and_readers():
    circuit = Circuit.from_edges(SMALL, [*(f"a0.h{h}->a1.h1<q>" for h in range(8)), "input->a1.h1<q>", "a1.h1->logits"])
    text = node_hover(circuit, Node("head", 1, 1))
    assert "q reads 9: input, a0.h0" in text
    assert "…" in text
    assert "k reads nothing" in text
    assert "out into logits, 1: logits" in text


def test_head_circuit_is_a_grid(tmp_path):
    circuit = Circuit.from_heads(SMALL, ["a0.h1", "a3.h7"])
    figure = draw_circuit(circuit)
    assert [trace.name for trace in traces(figure)] == ["kept: 2 heads", "ablated: 30 heads"]
    kept = traces(figure)[0]
    assert list(zip(kept.x, kept.y, strict=True)) == [(1.0, 0.0), (7.0, 3.0)]
    scores = replace(USUAL, circuit_heads=2)
    assert "(2 of 32 heads, 6.2 %)" in written(tmp_path, circuit, scores).words


def test_controls_figure_needs_controls():
    assert controls_figure(made_up_scores(made_up_score("faithfulness", "heldout", 0.9))) is None
    figure = controls_figure(USUAL)
    assert figure is not None
    assert [list(trace.x) for trace in traces(figure)] == [list(RANDOM), [0.97], [1.2], [0.01278]]


@pytest.mark.parametrize(
    ("trace", "n_lines"),
    [
        ([], None),
        ([{"edge": "x"}], None),
        ([{"metric": float("nan")}, {"metric": None}], None),
        ([{"kept": True}, {"kept": False}, {"head": "a0.h0"}], 1),
        ([{"kept": np.True_, "metric": 1.0, "layer": 3}, {"kept": False, "metric": None}, {"metric": "1"}], 4),
        ([{"kept": True, "metric": 0.5}, {"dead": "a1.h1<q>", "edges": 3}], 3),
        ([{"kept": True, "metric": 0.5}] * 2000, 2),
    ],
)
def test_search_figure_takes_any_trace(trace, n_lines):
    figure = search_figure(trace, "logit_diff")
    assert (None if figure is None else len(traces(figure))) == n_lines
