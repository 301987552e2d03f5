"""Scores against figures worked out from reference runs; controls, intervals and files against their definitions."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_examples, random_task, some_circuit
from hypothesis import given, settings
from hypothesis import strategies as st
from models import shared
from reference import masked_run
from scipy import stats

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.controls import random_circuits
from circuitdisc.engine.backends import full_run
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import METRICS
from circuitdisc.scoring import Score, Scores, score
from circuitdisc.scoring.faithfulness import UNCLEAR, faithfulness_scores
from circuitdisc.stats import partition
from circuitdisc.tasks.base import Task, collate

GRAPH = ComputationGraph(4, 6)
NAMES = (
    "faithfulness",
    "ratio",
    "difference",
    "kl",
    "accuracy",
    "full_accuracy",
    "accuracy_ratio",
    "pair_accuracy",
    "full_pair_accuracy",
)


def some_heads(graph, seed=0, share=0.5):
    heads = [node.name for node in graph.senders if node.kind == "head"]
    return Circuit.from_heads(graph, [name for name in heads if np.random.default_rng([seed, *name.encode()]).random() < share])


# --- the scores themselves -----------------------------------------------------------------------------------------------


def reference_logits(model, ablation, reference, examples, mask):
    """Logits at every reading, from the masked reference run, as lists of numbers."""
    (chunk,) = Patching(model, ablation, reference).hold(examples)
    return masked_run(model, chunk, mask.copy()).tolist()


def literal_mean(examples, logits, full_logits, metric):
    """The mean over examples of the mean over an example's readings, reading by reading."""
    values, at = [], 0
    for example in examples:
        readings = []
        for right, wrong in zip(example.answers, example.wrong, strict=True):
            row, full = logits[at], log_softmax(full_logits[at])
            if metric == "logit_diff":
                readings.append(sum(row[t] for t in right) / len(right) - sum(row[t] for t in wrong) / len(wrong))
            elif metric == "accuracy":
                readings.append(float(row.index(max(row)) in right))
            elif metric == "pair_accuracy":
                readings.append(float(all(any(row[t] > row[w] for t in right) for w in wrong)))
            else:
                readings.append(-sum(math.exp(f) * (f - q) for f, q in zip(full, log_softmax(row), strict=True)))
            at += 1
        values.append(mean(readings))
    return mean(values)


def log_softmax(row):
    log_total = math.log(sum(math.exp(x) for x in row))
    return [x - log_total for x in row]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize(("family", "whole_heads"), [("gpt2", False), ("attention_only", False), ("attention_only", True)])
def test_scores_equal_the_figures_of_reference_runs(family, whole_heads, kind):
    model, ablation = shared(family), Ablation(kind)
    task = random_task(model, n=4)
    circuit = (some_heads if whole_heads else some_circuit)(model.graph)
    found = score(model, task, circuit, ablation=ablation, n_random=2, seed=5)
    controls = [one.mask for one in random_circuits(circuit, 2, np.random.default_rng(5)).circuits]
    nothing = Circuit.from_heads(model.graph, []) if whole_heads else Circuit.empty(model.graph)

    for split in ("train", "heldout"):
        examples = task.split(split)
        masks = {
            "full": model.graph.edge_mask,
            "circuit": circuit.mask,
            "empty": nothing.mask,
            "0": controls[0],
            "1": controls[1],
        }
        logits = {name: reference_logits(model, ablation, task.train, examples, mask) for name, mask in masks.items()}
        m, kl, right, pairs = (
            {name: literal_mean(examples, rows, logits["full"], metric) for name, rows in logits.items()}
            for metric in ("logit_diff", "kl", "accuracy", "pair_accuracy")
        )
        span = m["full"] - m["empty"]
        wanted = {
            "faithfulness": {name: (m[name] - m["empty"]) / span for name in m},
            "ratio": {name: m[name] / m["full"] for name in m},
            "difference": {name: abs(m["full"] - m[name]) for name in m},
            "kl": {name: -kl[name] for name in m},
            "accuracy": right,
            "pair_accuracy": pairs,
        }
        assert dict(found.means[split]) == pytest.approx({name: m[name] for name in ("full", "circuit", "empty")}, abs=1e-9)
        for name, figures in wanted.items():
            one = found.get(name, split)
            assert one.value == pytest.approx(figures["circuit"], rel=1e-8, abs=1e-9), name
            assert one.controls == pytest.approx([figures["0"], figures["1"]], rel=1e-8, abs=1e-9), name
            assert one.metric == (name if name in ("kl", "accuracy", "pair_accuracy") else "logit_diff")
            assert (one.n, one.ablation, one.confidence) == (4, ablation.label, 0.95)
    assert (found.circuit_edges, found.graph_edges) == (circuit.n_edges, model.graph.n_edges)
    assert (found.circuit_heads, found.graph_heads) == (len(circuit.heads()), model.graph.n_layers * 4)
    assert [(one.split, one.name) for one in found.scores] == [(split, name) for split in found.means for name in NAMES]


def test_the_full_circuit_is_perfect_and_the_empty_one_worthless():
    model = shared("gpt2")
    task = random_task(model)
    best = score(model, task, Circuit.full(model.graph), ablation="mean", n_random=1)
    worst = score(model, task, Circuit.empty(model.graph), ablation="mean", n_random=1)
    for split in ("train", "heldout"):
        assert [best.get(name, split).value for name in NAMES[:4]] == pytest.approx([1, 1, 0, 0], abs=1e-9)
        assert worst.get("faithfulness", split).value == pytest.approx(0, abs=1e-9)


def test_held_out_examples_are_cut_with_the_averages_of_the_train_split():
    """The held-out prompts use other tokens than the train prompts, so their own averages would give other scores."""
    model = shared("gpt2")
    examples = random_examples(model, 8)

    def among(tokens, example):
        clean = tuple(tokens[token % len(tokens)] for token in example.clean)
        return replace(example, clean=clean, corrupted=None)

    task = Task(
        "shifted", tuple(among(range(20), e) for e in examples[:4]), tuple(among(range(20, 40), e) for e in examples[4:])
    )
    circuit = some_circuit(model.graph, share=0.6)
    found = score(model, task, circuit, ablation=Ablation("mean", "dataset"), n_random=0).get("difference")

    def literal(reference):
        """Averages over all tokens of these examples, prompt by prompt, then the reference run with them."""
        rows = []
        for example in reference:
            batch = collate([example])
            rows.append(full_run(model, batch.clean, batch.is_token, batch.position_ids).senders[:, 0])
        average = torch.cat(rows, dim=1).mean(1)
        (chunk,) = Patching(model, Ablation("zero"), []).hold(task.heldout)
        chunk.ablated = average[:, None, None].expand_as(chunk.clean)
        metric, batch = METRICS["logit_diff"], chunk.batch
        values = [
            batch.per_example(metric(masked_run(model, chunk, mask), batch.labels)).mean()
            for mask in (model.graph.edge_mask.copy(), circuit.mask.copy())
        ]
        return float((values[0] - values[1]).abs())

    assert found.value == pytest.approx(literal(task.train), abs=1e-9)
    assert abs(literal(task.train) - literal(task.heldout)) > 1e-3


def test_ablation_and_metric_are_those_the_circuit_was_found_with():
    model = shared("attention_only")
    task = random_task(model)
    circuit = some_circuit(model.graph, share=0.6)
    with pytest.raises(BadSetting, match="under which ablation it was found"):
        score(model, task, circuit, n_random=0)
    assert score(model, task, circuit, ablation="mean", n_random=0).get("ratio").ablation == "mean (per group and position)"
    provenance = Provenance(ablation=Ablation("mean", "position").to_dict(), metric="prob_diff")
    found = score(model, task, circuit.with_provenance(provenance), n_random=0).get("ratio")
    assert (found.ablation, found.metric) == ("mean (per position)", "prob_diff")
    other = score(model, task, circuit.with_provenance(provenance), ablation="zero", metric="log_prob", n_random=0).get("ratio")
    assert (other.ablation, other.metric) == ("zero", "log_prob")


def test_a_split_without_examples_has_no_scores():
    model = shared("attention_only")
    task = random_task(model)
    found = score(model, replace(task, heldout=()), some_circuit(model.graph, share=0.6), ablation="mean", n_random=0)
    assert {one.split for one in found.scores} == {"train"}
    assert found.get("kl", "train").controls == ()
    with pytest.raises(KeyError, match="no score 'kl' on 'heldout'"):
        found.get("kl")


def test_a_circuit_of_another_graph_is_refused():
    model = shared("gpt2")
    with pytest.raises(GraphMismatch, match=r"belongs to a model of 4 layers x 6 heads; gpt2 has 3 layers x 4 heads"):
        score(model, random_task(model), Circuit.full(GRAPH))


@pytest.mark.parametrize("rule", [{"n_random": -1}, {"n_random": 1.5}, {"confidence": 0.0}, {"confidence": 1}])
def test_numbers_out_of_bounds_are_refused(rule: dict[str, Any]):
    model = shared("attention_only")
    settings: Any = {"ablation": "mean"} | rule
    with pytest.raises(BadSetting, match=next(iter(rule))):
        score(model, random_task(model), Circuit.full(model.graph), **settings)


def test_unknown_metrics_and_ablations_are_refused():
    model = shared("attention_only")
    rules: tuple[dict[str, Any], ...] = ({"metric": "logit_dif"}, {"ablation": "means"})
    for rule in rules:
        settings: Any = {"ablation": "mean"} | rule
        with pytest.raises(UnknownName, match="Did you mean"):
            score(model, random_task(model), Circuit.full(model.graph), **settings)


# --- undefined scores ----------------------------------------------------------------------------------------------------


def by_name(full, circuit, empty, **others):
    values = {
        name: {metric: np.array(row, dtype=float) for metric in ("logit_diff", "kl", "accuracy")}
        for name, row in {"full": full, "circuit": circuit, "empty": empty, **others}.items()
    }
    found = faithfulness_scores(values, list(others), split="heldout", metric="logit_diff", ablation="zero")
    return {one.name: one for one in found}


@pytest.mark.parametrize("empty", [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 2.0, 2.0 + 1e-9]])
def test_faithfulness_is_undefined_where_the_empty_circuit_does_as_well_as_the_model(empty):
    found = by_name([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], empty, random0=[1.0, 1.0, 1.0])
    one = found["faithfulness"]
    assert (one.value, one.low, one.high, one.controls) == (None, None, None, ())
    assert "full model and the empty circuit score the same" in one.note
    assert found["ratio"].value == 2.5
    assert found["difference"].value == 3.0
    assert found["ratio"].note == found["difference"].note == ""


def test_faithfulness_to_a_gap_within_noise_says_so():
    full, empty = [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]
    found = by_name(full, [1.0, 1.0, 0.0, 0.0], empty)["faithfulness"]
    assert found.value == 2.0
    assert found.note.startswith(UNCLEAR)
    assert "0.25 ± 0.5" in found.note  # two standard errors of the mean: 2 x 0.5 / 2
    assert by_name([1.0, 1.1, 0.9, 1.0], [1.0, 1.0, 0.0, 0.0], empty)["faithfulness"].note == ""


def test_the_ratio_is_undefined_where_the_models_metric_is_zero():
    found = by_name([1.0, -1.0], [5.0, 5.0], [-1.0, -1.0])
    assert (found["ratio"].value, found["ratio"].low) == (None, None)
    assert "metric is 0" in found["ratio"].note
    assert found["faithfulness"].value == 6.0


def test_faithfulness_is_a_ratio_of_means_and_never_a_mean_of_ratios():
    found = by_name([1.0, 3.0, 0.001], [1.0, 0.0, 5.0], [0.0, 0.0, 0.0])
    assert found["faithfulness"].value == pytest.approx(6.0 / 4.001)


def test_kl_as_the_metric_has_no_ratio():
    """The full model's KL to itself is 0."""
    model = shared("attention_only")
    found = score(model, random_task(model), some_circuit(model.graph, share=0.6), ablation="mean", metric="kl", n_random=1)
    one = found.get("ratio")
    assert one.value is None
    assert "0" in one.note
    assert found.get("faithfulness").value is not None


def test_one_example_has_no_interval():
    found = by_name([1.0], [0.5], [0.0])
    assert found["faithfulness"].value == 0.5
    assert (found["faithfulness"].low, found["faithfulness"].high) == (None, None)


def test_an_accuracy_on_which_all_agree_has_wilsons_interval():
    found = by_name([1.0] * 20, [1.0] * 20, [0.0] * 20)["accuracy"]
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(20 / (20 + stats.norm.ppf(0.975) ** 2))  # Wilson's lower end where all hit
    assert found.method == "Wilson's interval over 20 examples"
    mixed = by_name([1.0] * 20, [1.0] * 19 + [0.0], [0.0] * 20)["accuracy"]
    book = stats.binomtest(19, 20).proportion_ci(0.95, method="wilson")
    assert (mixed.low, mixed.high) == pytest.approx((book.low, book.high))
    assert mixed.method == found.method


def test_the_same_seed_gives_the_same_scores():
    model = shared("attention_only")
    task, circuit = random_task(model), some_circuit(model.graph, share=0.6)
    first, again, other = (score(model, task, circuit, ablation="mean", n_random=3, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.get("ratio").value == other.get("ratio").value
    assert first.get("ratio").controls != other.get("ratio").controls


# --- intervals and controls in scores -------------------------------------------------------------------------------------


def test_examples_are_drawn_together():
    """Full model and circuit are paired: where they agree example by example, the ratio is certain."""
    sample = np.random.default_rng(2).normal(2.0, 1.0, 50)
    found = by_name(sample.tolist(), (0.5 * sample).tolist(), [0.0] * 50)["faithfulness"]
    assert found.value == found.low == found.high == pytest.approx(0.5)


def test_scores_say_how_their_intervals_were_made_and_what_controls_were_matched_in():
    model = shared("attention_only")
    task, circuit = random_task(model, n=8), some_circuit(model.graph, share=0.6)
    found = score(model, task, circuit, ablation="mean", n_random=2)
    over = "8 examples; their 2 groups are too few to be drawn again, so that it holds for these alone"
    for one in found.scores:
        assert one.method in (
            f"studentised bootstrap over {over}",
            f"Wilson's interval over {over}",
            f"Student's t over {over}",
            "",
        )
    assert found.get("faithfulness").method.startswith("studentised bootstrap over 8 examples")
    assert "as many live edges" in found.get("faithfulness").matched
    assert found.get("full_accuracy").matched == ""


def test_a_circuit_without_others_like_it_says_that_it_cannot_be_controlled():
    model = shared("attention_only")
    found = score(model, random_task(model, n=4), Circuit.full(model.graph), ablation="mean").get("faithfulness")
    assert found.controls == ()
    assert found.matched.startswith("cannot be controlled: no other circuit has")


def test_groups_are_drawn_whole():
    """Five groups of like examples are five observations."""
    generator = np.random.default_rng(0)
    of = np.repeat(np.arange(5), 20)
    circuit = generator.normal(size=5)[of] + 1e-3 * generator.normal(size=100)
    rows = {"full": np.ones(100), "circuit": circuit, "empty": np.zeros(100)}
    values: dict[str, Any] = {name: dict.fromkeys(("logit_diff", "kl", "accuracy"), row) for name, row in rows.items()}
    labels: dict[str, Any] = {"split": "heldout", "metric": "logit_diff", "ablation": "zero"}
    single = faithfulness_scores(values, [], **labels)[0]
    grouped = faithfulness_scores(values, [], **labels, over=partition(100, of.tolist()))[0]
    assert single.value == grouped.value
    widths = [np.ptp(np.array([one.low, one.high], dtype=float)) for one in (single, grouped)]
    assert widths[1] > 3 * widths[0]
    assert "in 5 groups" in grouped.method


def test_a_kl_that_rests_on_few_examples_says_so():
    kl = -np.r_[np.full(97, 0.001), 1.0, 2.0, 3.0]
    few = by_name([0.0] * 100, kl.tolist(), [-5.0] * 100)["kl"]
    assert "half of it comes from 2 of 100 examples" in few.note  # 3 + 2 > 6.097 / 2
    assert by_name([0.0] * 100, (-np.ones(100)).tolist(), [-5.0] * 100)["kl"].note == ""


# --- files ---------------------------------------------------------------------------------------------------------------

floats = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Score,
    name=st.text(),
    split=st.sampled_from(["train", "heldout"]),
    ablation=st.text(),
    metric=st.text(),
    n=st.integers(0, 10**6),
    value=st.none() | floats,
    low=st.none() | floats,
    high=st.none() | floats,
    confidence=floats,
    controls=st.lists(st.none() | floats, max_size=3).map(tuple),
    note=st.text(),
    method=st.text(),
    matched=st.text(),
)
tables = st.builds(
    Scores,
    *[st.integers(0, 10**6)] * 4,
    means=st.dictionaries(st.text(), st.dictionaries(st.text(), floats, max_size=2), max_size=2),
    scores=st.lists(rows, max_size=3).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_json_brings_back_the_scores(table):
    assert Scores.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_scores_of_a_run_come_back_and_are_plain_json():
    model = shared("attention_only")
    found = score(model, random_task(model), some_circuit(model.graph, share=0.6), ablation="mean", n_random=2)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert Scores.from_dict(json.loads(text)) == found


@pytest.mark.parametrize(
    "data",
    [{}, [], None, {"scores": None}, {"scores": [{"name": "kl"}]}, {"scores": [3]}, {"scores": []},
     {**Scores(1, 2, 3, 4).to_dict(), "scores": [{"controls": [], "colour": 1}]}],
)  # fmt: skip
def test_other_json_is_refused(data):
    with pytest.raises(BadFile, match="not a table of scores"):
        Scores.from_dict(data)
