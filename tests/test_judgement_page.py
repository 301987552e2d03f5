"""The judgement on a run's page says what judgement.json says; a page without one says how to get it."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pages import HOSTILE, Page

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.controls import random_circuits
from circuitdisc.jobs.job import Call
from circuitdisc.jobs.pipeline import write_page
from circuitdisc.jobs.registry import REGISTRY
from circuitdisc.pages.scores import judgement_parts
from circuitdisc.pages.scores.base import named
from circuitdisc.pages.scores.completeness import completeness_figure
from circuitdisc.pages.scores.curve import size_figure
from circuitdisc.pages.scores.hypotheses import reading
from circuitdisc.pages.scores.minimality import BARS_AT_MOST, minimality_figure
from circuitdisc.pages.stability import stability_part, stability_verdict
from circuitdisc.pages.tables import accuracy_table
from circuitdisc.scoring.base import Scores
from circuitdisc.scoring.faithfulness import faithfulness_scores
from circuitdisc.scoring.stability import by_chance
from circuitdisc.shipped import shipped_models
from circuitdisc.wording import number, percent

COMMON = ["model=toys/induction", "task=induction", "task.n=12", "task.n_heldout=16", "ablation=resample", "progress=false"]
METRICS: tuple[str, ...] = ("logit_diff", "kl", "accuracy")
SETTINGS = [*COMMON, "algorithm=eap", "algorithm.edges=8", "scoring.n_random=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every score, as the command leaves it."""
    folder = tmp_path_factory.mktemp("page") / "run"
    assert main(["discover", *SETTINGS, f"out={folder}"]) == 0
    before = (folder / "report.html").read_text("utf-8")
    assert main(["score", str(folder), "--all"]) == 0
    assert main(["stability", str(folder), "n_samples=4", "progress=false"]) == 0
    return folder, Page(before), Page((folder / "report.html").read_text("utf-8"))


def judgement_of(run) -> dict[str, Any]:
    return json.loads((run[0] / "judgement.json").read_text())


def test_a_page_without_a_judgement_says_which_command_adds_it(run):
    folder, before, _ = run
    assert f"circuitdisc score {folder} --all" in before.words
    assert f"circuitdisc stability {folder}" in before.words
    assert "plot-completeness" not in before.figures


def test_the_command_writes_the_page_again_and_says_where(run, capsys):
    folder, _, page = run
    assert {"plot-completeness", "plot-minimality", "plot-sizes", "plot-stability"} <= set(page.figures)
    assert main(["report", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    assert Page((folder / "report.html").read_text("utf-8")).words == page.words


def test_the_page_says_what_the_judgement_says(run):
    found, page = judgement_of(run), run[2]
    for line in found["verdict"]:
        assert line.replace("-", "−") in page.words.replace("-", "−")
    worst = found["completeness"]["worst"]
    assert f"The largest gap is {number(worst['value'])}" in page.words
    for chance in found["completeness"]["controls"]:
        assert number(chance["mean"]) in page.words
    assert f"{found['minimality']['n_passed']} of {len(found['minimality']['needs'])} nodes" in page.words
    edges = found["minimality_of_edges"]
    assert f"{edges['n_passed']} of {len(edges['needs'])} edges" in page.words
    assert "plot-minimality_edges" in page.figures
    for area in ("cpr", "cmd", "overshoot"):
        assert number(found["curve"][area]["value"]) in page.words
    for test in found["tests"]["tests"]:
        assert f"{test['n']:,} {reading(test)}" in page.words


def test_every_part_names_examples_split_metric_and_ablation(run):
    found, page = judgement_of(run), run[2]
    usual = "On 16 held-out examples; metric logit_diff; cut edges carry resample"
    for part in judgement_parts(found):
        words = usual.replace("logit_diff", "agreement") if part.title == "Agreement" else usual
        assert part.of.startswith(words), part.title
        assert words in part.caption or all(words in caption for *_, caption in part.figures)
    assert page.words.count(usual) >= 5


def test_the_completeness_figure_holds_every_set(run):
    found = judgement_of(run)["completeness"]
    traces = {trace["name"]: trace for trace in completeness_figure(found).to_plotly_json()["data"]}
    for kind in ("empty", "random", "greedy"):
        gaps = [gap for gap in found["gaps"] if gap["kind"] == kind]
        assert list(traces[f"K is {kind}"]["x"]) == [gap["full"] for gap in gaps]
        assert list(traces[f"K is {kind}"]["y"]) == [gap["circuit"] for gap in gaps]
    random = [gap["value"] for gap in found["gaps"] if gap["kind"] == "random"]
    assert list(traces["this circuit"]["y"]) == pytest.approx([np.mean(random), max(random)])
    assert list(traces["random circuits"]["y"]) == [one["worst"] for one in found["controls"]]


def need(part: str, share: float) -> dict[str, Any]:
    change = {"before": 0.0, "after": 20 * share, "change": 20 * share, "low": 19 * share, "high": 21 * share}
    return {"part": part, "kind": "empty", "removed": [], "share": share, "passes": share >= 0.01, **change}


def test_the_least_needed_parts_come_first_and_those_that_fail_are_named(run):
    shares = np.linspace(0.3, 0.0, BARS_AT_MOST + 5)
    found = judgement_of(run)
    found["minimality"] |= {"needs": [need(f"a0.h{i}", float(x)) for i, x in enumerate(shares)], "full": -20.0}
    figure = minimality_figure(found["minimality"]).to_plotly_json()
    bars = {trace["name"]: trace for trace in figure["data"] if trace["type"] == "bar"}
    assert list(bars["below the threshold"]["y"]) == [f"a0.h{BARS_AT_MOST + 4 - k}" for k in range(2)]
    assert sum(len(trace["y"]) for trace in bars.values()) == BARS_AT_MOST
    assert bars["needed"]["error_x"]["array"][0] == pytest.approx(bars["needed"]["x"][0] / 20)
    part = next(part for part in judgement_parts(found) if part.title == "Minimality")
    assert "Those that do not: a0.h44, a0.h43." in part.lines
    assert f"The {BARS_AT_MOST} least needed of {len(shares)}" in part.figures[0][3]


def test_the_shaded_area_is_the_cpr(run):
    found = judgement_of(run)["curve"]
    figure = size_figure(found)
    assert figure is not None
    drawn: Any = figure.data
    area = next(trace for trace in drawn if str(trace.name).startswith("CPR"))
    x, y = np.array(area.x), np.array(area.y)
    shoelace = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert shoelace == pytest.approx(found["cpr"]["value"], abs=1e-9)
    found["points"] = [{**point, "faithfulness": None} for point in found["points"]]
    assert size_figure(found) is None


def test_scores_that_are_missing_say_why(run):
    found = judgement_of(run) | {"curve": None, "tests": None, "missing": {"curve": "no scores"}}
    parts = {part.title: part for part in judgement_parts(found)}
    assert "no scores" in parts["No curve"].lines[0]
    assert "not computed" in parts["No tests"].lines[0]


def test_names_from_a_file_stay_text(run, tmp_path):
    folder, _, page = run
    found = judgement_of(run)
    found["completeness"]["worst"]["removed"] = [HOSTILE]
    found["completeness"]["gaps"][0] |= {"removed": [HOSTILE], "name": HOSTILE}
    found["minimality"]["needs"][0]["part"] = HOSTILE
    found["verdict"] = [HOSTILE]
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "circuit.json", "scores.json", "journal.jsonl"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "judgement.json").write_text(json.dumps(found))
    hostile = Page(write_page(copy).read_text("utf-8"))
    assert HOSTILE in hostile.words
    names = [attributes.get("data-plot") for tag, attributes in hostile.tags if tag == "script"]
    assert len(names) == sum(tag == "script" for tag, _ in page.tags) - 1, "the same, without stability's figure"
    for figure in hostile.figures.values():
        assert "<script" not in json.dumps(figure)


@pytest.mark.parametrize("text", ["[]", "{}", '{"completeness": {}, "missing": {}}', "{"])
def test_a_file_that_is_no_judgement_is_a_sentence(run, tmp_path, text, capsys):
    folder = run[0]
    for name in ("config.json", "circuit.json", "journal.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "judgement.json").write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    assert "judgement.json" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


# --- stability ------------------------------------------------------------------------------------------------------


def test_stability_of_a_run_is_that_of_its_own_search(run):
    found = json.loads((run[0] / "stability.json").read_text())
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=12, n_heldout=16, seed=0)
    by_hand = cd.stability(model, task, "eap", n_bootstrap=4, ablation="resample", metric="logit_diff", edges=8)
    for kind, one in (("edges", by_hand.edges), ("heads", by_hand.heads)):
        assert found["shares"][kind] == {row["name"]: row["share"] for row in one.table()}
    circuit = cd.Circuit.load(run[0] / "circuit.json")
    part = stability_part(found, circuit)
    always = sum(found["shares"]["edges"].get(edge.name) == 1.0 for edge in circuit.edges())
    assert any(
        f"{always} of this circuit's {circuit.n_edges} edges" in line for line in stability_verdict(found, circuit).lines
    )
    drawn: Any = part.figures[0][1].data
    bars = {trace.name: trace for trace in drawn}
    own = sum(edge.name in found["shares"]["edges"] for edge in circuit.edges())
    assert len(bars[f"edges of this circuit: {own}"].x) == own


def test_likeness_by_chance_is_the_mean_over_pairs_of_random_circuits(run):
    small = cd.Circuit.load(run[0] / "circuit.json")
    assert by_chance(small, 4) == {}  # too few others like it
    mask = small.graph.edge_mask & (np.random.default_rng(0).random(small.mask.shape) < 0.5)
    circuit = cd.Circuit(small.graph, mask)
    controls = random_circuits(circuit, 4, np.random.default_rng(5)).circuits
    drawn = [{edge.name for edge in one.edges()} for one in controls]
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(drawn) for b in drawn[i + 1 :]]
    assert by_chance(circuit, 4, seed=5)["edges"] == pytest.approx(np.mean(pairs))


def test_stability_is_asked_for_a_run_and_knows_its_settings(run, capsys):
    assert main(["stability"]) == 2
    assert main(["stability", str(run[0]), "n_sample=3"]) == 2
    assert "n_samples" in capsys.readouterr().err
    assert main(["stability", "--help"]) == 0
    assert "vary_seed=false" in capsys.readouterr().out


# --- tables ---------------------------------------------------------------------------------------------------------


def test_accuracies_of_model_circuit_and_random_circuits_stand_in_one_table():
    rng = np.random.default_rng(0)
    right = {
        name: (rng.random(50) < p).astype(float) for name, p in (("full", 0.9), ("circuit", 0.6), ("empty", 0.0), ("r", 0.1))
    }
    values = {name: dict.fromkeys(METRICS, row) for name, row in right.items()}
    found = faithfulness_scores(values, ["r"], split="heldout", metric="logit_diff", ablation="zero")
    by_name = {one.name: one for one in found}
    assert by_name["full_accuracy"].value == pytest.approx(right["full"].mean())
    assert by_name["full_accuracy"].controls == ()
    assert by_name["accuracy_ratio"].value == pytest.approx(right["circuit"].mean() / right["full"].mean())
    assert by_name["accuracy_ratio"].controls == (pytest.approx(right["r"].mean() / right["full"].mean()),)
    table = accuracy_table(Scores(1, 2, 1, 2, {}, tuple(found)), "tiny")
    line = next(line for line in table.splitlines() if line.startswith("accuracy  tiny"))
    for which in ("full", "circuit", "r"):
        assert percent(float(right[which].mean())) in line
    assert "50" in line
    assert "zero" in table
    assert accuracy_table(Scores(1, 2, 1, 2)) == ""


def test_an_accuracy_ratio_to_a_model_that_is_always_wrong_is_undefined():
    values = {name: dict.fromkeys(METRICS, np.zeros(5)) for name in ("full", "circuit", "empty")}
    found = faithfulness_scores(values, [], split="heldout", metric="logit_diff", ablation="zero")
    one = next(one for one in found if one.name == "accuracy_ratio")
    assert one.value is None
    assert "accuracy is 0" in one.note


def test_long_lists_are_cut():
    assert named([]) == "nothing"
    assert named(["a", "b", "c"], 2) == "a, b and 1 more"


# --- the page of studies --------------------------------------------------------------------------------------------

STUDIES = Path(cd.__file__).parents[1] / "docs" / "studies.md"


@pytest.mark.parametrize(
    "line", [one.strip() for one in STUDIES.read_text("utf-8").splitlines() if one.startswith("    circuitdisc")]
)
def test_commands_of_the_studies_page_compose(line):
    _, command, *args = shlex.split(line)
    name = f"heads {args.pop(0)}" if command == "heads" else command
    if name == "score":
        assert args[1:] == ["--all"]
        return
    settings = Call(REGISTRY.own[name], tuple(args)).settings
    if name == "discover":
        assert settings["model"]["name"] == "multitask/base"
        return
    assert settings["task"]["n_heldout"] == 500
    assert name != "transfer" or set(settings["checkpoints"]) <= set(shipped_models())


def test_the_studies_page_has_its_commands():
    text = STUDIES.read_text("utf-8")
    names = ("discover", "score", "heads knockout", "transfer")
    assert [text.count(f"    circuitdisc {name} ") for name in names] == [2, 1, 1, 1]
