"""Pages in a real browser: they open offline without a complaint, answer, and show strangers' words as text."""

import base64
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Tab, browser
from made_pages import HOSTILE, SMALL, USUAL, random_circuit

from circuitdisc.circuit import Circuit
from circuitdisc.graph import ComputationGraph
from circuitdisc.pages import write_report
from circuitdisc.pages.explorer import as_json, comparison_data, explorer_script
from circuitdisc.pages.page import render
from circuitdisc.pages.verdict import Verdict

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


def test_every_kind_of_page_opens_offline_without_a_complaint(opened, tmp_path):
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "screenshots.py"))
    for name, path in script["made_pages"](tmp_path):
        tab = Tab(opened, path)
        assert (tab.complaints, tab.requests) == ([], []), name
        assert path.stat().st_size < 1_500_000


@pytest.mark.parametrize("hidden", [False, True])
def test_a_notebook_shows_the_explorer_in_a_frame_of_its_own(opened, tmp_path, hidden):
    """Also where the cell is folded while it loads, so that the frame has no size."""
    circuit = random_circuit(SMALL, 40)
    path = tmp_path / "notebook.html"
    cell = f"<!DOCTYPE html><title>notebook</title><div id=cell {'hidden' if hidden else ''}>{circuit._repr_html_()}</div>"
    path.write_text(cell, encoding="utf-8")
    tab = Tab(opened, path)
    frame = tab.page.wait_for_selector("iframe", state="attached").content_frame()
    frame.wait_for_load_state()
    frame.wait_for_selector("[data-explorer][data-ready]", state="attached")
    tab.page.evaluate("document.getElementById('cell').hidden = false")
    frame.wait_for_selector("canvas")
    explorer = "document.querySelector('[data-explorer]').explorer"
    assert frame.evaluate(f"{explorer}.view.edges.length") == circuit.n_edges
    frame.wait_for_function(f"{explorer}.view.picture.width > 100 && {explorer}.view.transform.k > 0")
    assert (tab.complaints, tab.requests) == ([], [])


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


def test_keys_go_from_node_to_node_and_escape_clears(opened, tmp_path):
    _, path = report(tmp_path)
    tab = Tab(opened, path)
    tab.page.focus(".explorer canvas")
    tab.page.keyboard.press("ArrowUp")
    first = tab.page.inner_text(".ex-panel h3")
    tab.page.keyboard.press("ArrowUp")
    assert tab.page.inner_text(".ex-panel h3") != first
    tab.page.keyboard.press("Escape")
    assert "Choose a node" in tab.panel
    before = tab.of_explorer("explorer.view.transform.k")
    tab.page.keyboard.press("+")
    assert tab.of_explorer("explorer.view.transform.k") > before


def test_a_node_is_found_by_its_name(opened, tmp_path):
    circuit, path = report(tmp_path)
    tab = Tab(opened, path)
    tab.page.fill("input[type=search]", circuit.heads()[-1])
    tab.page.keyboard.press("Enter")
    assert tab.panel.startswith(circuit.heads()[-1])
    tab.page.fill("input[type=search]", "a99.h99")
    tab.page.keyboard.press("Enter")
    assert tab.page.inner_text(".ex-said") == "The circuit has no node a99.h99."


def test_groups_are_named_drawn_saved_and_read(opened, tmp_path):
    circuit, path = report(tmp_path)
    tab, heads = Tab(opened, path), circuit.heads()[:2]
    for head in heads:
        tab.of_explorer(f"explorer.pick({{ node: explorer.circuit.byName.get('{head}') }})")
        tab.page.fill(".ex-panel input[type=text]", "movers")
        tab.page.click("text=Name group")
    tab.page.click(".ex-panel >> text=Pin")
    tab.page.check(".ex-grouped")
    boxes = tab.of_explorer("explorer.scene.nodes.map(node => node.label)")
    assert "movers (2)" in boxes
    between = tab.of_explorer("explorer.scene.edges.reduce((sum, edge) => sum + edge.parts.length, 0)")
    inside = tab.of_explorer("explorer.circuit.edges.length")
    assert 0 < between <= inside
    with tab.page.expect_download() as saved:
        tab.page.click("text=Save groups")
    assert saved.value.suggested_filename == "groups.json"
    kept = json.loads(Path(saved.value.path()).read_text())
    assert kept == {"format": "circuitdisc.groups", "version": 1, "groups": {"movers": heads}, "pinned": [heads[1]]}
    (tmp_path / "groups.json").write_text(json.dumps(kept | {"groups": {"others": [heads[0], "a99.h0"]}}))
    tab.page.set_input_files("input[type=file]", tmp_path / "groups.json")
    tab.page.wait_for_selector(".ex-said >> text=1 group read.")
    assert tab.of_explorer("explorer.state.groups") == {"others": [heads[0]]}
    (tmp_path / "bad.json").write_text("[]")
    tab.page.set_input_files("input[type=file]", tmp_path / "bad.json")
    tab.page.wait_for_selector(".ex-said >> text=The file cannot be used")
    assert tab.complaints == []


def test_circuits_are_compared_along_the_ladder(opened, tmp_path):
    circuits = {HOSTILE: random_circuit(SMALL, 30, 0), "b": random_circuit(SMALL, 30, 1), "c": Circuit.full(SMALL)}
    data = as_json(comparison_data(circuits, label="Three circuits."))
    text = render("heads.html.j2", heading="", subject="", said=Verdict((), ()), sections=[], settings=[])
    place = '<div class="explorer" data-explorer="explorer-x"></div>'
    place += f'<script type="application/json" id="explorer-x">{data}</script>'
    text = text.replace("</main>", f"{place}</main><script>{explorer_script()}</script>")
    (tmp_path / "page.html").write_text(text)
    tab = Tab(opened, tmp_path / "page.html")

    def counted(a: Circuit, b: Circuit) -> str:
        return f"{len(a & b):,} shared, {len(b - a):,} gained, {len(a - b):,} lost"

    first, second, third = circuits.values()
    assert tab.page.inner_text(".ex-counts") == counted(first, second)
    tab.page.eval_on_selector(".ex-step", "slider => { slider.value = 2; slider.dispatchEvent(new Event('input')); }")
    assert tab.page.inner_text(".ex-counts") == counted(second, third)
    tab.page.uncheck("label:has-text('gained') input")
    assert tab.of_explorer("explorer.view.edges.length") == 30
    assert tab.complaints == []


def test_a_phone_scrolls_past_the_drawing(opened, tmp_path):
    _, path = report(tmp_path)
    tab = Tab(opened, path, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.page.eval_on_selector(".explorer canvas", "canvas => canvas.scrollIntoView({ block: 'center' })")
    box, before = tab.page.query_selector(".explorer canvas").bounding_box(), tab.page.evaluate("scrollY")
    tab.page.mouse.move(box["x"] + 100, box["y"] + 100)
    tab.page.mouse.wheel(0, 300)
    tab.page.wait_for_timeout(500)
    assert tab.page.evaluate("scrollY") > before
    touch = tab.page.eval_on_selector(".explorer canvas", "canvas => getComputedStyle(canvas).touchAction")
    assert touch == "pan-x pan-y"


def test_the_page_prints(opened, tmp_path):
    _, path = report(tmp_path)
    tab = Tab(opened, path, color_scheme="dark")
    tab.page.emulate_media(media="print")
    assert not tab.page.is_visible(".ex-tools")
    assert tab.of_explorer("explorer.view.styles.paper") == "#ffffff"
    assert len(tab.page.pdf()) > 10_000
