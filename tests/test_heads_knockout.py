"""Head effects and knock-out curves: against head circuits run edge by edge by `Patching.evaluate`, one after the other."""

import numpy as np
import pytest
from examples import random_task
from models import model_of, shared

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.heads import head_effects, knockout_curve
from circuitdisc.heads.knockout import sizes_of_points
from circuitdisc.metrics import METRICS


def slow_values(model, task, ablation, metric, dropped, split="heldout"):
    """The metric, example by example, with these heads ablated: the head circuit, every edge masked."""
    patching = Patching(model, ablation, task.train)
    circuit = Circuit.from_heads(model.graph, [name for name in model.graph.heads if name not in dropped])
    masks = {"circuit": circuit.mask}
    return patching.evaluate(task.split(split), masks, [METRICS[metric]])["circuit"][metric].numpy()


@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "mean"), ("llama", "zero"), ("gemma2", "resample"), ("parallel", "mean")]
)
def test_effects_are_those_of_one_run_for_every_head(family, kind):
    model, ablation = shared(family), Ablation(kind)
    task = random_task(model, n=4)
    found = head_effects(model, task, ablation=kind, memory="300KB")
    full = slow_values(model, task, ablation, "logit_diff", [], "train")
    assert found.full == pytest.approx(full, abs=1e-9)
    for index, name in enumerate(model.graph.heads):
        slow = slow_values(model, task, ablation, "logit_diff", [name], "train") - full
        assert found.values[divmod(index, model.graph.n_heads)] == pytest.approx(slow, abs=1e-9)
    order = found.order()
    means = dict(zip(found.names, found.mean.ravel(), strict=True))
    assert [means[name] for name in order] == sorted(means.values())
    by_size = [abs(means[name]) for name in found.order("absolute")]
    assert by_size == sorted(by_size, reverse=True)


@pytest.mark.parametrize(("family", "metric"), [("gpt2", "logit_diff"), ("llama", "log_prob")])
def test_every_point_of_the_curve_is_a_head_circuit(family, metric):
    model = shared(family)
    task = random_task(model, n=4)
    found = knockout_curve(model, task, metric=metric, steps=[0, 1, 3, 8], n_random=3, seed=5)
    effects = head_effects(model, task, metric=metric)
    assert list(found.order) == effects.order()
    assert found.effects == pytest.approx(effects.mean)
    generator = np.random.default_rng(5)
    names = list(model.graph.heads)
    orders = [list(found.order), *([names[h] for h in generator.permutation(len(names))] for _ in range(3))]
    for row, order in enumerate(orders):
        for k, size in enumerate(found.sizes):
            slow = slow_values(model, task, Ablation("mean"), metric, order[:size])
            if row == 0:
                assert found.values[k] == pytest.approx(slow, abs=1e-9)
            else:
                assert found.random[row - 1, k] == pytest.approx(slow.mean(), abs=1e-9)
    shares, gap = np.array([0, 1, 3, 8]) / len(names), np.median(found.random, axis=0) - found.mean
    area = sum((shares[k + 1] - shares[k]) * (gap[k] + gap[k + 1]) / 2 for k in range(3))
    assert found.area == pytest.approx(area)


def test_all_heads_out_is_where_every_order_ends():
    model = shared("attention_only")
    task = random_task(model, n=5)
    found = knockout_curve(model, task, n_random=6, seed=1)
    assert found.sizes == tuple(range(9))
    assert np.ptp(found.random[:, 0]) == 0
    assert found.random[:, -1] == pytest.approx(found.mean[-1])
    assert np.ptp(found.random[:, 3]) > 0
    again, other = (knockout_curve(model, task, n_random=6, seed=seed) for seed in (1, 2))
    assert np.array_equal(again.random, found.random)
    assert not np.array_equal(other.random, found.random)
    low, middle, high = found.band
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert found.table()[0]["ablated"] == 0
    assert found.table()[2]["last"] == found.order[1]


def test_an_order_may_be_given_and_need_not_hold_all():
    model = shared("attention_only")
    task = random_task(model, n=4)
    found = knockout_curve(model, task, order=["a1.h2", "a0.h3"], n_random=2)
    assert found.sizes == (0, 1, 2)
    assert found.effects is None
    slow = slow_values(model, task, Ablation("mean"), "logit_diff", ["a1.h2", "a0.h3"])
    assert found.values[-1] == pytest.approx(slow, abs=1e-9)


def test_hook_based_models_and_patterns():
    fast, slow = shared("gpt2"), model_of("gpt2", components="hooks")
    task = random_task(fast, n=3)
    curves = [knockout_curve(model, task, order=["a0.h0", "a2.h1"], n_random=1) for model in (fast, slow)]
    assert curves[0].values == pytest.approx(curves[1].values, abs=1e-6)
    assert curves[0].random == pytest.approx(curves[1].random, abs=1e-6)
    cut_patterns = knockout_curve(fast, task, ablation={"kind": "mean", "target": "pattern"}, steps=[0, 4], n_random=0)
    assert cut_patterns.values[0] == pytest.approx(curves[0].values[0])
    assert not np.allclose(cut_patterns.values[1], curves[0].values[1])
    assert np.isnan(cut_patterns.area)


def test_points_are_spread_evenly():
    assert sizes_of_points(None, 144)[:3] == (0, 9, 18)
    assert sizes_of_points(None, 144)[-1] == 144
    assert sizes_of_points(5, 8) == (0, 2, 4, 6, 8)
    assert sizes_of_points([3, 1, 3], 8) == (1, 3)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"steps": [0, 9]}, BadSetting, "asks for 9 ablated heads"),
        ({"steps": "many"}, BadSetting, "steps='many'"),
        ({"steps": 1}, BadSetting, "steps=1"),
        ({"n_random": -1}, BadSetting, "n_random=-1"),
        ({"order": ["a0.h0", "a0.h0"]}, BadSetting, "names a0.h0 twice"),
        ({"order": ["a7.h0"]}, GraphMismatch, "'a7.h0' is not a head"),
        ({"order": ["a0.h0"], "effects": np.zeros((2, 4))}, BadSetting, "give one of them"),
        ({"effects": np.zeros((3, 4))}, GraphMismatch, "do not fit"),
        ({"by": "size"}, UnknownName, "unknown value of by"),
        ({"metric": "logit_dif"}, UnknownName, "Did you mean logit_diff"),
    ],
)
def test_bad_input_gets_a_sentence(settings, error, sentence):
    model = shared("attention_only")
    with pytest.raises(error, match=sentence):
        knockout_curve(model, random_task(model, n=2), **settings)
