"""Pages in a real browser: they open offline without a complaint, answer, and show strangers' words as text."""

import base64
from typing import Any

import numpy as np
import pytest
from browser import Tab, browser
from made_pages import HOSTILE, SMALL, USUAL, random_circuit

from circuitdisc.graph import ComputationGraph
from circuitdisc.pages import write_report

pytestmark = pytest.mark.slow

NODE = {"adds": 1.25, "low": 1.0, "high": 1.5, "promotes": [HOSTILE], "roles": ["induction"]}
TOKENS = ["When", " Mary", " and", " John", " met", HOSTILE, " gave"]


@pytest.fixture(scope="module")
def opened():
    with browser() as running:
        yield running


def made_up_exploration(circuit: Any, tokens: list[str] = TOKENS) -> dict[str, Any]:
    """As explorer.json has it, with numbers that a test can find again."""
    n, size = 2, len(tokens)
    pattern = np.zeros((size, size), dtype=np.uint8)
    pattern[-1, 1] = 255  # the last token attends to " Mary" alone
    text = base64.b64encode(pattern.tobytes()).decode()
    answers = [{"token": " Mary", "probability": 0.75}, {"token": HOSTILE, "probability": 0.25}]
    example = {"tokens": tokens, "answers": [" Mary"], "wrong": [" John"], "full": answers, "circuit": answers}
    example |= {"full_value": 3.0, "circuit_value": 2.5, "roles": {"end": size - 1}}
    edges = circuit.edge_names()
    return {
        "format": "circuitdisc.explored", "version": 1, "metric": "logit_diff", "ablation": "resample", "n": n,
        "examples": [example | {"rank": rank} for rank in range(n)],
        "nodes": dict.fromkeys(circuit.nodes(), NODE),
        "patterned": [0, 1], "patterns": {name: [text, text] for name in circuit.heads()},
        "positions": ["end"], "attends": {name: [[0.5]] for name in circuit.heads()},
        "edges": {
            "examples": n, "estimated": dict.fromkeys(edges, -0.5), "estimates": {},
            "exact": {edges[0]: [-1.0, -3.0]}, "means": {edges[0]: [-2.0, -3.0, -1.0]},
        },
        "has_wrong": True, "cost": 10.0, "notes": [],
    }  # fmt: skip


def report(folder: Any, n: int = 40, graph: ComputationGraph = SMALL, **options: Any) -> tuple[Any, Any]:
    circuit = random_circuit(graph, n)
    scores = np.random.default_rng(0).normal(size=graph.edge_mask.shape)
    options = {"run": {}, "edge_scores": scores, "explored": made_up_exploration(circuit)} | options
    return circuit, write_report(folder / "report.html", circuit=circuit, scores=USUAL, **options)


def test_a_run_opens_offline_without_a_complaint(opened, tmp_path):
    _, path = report(tmp_path)
    tab = Tab(opened, path)
    assert tab.complaints == []
    assert tab.requests == []


def test_slider_and_kinds_filter(opened, tmp_path):
    circuit, path = report(tmp_path)
    tab = Tab(opened, path)
    shown = "explorer.view.edges.length"
    assert tab.of_explorer(shown) == circuit.n_edges
    tab.page.eval_on_selector(".ex-size", "slider => { slider.value = 500; slider.dispatchEvent(new Event('input')); }")
    assert tab.of_explorer(shown) == round(circuit.n_edges**0.5)
    scores = np.abs(np.random.default_rng(0).normal(size=SMALL.edge_mask.shape)[circuit.mask])
    smallest = tab.of_explorer("Math.min(...explorer.view.edges.map(edge => Math.abs(edge.score)))")
    assert smallest == pytest.approx(np.sort(scores)[-round(circuit.n_edges**0.5)], rel=1e-3)
    tab.page.eval_on_selector(".ex-size", "slider => { slider.value = 1000; slider.dispatchEvent(new Event('input')); }")
    tab.page.uncheck("input[value=q]")
    assert tab.of_explorer(shown) == sum("<q>" not in name for name in circuit.edge_names())


def test_a_click_on_a_node_shows_its_pattern_over_the_tokens(opened, tmp_path):
    circuit, path = report(tmp_path)
    tab = Tab(opened, path)
    head = circuit.heads()[0]
    tab.page.mouse.click(*tab.place(head))
    for words in (head, "induction", "Adds 1.25 [1.00, 1.50] directly to the logit difference", "“gave” attends to “Mary” 100"):
        assert words in tab.panel
    shares = tab.page.eval_on_selector_all(".ex-token", "tokens => tokens.map(token => token.title.split(' ').pop())")
    assert [float(share.removesuffix("%").strip()) for share in shares] == [0, 100, 0, 0, 0, 0, 0]


def test_an_edge_says_what_is_exact_and_what_is_estimated(opened, tmp_path):
    circuit, path = report(tmp_path)
    tab = Tab(opened, path)
    tab.of_explorer("explorer.pick({ edge: explorer.circuit.edges[0] })")
    assert circuit.edge_names()[0] in tab.panel
    assert "Exact: cut alone from the circuit, it changes the mean logit_diff by −2.00 [−3.00, −1.00]" in tab.panel
    assert "Estimated: by its gradient in the full model, a cut changes the mean logit_diff by −0.500" in tab.panel
    tab.of_explorer("explorer.pick({ edge: explorer.circuit.edges[1] })")
    assert "Exact" not in tab.panel


def test_markup_in_prompts_stays_text(opened, tmp_path):
    circuit, path = report(tmp_path, run={"command": HOSTILE}, groups={"groups": {HOSTILE: []}, "pinned": [HOSTILE]})
    tab = Tab(opened, path)
    alerts: list[Any] = []
    tab.page.on("dialog", lambda dialog: alerts.append(dialog.message))
    tab.page.mouse.click(*tab.place(circuit.heads()[0]))
    assert HOSTILE in tab.panel
    assert HOSTILE in tab.page.inner_text("main")
    assert alerts == tab.complaints == []


def test_five_thousand_edges_answer_a_drag_within_100_ms(opened, tmp_path):
    graph = ComputationGraph(30, 9)
    _, path = report(tmp_path, 5000, graph, explored=None)
    tab = Tab(opened, path)
    x, y = tab.place("logits")
    tab.page.mouse.move(x, y + 60)
    tab.page.mouse.down()
    tab.page.evaluate(
        """() => {
          const { view } = document.querySelector("[data-explorer]").explorer;
          const blit = view.blit;
          window.took = [];
          window.addEventListener("pointermove", () => { window.moved ??= performance.now(); }, { capture: true });
          view.blit = function () {
            blit.call(this);
            const since = window.moved;  // the first movement that this drawing answers
            window.moved = undefined;
            if (since) setTimeout(() => window.took.push(performance.now() - since));
          };
        }"""
    )
    for step in range(20):
        tab.page.mouse.move(x + 5 * (step + 1), y + 60 + 3 * step)
    tab.page.mouse.up()
    took = tab.page.evaluate("window.took")
    assert len(took) >= 5
    assert np.median(took) < 100, took
