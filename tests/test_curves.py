"""Curves of faithfulness over size against literal areas from reference runs."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task
from models import shared
from reference import masked_run
from scipy import stats

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.scoring.curves import MIB_SHARES, area, curve

SHARES = (0.02, 0.1, 0.4, 1.0)


@cache
def found_in(family):
    model = shared(family)
    return cd.discover(model, random_task(model, n=4), "eap", ablation="resample", allow_chance=True)


def reference_values(model, task, kind, masks):
    """Values of each circuit on the held-out examples. [X, B]"""
    (chunk,) = Patching(model, Ablation(kind), task.train).hold(task.heldout)
    metric = get_metric("logit_diff")
    readings = [metric(masked_run(model, chunk, torch.tensor(mask)), chunk.labels) for mask in masks]
    return np.stack([chunk.batch.per_example(one).numpy() for one in readings])


def literal_area(shares, heights):
    """Trapezoids, one by one."""
    total = 0.0
    for at in range(len(shares) - 1):
        total += (shares[at + 1] - shares[at]) * (heights[at] + heights[at + 1]) / 2
    return total


@pytest.mark.parametrize("grow", ["top_k", "greedy"])
@pytest.mark.parametrize(("family", "kind"), [("attention_only", "resample"), ("attention_only", "zero"), ("gpt2", "mean")])
def test_a_curve_equals_reference_runs(family, kind, grow):
    model, found = shared(family), found_in(family)
    task = random_task(model, n=4)
    line = curve(model, task, found, shares=SHARES, grow=grow, ablation=kind, n_random=0, seed=7)
    circuits = [getattr(found, grow)(int(np.ceil(share * model.graph.n_edges))) for share in SHARES]
    masks = [model.graph.edge_mask, np.zeros_like(model.graph.edge_mask), *[one.mask for one in circuits]]
    full, empty, *values = reference_values(model, task, kind, masks)
    f = [(one.mean() - empty.mean()) / (full.mean() - empty.mean()) for one in values]

    assert [point.edges for point in line.points] == [one.n_edges for one in circuits]
    assert [point.share for point in line.points] == list(SHARES)
    assert [point.mean for point in line.points] == pytest.approx([one.mean() for one in values], abs=1e-9)
    assert [point.faithfulness for point in line.points] == pytest.approx(f, abs=1e-8)
    assert (line.full, line.empty) == pytest.approx((full.mean(), empty.mean()), abs=1e-9)
    assert line.cpr.value == pytest.approx(literal_area(SHARES, f), abs=1e-8)
    assert line.cmd.value == pytest.approx(literal_area(SHARES, [abs(1 - one) for one in f]), abs=1e-8)
    assert line.overshoot.value == pytest.approx(max(f) - 1, abs=1e-8)
    assert (line.cpr.n, line.split, line.ablation, line.metric) == (4, "heldout", Ablation(kind).label, "logit_diff")

    def cmd(weights):
        m, floor, *rest = (float(one @ weights) for one in (full, empty, *values))
        return literal_area(SHARES, [abs(1 - (one - floor) / (m - floor)) for one in rest])

    even, step = np.full(4, 1 / 4), 1e-6  # how much each of the four examples counts, and what more of it would change
    pulls = [(cmd(even + step * (np.eye(4)[i] - even)) - cmd(even)) / step for i in range(4)]
    reach = stats.t.ppf(0.975, 3) * np.sqrt(sum(pull**2 for pull in pulls) / (4 * 3))
    assert line.cmd.low == pytest.approx(max(0.0, line.cmd.value - reach), rel=1e-3, abs=1e-6)
    assert line.cmd.high == pytest.approx(line.cmd.value + reach, rel=1e-3, abs=1e-6)
    assert line.cmd.method.startswith("Student's t over 4 examples")


def test_ablation_and_metric_are_those_of_the_discovery():
    model = shared("attention_only")
    line = curve(model, random_task(model, n=4), found_in("attention_only"), n_random=2)
    assert line.ablation == "resample"
    assert [point.share for point in line.points] == list(MIB_SHARES)
    assert (line.points[-1].edges, line.points[-1].faithfulness) == (model.graph.n_edges, pytest.approx(1.0))


def test_the_full_model_at_every_size_has_the_best_areas():
    model = shared("attention_only")
    line = curve(model, random_task(model), lambda size: Circuit.full(model.graph), ablation="mean", n_random=0)
    assert line.cpr.value == pytest.approx(0.999)
    assert line.cmd.value == pytest.approx(0.0, abs=1e-12)
    assert line.overshoot.value == pytest.approx(0.0, abs=1e-12)


def test_controls_are_chosen_from_random_scores():
    """At the size of the whole graph they are the model; below it, each has as many edges as were asked for when grown."""
    model, asked = shared("attention_only"), []
    task = random_task(model, n=4)
    some = curve(model, task, found_in("attention_only"), shares=SHARES, grow="greedy", n_random=3, seed=1)
    again = curve(model, task, found_in("attention_only"), shares=SHARES, grow="greedy", n_random=3, seed=1)
    other = curve(model, task, found_in("attention_only"), shares=SHARES, grow="greedy", n_random=3, seed=2)
    assert some.points == again.points
    assert some.points[2].controls != other.points[2].controls
    assert some.points[-1].controls == pytest.approx((1.0, 1.0, 1.0))
    assert len(set(some.points[2].controls)) == 3
    for which in range(3):
        heights = [point.controls[which] for point in some.points]
        assert some.cpr.controls[which] == pytest.approx(literal_area(SHARES, heights))
    curve(
        model, task, lambda size: asked.append(size) or Circuit.empty(model.graph), shares=SHARES, n_random=0, ablation="mean"
    )
    assert asked == [int(np.ceil(share * model.graph.n_edges)) for share in SHARES]


def test_head_circuits_are_measured_against_no_heads():
    model = shared("gpt2")
    order = [f"a{layer}.h{head}" for layer in (2, 0, 1) for head in range(4)]

    def heads(size):
        return Circuit.from_heads(model.graph, order[: round(size / model.graph.n_edges * 12)])

    task = random_task(model, n=3)
    line = curve(model, task, heads, shares=(0.1, 0.5, 1.0), ablation="zero", n_random=2)
    masks = [
        one.mask for one in (Circuit.full(model.graph), Circuit.from_heads(model.graph, []), heads(model.graph.n_edges / 2))
    ]
    full, empty, half = reference_values(model, task, "zero", masks).mean(1)
    assert line.points[1].faithfulness == pytest.approx((half - empty) / (full - empty), rel=1e-7)
    assert line.points[-1].controls == pytest.approx((1.0, 1.0))
    with pytest.raises(BadSetting, match="mixes head circuits and edge circuits"):
        curve(model, task, lambda size: Circuit.full(model.graph) if size > 60 else heads(size), ablation="zero")


def test_areas():
    assert float(area((0.0, 0.5, 1.0), np.array([0.0, 1.0, 1.0]))) == 0.75
    both = area((0.5, 1.0), np.array([[0.0, 2.0], [1.0, 2.0]]))
    assert both.tolist() == [0.25, 1.0]


def test_no_faithfulness_where_nothing_can_be_lost():
    """All edges carry their own clean values: the empty circuit is the model."""
    model = shared("attention_only")
    examples = random_task(model, n=3)
    same = replace(examples, train=tuple(unchanged(examples.train)), heldout=tuple(unchanged(examples.heldout)))
    line = curve(model, same, found_in("attention_only"), ablation="resample", n_random=1)
    assert (line.cmd.value, line.points[0].faithfulness, line.points[0].controls) == (None, None, ())
    assert "nothing to keep" in line.cmd.note


def unchanged(examples):
    return (replace(example, corrupted=example.clean) for example in examples)


def test_results_are_plain_json():
    model = shared("attention_only")
    line = curve(model, random_task(model, n=1), found_in("attention_only"), n_random=1)
    data = json.loads(json.dumps(line.to_dict(), allow_nan=False))
    assert (data["n"], data["points"][0]["low"]) == (1, None)
    assert len(json.loads(json.dumps(line.table(), allow_nan=False))) == 10


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"shares": (0.5,)}, BadSetting, "at least two shares"),
    ({"shares": (0.5, 0.2)}, BadSetting, "must grow"),
    ({"shares": (0.0, 0.2)}, BadSetting, "above 0"),
    ({"shares": (0.5, 2)}, BadSetting, "above 0 and at most 1"),
    ({"grow": "down"}, UnknownName, "value of grow"),
    ({"by": "size"}, UnknownName, "value of by"),
    ({"split": "test"}, UnknownName, "value of split"),
    ({"n_random": -1}, BadSetting, "n_random=-1"),
    ({"confidence": 1}, BadSetting, "confidence=1"),
]


@pytest.mark.parametrize(("settings", "error", "words"), BAD)
def test_bad_settings_get_a_sentence(settings, error, words):
    model = shared("attention_only")
    with pytest.raises(error, match=words):
        curve(model, random_task(model, n=2), found_in("attention_only"), **settings)


def test_bad_sources_get_a_sentence():
    model, found = shared("attention_only"), found_in("attention_only")
    task, sources = random_task(model, n=2), [3, lambda size: size, replace(found, edge_scores=None)]
    words = ["a source of type int has no circuits of all sizes", "the function gave a int", "scores no edges"]
    for source, sentence in zip(sources, words, strict=True):
        with pytest.raises(BadSetting, match=sentence):
            curve(model, task, source)  # pyright: ignore[reportArgumentType] - what is wrong is tested
    with pytest.raises(GraphMismatch, match="belongs to a model of"):
        curve(model, task, lambda size: Circuit.full(ComputationGraph(5, 2)))
