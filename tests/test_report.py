"""The page is one safe, self-contained file that says what the scores say; the drawings hold what the circuit holds."""

import ast
import json
import re
import time
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.errors import BadRun
from circuitdisc.graph import ComputationGraph, Node
from circuitdisc.pages import draw_circuit, report, scores_table, text_table, write_report
from circuitdisc.pages import page as page_module
from circuitdisc.pages.drawing import DRAWN_AT_MOST, edges_to_draw, heads_touched, node_hover
from circuitdisc.pages.figures import controls_figure, search_figure
from circuitdisc.pages.layout import Layout
from circuitdisc.pages.verdict import verdict
from circuitdisc.scoring.base import Score, Scores
from circuitdisc.wording import duration, number, percent, score_value

SMALL = ComputationGraph(4, 8)
HOSTILE = "<script>alert('x')</script>\"'&"


def random_circuit(graph: ComputationGraph, n: int, seed: int = 0) -> Circuit:
    edges = np.argwhere(graph.edge_mask)
    chosen = edges[np.random.default_rng(seed).choice(len(edges), n, replace=False)]
    mask = np.zeros_like(graph.edge_mask)
    mask[tuple(chosen.T)] = True
    return Circuit(graph, mask, Provenance(model="tiny", task="ioi", algorithm="acdc", metric="logit_diff"))


def made_up_score(name: str, split: str, value: float | None, half: float = 0.02, **fields: Any) -> Score:
    low, high = (None, None) if value is None else (value - half, value + half)
    settings: dict[str, Any] = {"ablation": "resample", "metric": "logit_diff", "n": 1000, "low": low, "high": high}
    return Score(name, split, value=value, **(settings | fields))


def made_up_scores(*rows: Score) -> Scores:
    means = {"heldout": {"full": 3.4121, "circuit": 3.3312, "empty": -0.0123}}
    return Scores(61, 479, 9, 32, means, rows)


RANDOM = (0.01, -0.02, 0.03) + 17 * (0.0,)
USUAL = made_up_scores(
    made_up_score("faithfulness", "train", 0.985, n=100),
    made_up_score("faithfulness", "heldout", 0.97, 0.025, controls=RANDOM),
    made_up_score("kl", "train", 0.01134, 0.001),
    made_up_score("kl", "heldout", 0.01278, 0.001, controls=(1.2, None), note="of the answer's logits"),
    made_up_score("completeness", "heldout", None, note="the full model is at chance"),
)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, visible text, and the figures' specifications."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.figures: dict[str, dict[str, Any]] = {}
        self._inside: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside
        if tag == "script":
            if name := attributes.get("data-plot"):
                self.figures[name] = json.loads(data)
        elif tag != "style":
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.replace("\u00a0", " ").split())


def written(path: Path, circuit: Circuit, scores: Scores | None = USUAL, **options: Any) -> Page:
    options = {"run": {}} | options
    return Page(write_report(path / "report.html", circuit=circuit, scores=scores, **options).read_text("utf-8"))


# --- the page -------------------------------------------------------------------------------------------------------


def test_page_loads_nothing(tmp_path):
    page = written(tmp_path, random_circuit(SMALL, 40))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "base", "object", "form")
        assert not attributes.keys() & {"src", "href", "srcset", "action"}
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count("plotly.js v") == 1
    assert "@import" not in text.split("</style>")[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_page_is_accessible(tmp_path):
    page = written(tmp_path, random_circuit(SMALL, 40), trace=[{"edge": "input->m0", "kept": True, "metric": 1.0}])
    assert ("html", {"lang": "en"}) in page.tags
    plots = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert {plot["id"] for plot in plots} == set(page.figures) == {"plot-circuit", "plot-controls", "plot-search"}
    assert all(plot["aria-label"] for plot in plots)
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)


def test_page_shows_every_score_and_mean(tmp_path):
    page = written(tmp_path, random_circuit(SMALL, 40))
    for score in USUAL.scores:
        assert (score_value(score.name, score.value) if score.value is not None else score.note) in page.words
    assert "undefined: the full model is at chance" in page.words
    assert "median 0 % (−2 % to 3 %) of 20" in page.words
    assert "of 1, 1 undefined" in page.words
    for mean in ("3.41", "3.33", "−0.0123"):
        assert mean in page.words
    assert "NaN" not in page.words
    assert "None" not in page.words


def test_page_shows_settings_and_run(tmp_path):
    provenance = Provenance("tiny", "ioi", {"kind": "mean"}, "logit_diff", "acdc", {"threshold": 0.0125}, 7, {"torch": "2.6"})
    run = {"command": "circuitdisc discover", "seconds": 254.2, "cost": {"forward_passes": 12}, "note_to_self": "x"}
    page = written(tmp_path, random_circuit(SMALL, 40).with_provenance(provenance), run=run)
    for words in ("threshold: 0.0125", "kind: mean", "torch: 2.6", "4 min 14 s", "forward passes: 12", "Note to self x"):
        assert words in page.words


def test_metric_and_ablation_are_always_said(tmp_path):
    kl = made_up_score("kl", "heldout", 0.1, metric="kl")
    page = written(tmp_path, random_circuit(SMALL, 40), made_up_scores(made_up_score("ratio", "heldout", 0.9), kl))
    assert "Metric: logit_diff. Cut edges carry: resample." in page.words
    other = made_up_score("ratio", "heldout", 0.8, metric="prob_diff", ablation="zero")
    page = written(tmp_path, random_circuit(SMALL, 40), made_up_scores(made_up_score("ratio", "heldout", 0.9), kl, other))
    assert "Metric: logit_diff. The circuit" in page.words
    for words in ("ratio resample 90 %", "kl resample 0.100", "ratio prob_diff, zero 80 %"):
        assert words in page.words


def test_model_and_task_may_be_settings(tmp_path):
    run = {"model": {"name": "gpt2", "dtype": "float32"}, "task": {"name": "greater_than", "n": 100}}
    page = written(tmp_path, random_circuit(SMALL, 40), run=run)
    for words in ("Circuit for greater_than in gpt2", "Model settings name: gpt2 dtype: float32", "n: 100"):
        assert words in page.words


def test_hostile_names_stay_text(tmp_path):
    hostile = Provenance(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, HOSTILE, HOSTILE, {"x": HOSTILE}, 0, {HOSTILE: HOSTILE})
    circuit = random_circuit(SMALL, 40).with_provenance(hostile)
    scores = made_up_scores(
        made_up_score("faithfulness", "heldout", 0.9, controls=(0.1,), note=HOSTILE, metric=HOSTILE, ablation=HOSTILE),
        made_up_score(HOSTILE, HOSTILE, 0.5),
        made_up_score(HOSTILE, "heldout", 0.5, controls=(0.1,)),
    )
    trace = [{"edge": HOSTILE, "kept": True, "metric": 1.0, "layer": HOSTILE}]
    harmless = written(tmp_path, random_circuit(SMALL, 40), trace=[{"edge": "x", "kept": True, "metric": 1.0}])
    page = written(tmp_path, circuit, scores, trace=trace, run={"command": HOSTILE, HOSTILE: HOSTILE})
    n_scripts = sum(tag == "script" for tag, _ in harmless.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == n_scripts
    assert f"Circuit for {HOSTILE} in {HOSTILE}" in page.words
    for figure in page.figures.values():  # plotly reads its texts as HTML
        assert "<script" not in json.dumps(figure)
    title = json.dumps(draw_circuit(circuit, title=HOSTILE).to_plotly_json()["layout"]["title"])
    assert "<script" not in title


def test_missing_scores_and_empty_circuit(tmp_path):
    page = written(tmp_path, Circuit.empty(SMALL), None)
    assert "has not been scored" in page.words
    assert "0 of 1,519 edges" in json.dumps(page.figures["plot-circuit"])
    assert set(page.figures) == {"plot-circuit"}
    assert "NaN" not in page.words


def test_large_circuits_are_quick_and_capped(tmp_path):
    graph = ComputationGraph(12, 12)
    circuit = random_circuit(graph, 3000)
    started = time.perf_counter()
    page = written(tmp_path, circuit, edge_scores=np.random.default_rng(0).normal(size=graph.edge_mask.shape))
    assert time.perf_counter() - started < 10
    assert "The first 2,000 of 3,000 edges" in page.words
    assert len(page.figures["plot-circuit"]["data"]) <= 3 * 5 + 2
    assert sum("->" in line for line in page.text.split(" ")) >= page_module.LISTED_AT_MOST


def test_edge_table_is_sorted_by_size_of_score(tmp_path):
    circuit = Circuit.from_edges(SMALL, ["input->m0", "m0->m1", "m0->logits"])
    scores = np.full(SMALL.edge_mask.shape, np.nan)
    scores[SMALL.parse_edge("m0->m1")], scores[SMALL.parse_edge("input->m0")] = -2.5, 1.5
    page = written(tmp_path, circuit, edge_scores=scores)
    assert "m0->m1 mlp −2.50 input->m0 mlp 1.50 m0->logits logits undefined" in page.words


@dataclass
class Cost:
    forward_passes: int = 321


@dataclass
class MadeUpDiscovery:
    circuit: Circuit
    edge_scores: np.ndarray | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    cost: Any = field(default_factory=Cost)


def test_report_writes_a_folder(tmp_path):
    found = MadeUpDiscovery(random_circuit(SMALL, 40))
    path = report(found, USUAL, tmp_path / "new" / "out")
    assert path.name == "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["circuit.json", "report.html", "scores.json"]
    assert Circuit.load(path.with_name("circuit.json")) == found.circuit
    assert Scores.from_dict(json.loads(path.with_name("scores.json").read_text())) == USUAL
    assert "forward passes: 321" in Page(path.read_text("utf-8")).words


def test_report_into_a_file_is_a_sentence(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(BadRun, match="cannot make the folder"):
        report(MadeUpDiscovery(random_circuit(SMALL, 4)), None, tmp_path / "out")


def test_report_does_not_import_torch():
    for file in Path(page_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.split(".")[0] in ("torch", "transformers") for module in modules), file.name


# --- drawings -------------------------------------------------------------------------------------------------------

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


# --- words ----------------------------------------------------------------------------------------------------------


def test_verdict_of_a_good_circuit():
    assert verdict(USUAL).headline == (
        "On 1,000 held-out examples the circuit (61 of 479 edges, 12.7 %) has a faithfulness of 97 % (95 % interval 94.5 % to "
        "99.5 %): its mean logit_diff, 3.33, lies that far from the empty circuit's −0.0123 to the full model's 3.41; of 20 "
        "random circuits of the same size and kind the nearest to 100 % has 3 %."
    )
    assert verdict(USUAL).caveats == ()
    assert "9 of 32 heads" in verdict(USUAL, Circuit.from_heads(SMALL, ["a0.h1"])).headline


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [("heldout", None, {"note": "m(full) = m(empty)"})],
            "is undefined: m(full) = m(empty) (mean logit_diff: full model 3.41, circuit 3.33,",
        ),
        ([("heldout", float("nan"), {})], "is undefined (mean"),
        (
            [("heldout", 1.3, {})],
            "lies that far from the empty circuit's −0.0123 to the full model's 3.41, past the full model",
        ),
        ([("heldout", 1.3, {})], "More than 100 % is no merit"),
        ([("heldout", -0.2, {})], "a faithfulness of −20 %"),
        ([("heldout", -0.2, {})], "the far side of the empty circuit"),
        ([("heldout", 0.01, {})], "The interval reaches 0 %"),
        ([("heldout", 0.5, {})], "not compared with random circuits"),
        (
            [("heldout", 0.5, {"controls": (0.6, 0.1, None)})],
            "1 of 2 random circuits of the same size and kind come at least as near to 100 %: p = 0.667",
        ),
        ([("heldout", 0.5, {"controls": (0.6, 0.1, None)})], "1 random circuits of the same size and kind is undefined"),
        ([("heldout", 0.5, {"controls": (None,)})], "all 1 random circuits of the same size and kind is undefined"),
        (
            [("heldout", 0.6, {}), ("train", 0.98, {})],
            "On the 1,000 search examples the circuit lies nearer to 100 %",
        ),
        (
            [("heldout", 0.98, {}), ("train", 0.6, {})],
            "On the 1,000 search examples the circuit lies farther from 100 %",
        ),
        ([("train", 0.98, {})], "There are no held-out examples"),
        ([("heldout", 0.9, {"low": None})], "No interval"),
    ],
)
def test_verdict_names_every_reason_for_doubt(rows, expected):
    scores = made_up_scores(*(made_up_score("faithfulness", split, value, **more) for split, value, more in rows))
    found = verdict(scores)
    assert expected in " ".join([found.headline, *found.caveats])
    assert "nan" not in found.headline.lower()


def test_verdict_is_silent_about_overlapping_intervals():
    rows = [
        made_up_score("faithfulness", split, value, controls=RANDOM) for split, value in (("train", 0.95), ("heldout", 0.93))
    ]
    assert verdict(made_up_scores(*rows)).caveats == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.399, "3.40"),
        (1234.5, "1,234"),
        (-0.01278, "−0.0128"),
        (1.234e-7, "1.23e−7"),
        (12, "12"),
        (None, "undefined"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.97, "97 %"),
        (0.1273, "12.7 %"),
        (0.0316, "3.2 %"),
        (-0.02, "−2 %"),
        (1, "100 %"),
        (0, "0 %"),
        (float("inf"), "undefined"),
    ],
)
def test_percent(value, text):
    assert percent(value) == text


def test_duration():
    assert [duration(seconds) for seconds in (3.21, 250, 7500)] == ["3.21 s", "4 min 10 s", "2 h 5 min"]


# --- tables ---------------------------------------------------------------------------------------------------------


def test_text_table_aligns():
    assert text_table(["a", "n"], [["long\nname", 1], ["x", 1234]], "lr") == (
        "a             n\n---------  ----\nlong name     1\nx          1234"
    )
    with pytest.raises(ValueError, match="a row has 1 cells"):
        text_table(["a", "b"], [["x"]])


def test_scores_table_has_every_score_and_encodes_anywhere():
    text = scores_table(USUAL)
    text.encode("ascii")
    assert "61 of 479 edges (12.7 %), 9 of 32 heads" in text
    rows = [line for line in text.splitlines() if re.match(r"(faithfulness|kl|completeness) +(train|heldout) ", line)]
    assert len(rows) == len(USUAL.scores)
    assert "97 %" in rows[1]
    assert "0.0128" in rows[3]
    assert "completeness (held-out examples): undefined: the full model is at chance" in text
    assert scores_table(made_up_scores()).startswith("61 of 479")
