"""The page is one safe, self-contained file that says what the scores say."""

import ast
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pages import HOSTILE, SMALL, USUAL, Page, made_up_score, made_up_scores, random_circuit, written

from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.errors import BadRun
from circuitdisc.graph import ComputationGraph
from circuitdisc.pages import draw_circuit, report
from circuitdisc.pages import page as page_module
from circuitdisc.pages.explorer import DRAWN_AT_MOST
from circuitdisc.scoring.base import Scores
from circuitdisc.wording import score_value


def test_page_loads_nothing(tmp_path):
    page = written(tmp_path, random_circuit(SMALL, 40))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "base", "object", "form")
        assert not attributes.keys() & {"src", "href", "srcset", "action"}
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count('id="plotly-gz"') == text.count("data-explorer]") == 1
    assert len(text) < 900_000
    assert "@import" not in text.split("</style>")[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_page_is_accessible(tmp_path):
    page = written(tmp_path, random_circuit(SMALL, 40), trace=[{"edge": "input->m0", "kept": True, "metric": 1.0}])
    assert ("html", {"lang": "en"}) in page.tags
    plots = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert {plot["id"] for plot in plots} == set(page.figures) == {"plot-controls", "plot-search"}
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
    for words in (
        "Found by acdc",
        "threshold: 0.0125",
        "kind: mean",
        "torch: 2.6",
        "4 min 14 s",
        "forward passes: 12",
        "Note to self x",
    ):
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
    assert "0 of 1,519 edges" in page.explorers["explorer-circuit"]["label"]
    assert page.figures == {}
    assert 'id="plotly-gz"' not in (tmp_path / "report.html").read_text("utf-8")
    assert "NaN" not in page.words


def test_large_circuits_are_quick_and_capped(tmp_path):
    graph = ComputationGraph(12, 12)
    circuit = random_circuit(graph, 6000)
    started = time.perf_counter()
    page = written(tmp_path, circuit, edge_scores=np.random.default_rng(0).normal(size=graph.edge_mask.shape))
    assert time.perf_counter() - started < 10
    assert "The first 2,000 of 6,000 edges" in page.words
    drawn = page.explorers["explorer-circuit"]
    assert (len(drawn["edges"]), drawn["left_out"]) == (DRAWN_AT_MOST, 1000)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
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
