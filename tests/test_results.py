"""Every result, one common test: through JSON and back, a table with a row for each thing, one readable line, safe HTML."""

import json
import sys
from dataclasses import fields, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import random_examples, random_task
from models import model_of
from test_drift import moved

import circuitdisc as cd
from circuitdisc.certainty.clusters import ClusterCount
from circuitdisc.certainty.general_text import TextDivergence
from circuitdisc.certainty.mixtures import CellOfCluster, Mixtures
from circuitdisc.checkpoints.attention_difference import attention_difference
from circuitdisc.checkpoints.baselines import Baselines, Figure
from circuitdisc.checkpoints.finetune.finetune import TrainedLadder
from circuitdisc.checkpoints.finetune.rungs import Rung
from circuitdisc.checkpoints.transfer.ladder import ladder
from circuitdisc.checkpoints.transfer.matrix import FoundCircuit, Transfer
from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.engine.measuring import mean_intervals
from circuitdisc.errors import BadFile, BadSetting
from circuitdisc.heads.matrices import head_matrices
from circuitdisc.jobs.judge import Judgement
from circuitdisc.jobs.logit_lens import logit_lens
from circuitdisc.results import LONGEST, Result, Shown, _by_example, _keys, html_table, plain
from circuitdisc.scoring.agreement import agreement
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.comparison import Comparison, Crossing, Side
from circuitdisc.scoring.interchange_result import InterchangeScores, VariableScore
from circuitdisc.tasks.desiderata import of_task

LAYERS, HEADS, N = 3, 4, 6
SCORED_ON_A_SPLIT = 9
SCORED = 2 * SCORED_ON_A_SPLIT
QUICK: dict[str, Any] = {"penalties": 0.1, "epochs": 1, "n_random": 2}
NASTY = "<script>alert('&')</script>"


@cache
def model():
    return model_of("gpt2")


@cache
def task():
    return replace(random_task(model(), N), metric="logit_diff")


@cache
def one_reading():
    examples = [replace(one, positions=one.positions[:1], answers=one.answers[:1], wrong=one.wrong[:1])
                for one in random_examples(model(), 2 * N)]  # fmt: skip
    return replace(task(), train=tuple(examples[:N]), heldout=tuple(examples[N:]))


@cache
def made() -> dict[str, Any]:
    """A result of every kind, by the name of its class; those inside one come with it."""
    ours = (model(), moved(model(), 1, 2))
    circuits = {name: Circuit.from_heads(model().graph, heads) for name, heads in {"a": ["a0.h1"], "b": ["a1.h2"]}.items()}
    rows = tuple(FoundCircuit(name, "own", (name,), circuit) for name, circuit in circuits.items())
    score = Score("accuracy", "heldout", "mean", "accuracy", N, 0.5, 0.4, 0.6)
    cells = {(row, column): (score,) for row in circuits for column in circuits}
    figure = Figure("a", "held-out", "accuracy", 0.5, 0.4, 0.6, N)
    results = [
        cd.heads.head_effects(model(), task()),
        cd.heads.knockout_curve(model(), task(), n_random=2),
        cd.heads.logit_attribution(model(), task()),
        cd.heads.attention_to(model(), task()),
        cd.heads.head_roles(model(), task()),
        cd.heads.neuron_analysis(model(), task(), n_random=1, sizes=[2], top=3),
        cd.dcm(model(), of_task(one_reading()), groups={"first": ["a0.h0"]}, **QUICK),
        cd.localised(model(), one_reading(), ["a1.h1"], epochs=1, n_random=1),
        cd.drift(ours, task()),
        attention_difference(*ours, task()),
        logit_lens(model(), task()),
        cd.check_tasks(model(), ["induction", "tpp"], n=4),
        cd.plan(model(), task(), "eap_ig", allow_chance=True, measure=0, ablation="resample", ranks=2),
        cd.cmap(*ours, task(), n_random=2, groups={"first": ["a0.h0"]}, what="output"),
        Baselines(("a", "b"), "ioi", {"held-out": "its held-out examples"}, (figure, replace(figure, checkpoint="b"))),
        TrainedLadder(Path("out"), "base", (Rung("10pct", 0.1, 3),)),
        head_matrices(model_of("attention_only")),
        Transfer(("a", "b"), rows, cells, ladder(circuits), "accuracy", "mean"),
        Provenance("gpt2", "ioi", {"kind": "mean"}, seed=1, notes=("a note",)),
        *of_a_circuit(circuits["a"], circuits["b"]),
    ]
    found: dict[str, Any] = {}
    for result in results:
        collect(result, found)
    return found


def mixture() -> Mixtures:
    """Two clusters, whose circuits are no better on their own."""
    cells = tuple(CellOfCluster(circuit, cluster, 0.5, None, None, 3) for circuit in range(3) for cluster in (1, 2))
    counts = (ClusterCount(2, 0.5, 0.3, 0.005, 1.0, 3, True), ClusterCount(3, 0.2, None, None, 0.4, 1, False))
    sizes = ((3, 3), (3, 3), (("a prompt",), (NASTY,)), ({"a": 3}, {}))
    about = ("edge", "logit_diff", 0.8, "eap", (9, 9, 9), cells, 0.0, (0.1, -0.1), 2 / 3, 0.4, 0.5, N, N)
    return Mixtures(counts, *sizes, *about, "logit_diff", "mean", 0.95, "", {"scores": 9.0, "own search": None}, 1.0)


def of_a_circuit(circuit: Circuit, other: Circuit) -> list[Any]:
    """Every score of one circuit, and what compares it with others."""
    given: dict[str, Any] = {"ablation": "mean"}
    about = (model(), task(), circuit)
    scores = cd.score(*about, n_random=3, **given)
    results = {
        "completeness": cd.completeness(*about, n_random=2, greedy_size=1, n_controls=1, **given),
        "minimality": cd.minimality(*about, n_random=1, greedy_size=0, **given),
        "tests": cd.hypothesis_tests(*about, n_random=4, n_permutations=9, **given),
        "curve": cd.curve(model(), task(), discovery("eap"), n_random=1, ablation="resample"),
        "agreement": agreement(*about, n_random=2, **given),
        "minimality_of_edges": None,
    }
    ours, theirs = (Side("runs/a", "gpt2", "ioi", "eap", one) for one in (circuit, other))
    effect = cd.intervene(model(), task(), [cd.Intervention("a0.h1", 0.0)], n_random=1)
    truth = cd.Truth(model().graph, {"mean": circuit.edge_names()}, "a truth")
    return [
        Judgement(scores, results, {"a score": "it cannot be had"}, circuit),
        cd.stability(model(), task(), "eap", n_bootstrap=2, edges=20, allow_chance=True, **given),
        cd.rivals(model(), task(), discovery("eap").circuit, "eap", n=2, n_random=2, edge_scores=discovery("eap").edge_scores),
        cd.specificity(*about, n_random=2, **given),
        TextDivergence(2, 9, "zero", 6.1, 0.1, 12.2, 0.95, 6.1, (6.0,), 7.0, "a text"),
        cd.certify(model(), task(), "eap", n=3, edges=20, allow_chance=True, **given),
        cd.backups(*about, n_judged=1, n_random=1, **given),
        cd.positions(*about, start="graph", keep=0.2, prune_first=None, n_random=1, others={"it": about[:2]}, **given),
        mixture(),
        cd.against_truth(circuit, truth, **given),
        InterchangeScores("gpt2", "adder", (VariableScore("sum", ("a0.h1",), N, 0, 0.5, 0.4, 0.6, 2, 0.5),)),
        Comparison({"A": ours, "B": theirs}, cd.overlap(circuit, other), (Crossing("A", "B", scores),), {"A": (effect,)}),
    ]


def collect(value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, Result):
        found.setdefault(type(value).__name__, value)
        value = [getattr(value, one.name) for one in fields(value)]  # pyright: ignore[reportArgumentType]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        collect(inner, found)


def kinds(base: type = Result) -> set[str]:
    """Every result class of the modules that were imported that is a dataclass."""
    below = base.__subclasses__()
    own = {one.__name__ for one in below if one.__module__.startswith("circuitdisc.") and "__dataclass_fields__" in vars(one)}
    return own.union(*(kinds(one) for one in below)) if below else own


NAMES = sorted(
    {
        "Agreement", "AttentionDifference", "AttentionTo", "Backups", "Baselines", "CellOfCluster", "Certificate",
        "CircuitOnTask", "ClusterCount", "Comparison", "Completeness", "CrossMap", "CrossModel", "Crossing", "Curve",
        "Dcm", "Drift", "EditEffect", "Effect", "Fit", "FoundCircuit", "FoundMask", "GroupMet", "GroupScore",
        "Growth", "HeadEffects", "HeadMatrices", "HeadRoles", "HypothesisTest", "HypothesisTests",
        "InterchangeScores", "JudgedPair", "JudgedSize", "Judgement", "KnockoutCurve", "Ladder", "Likeness", "Localised",
        "LogitAttribution", "LogitLens", "MaskTrial", "MemberTests", "Minimality", "Mixtures", "NeuronAnalysis",
        "NeuronImportance", "NeuronTable", "OnCheckpoint", "Overlap", "Pair", "PlannedPart", "Positions", "Provenance",
        "RanksPlan", "Rival",
        "Rivals", "RunPlan", "Rung", "Score", "Scored", "Scores", "Side", "Specificity", "Stability", "TaskCheck",
        "TaskChecks", "TextDivergence", "TopAgreement", "TrainedLadder", "Transfer", "TruthScores", "UnitMap",
        "VariableScore", "WorstCases",
    }
)  # fmt: skip


def test_every_result_of_the_package_is_tested():
    for name in cd.__all__:  # brings in the modules
        getattr(cd, name)
    assert kinds() == set(NAMES) == set(made())


def has_result(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, Result) or any(has_result(one) for one in inner)


@pytest.mark.parametrize("name", NAMES)
def test_through_json_and_back(name):
    result = made()[name]
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    in_file = [own for own in _keys(type(result)).values() if own not in _by_example(type(result))]
    own = {one.name: getattr(result, one.name) for one in fields(result)}
    more = {key: value for key, value in own.items() if key not in in_file or has_result(value) or key == "overlaps"}
    more |= {"circuit": result.circuit} if name == "Judgement" else {}  # whose notes belong to the verdict
    again = type(result).from_dict(data, **more)
    assert again.to_dict() == result.to_dict()
    assert type(again) is type(result)
    left_out = [key for key in more if key not in in_file]
    if left_out:
        with pytest.raises(BadFile, match=f"holds no '{left_out[0]}' of it"):
            type(result).from_dict(data)


@pytest.mark.parametrize("name", NAMES)
def test_one_line_and_html_that_is_only_text(name):
    result = made()[name]
    assert "\n" not in repr(result)
    assert len(repr(result)) < 200
    assert repr(result).startswith(f"{name}(")
    tags = tags_of(result._repr_html_())
    assert set(tags) <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_has_the_rows_of_the_table(name):
    pytest.importorskip("pandas")
    result = made()[name]
    rows = result._rows()
    assert len(result.to_frame()) == len(rows) >= 1
    assert list(result.to_frame().columns) == list(dict.fromkeys(key for row in rows for key in row))
    json.dumps(plain(rows), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "n"),
    [("HeadEffects", LAYERS * HEADS), ("AttentionTo", LAYERS * HEADS), ("HeadRoles", LAYERS * HEADS), ("Drift", LAYERS * HEADS),
     ("AttentionDifference", LAYERS * HEADS), ("CrossModel", LAYERS * HEADS), ("Transfer", 4), ("Baselines", 2), ("Dcm", 1),
     ("Scores", SCORED), ("Judgement", SCORED + 6), ("Comparison", SCORED), ("Completeness", 4), ("Minimality", 1),
     ("HypothesisTests", 5), ("Curve", 10), ("TruthScores", 2), ("Stability", 2), ("Overlap", 1),
     ("LogitAttribution", 1 + 1 + LAYERS * (HEADS + 2)), ("Localised", 2), ("NeuronAnalysis", 3)],
)  # fmt: skip
def test_a_row_is_what_the_class_says(name, n):
    assert abs(len(made()[name]._rows()) - n) <= (2 if name == "LogitAttribution" else 0)


@pytest.mark.parametrize(
    "name", ["HeadEffects", "KnockoutCurve", "AttentionTo", "LogitAttribution", "AttentionDifference", "Drift"]
)
def test_a_file_has_the_means_of_what_is_kept_for_each_example(name):
    result = made()[name]
    data, arrays = result.to_dict(), result.arrays()
    assert data["n"] == result.n == N
    for key, own in _keys(type(result)).items():
        if own in _by_example(type(result)):
            assert np.allclose(data[key], arrays[own].mean(-1), atol=1e-12)
    if "mean" in data:
        assert np.allclose(data["mean"], [np.mean(one) for one in arrays["values"].reshape(-1, N)] if name == "KnockoutCurve"
                           else arrays["values"].mean(-1))  # fmt: skip
    if name == "HeadEffects":
        low, high = mean_intervals(result.values, result.over)
        assert np.array_equal(low, result.low)
        assert np.array_equal(high, result.high)


def test_a_frame_of_scores_has_what_a_number_needs():
    pytest.importorskip("pandas")
    scores = made()["Scores"]
    frame = scores.to_frame()
    assert frame["split"].tolist() == ["heldout"] * SCORED_ON_A_SPLIT + ["train"] * SCORED_ON_A_SPLIT
    own = scores.get("faithfulness")
    row = frame[(frame["score"] == "faithfulness") & (frame["split"] == "heldout")].iloc[0]
    assert (row["value"], row["low"], row["high"], row["n"]) == (own.value, own.low, own.high, N)
    assert (row["metric"], row["ablation"], row["random circuits"]) == (own.metric, own.ablation, len(own.controls))
    assert row["random"] == np.median(own.controls)
    assert (row["random low"], row["random high"]) == (min(own.controls), max(own.controls))
    judged = made()["Judgement"].to_frame()
    cpr = judged[judged["of"] == "curve.cpr"].iloc[0]
    assert cpr["value"] == made()["Curve"].cpr.value


@pytest.mark.parametrize(
    "name", ["Scores", "Completeness", "Minimality", "HypothesisTests", "Curve", "TopAgreement", "InterchangeScores", "Overlap"]
)
def test_a_score_is_read_back_from_its_file_alone(name):
    result = made()[name]
    again = type(result).from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.to_dict() == result.to_dict()
    assert again._rows() == result._rows()


def test_a_judgement_is_read_back_from_its_file_alone():
    result = made()["Judgement"]
    again = Judgement.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.table() == result.table()
    assert again.results.keys() == result.results.keys()
    with pytest.raises(BadFile, match=r"not a judgement: format is .circuitdisc\.scores"):
        Judgement.from_dict(result.scores.to_dict())


def test_a_file_of_something_else_is_refused():
    data = made()["Baselines"].to_dict()
    with pytest.raises(BadFile, match="format"):
        Baselines.from_dict({**data, "format": "circuitdisc.drift"})
    with pytest.raises(BadFile, match="version"):
        Baselines.from_dict({**data, "version": 2})
    with pytest.raises(BadFile, match="'confidence' is 'high'"):
        Baselines.from_dict({**data, "confidence": "high"})
    with pytest.raises(BadFile, match="'task' is missing"):
        Baselines.from_dict({key: value for key, value in data.items() if key != "task"})


# --- circuits and discoveries ---------------------------------------------------------------------------------------------


@cache
def discovery(algorithm: str):
    settings: dict[str, Any] = {"edges": 20} if algorithm == "eap" else {"threshold": 0.01}
    return cd.discover(model(), task(), algorithm, ablation="resample", allow_chance=True, **settings)


@pytest.mark.parametrize("algorithm", ["eap", "head_ablation"])
def test_a_discovery_and_its_circuit_show_themselves(algorithm):
    found = discovery(algorithm)
    graph, circuit = found.circuit.graph, found.circuit
    rows = found.table()
    assert len(circuit.table()) == circuit.n_edges
    assert [row["edge"] for row in circuit.table()] == circuit.edge_names()
    if found.edge_scores is not None:
        assert len(rows) == graph.n_edges
        assert {row["edge"] for row in rows if row["kept"]} == set(circuit.edge_names())
        sizes = [abs(row["score"]) for row in rows]
        assert sizes == sorted(sizes, reverse=True)
        assert all(row["score"] == found.edge_scores[graph.parse_edge(row["edge"])] for row in rows)
    else:
        assert rows == circuit.table()
    for thing in (found, circuit):
        page = thing._repr_html_()
        assert repr(thing).split("(")[0] in page
        assert page.count("<tr>") == 1 + min(20, len(thing.table()))


def test_what_is_shown_is_escaped():
    named = Circuit.full(model().graph).with_provenance(Provenance(NASTY, NASTY, algorithm="eap"))
    for page in (named._repr_html_(), html_table([{NASTY: NASTY}]), replace(made()["Baselines"], task=NASTY)._repr_html_()):
        assert "<script" not in page
        assert "&lt;script&gt;" in page


def test_a_search_knows_its_seconds_from_whoever_called_it():
    assert discovery("eap").cost.seconds > 0


def test_without_pandas_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadSetting, match="pip install pandas"):
        made()["HeadEffects"].to_frame()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def tags_of(page: str) -> list[str]:
    parser = Tags()
    parser.feed(page)
    return parser.tags


def test_a_long_line_is_shortened():
    long = replace(made()["Provenance"], model="m" * 500)
    assert len(repr(long)) <= LONGEST
    assert isinstance(long, Shown)
