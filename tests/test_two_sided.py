"""Which rule decides a cut: both sides by default where the metric can rise above the full model's; ACDC's own on request."""

from typing import Any

import numpy as np
import pytest
from examples import random_task
from models import model_of
from reference import masked_metric

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.checkpoints.joint import joint_discover
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.rules import Rule, check_rule
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import METRICS

SETTINGS: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.05},
    "bisect": {"threshold": 0.05, "ranking": "random"},
    "head_ablation": {"threshold": 0.05, "relative": False},
}


def search(algorithm, metric, joint=False, **settings):
    model = model_of("layer_norm_gated")
    task, settings = random_task(model, 5), {**SETTINGS[algorithm], **settings}
    if joint:
        return joint_discover([model, model], task, algorithm, Ablation("zero"), SearchContext(metric), **settings)
    return cd.discover(model, task, algorithm, ablation="zero", metric=metric, allow_chance=True, **settings)


@pytest.mark.parametrize(("algorithm", "joint"), [("acdc", False), ("bisect", False), ("head_ablation", False),
                                                  ("acdc", True), ("head_ablation", True)])  # fmt: skip
@pytest.mark.parametrize("metric", ["logit_diff", pytest.param("log_prob", marks=pytest.mark.long), "kl"])
def test_both_sides_count_by_default_unless_the_metric_cannot_rise(algorithm, joint, metric):
    found = search(algorithm, metric, joint)
    same = search(algorithm, metric, joint, two_sided=metric != "kl")
    assert found.circuit == same.circuit
    assert found.trace == same.trace
    notes = found.circuit.provenance.notes
    assert sum(("one-sided, as by ACDC's own rule" if metric == "kl" else "two-sided") in note for note in notes) == 1
    if metric == "logit_diff":
        own = search(algorithm, metric, joint, two_sided=False)
        assert found.trace != own.trace
        assert "ACDC's own rule" in own.circuit.provenance.notes[0]


def test_the_one_sided_rule_overshoots_where_the_default_does_not():
    """Every single cut costs less than the threshold, and what works against the metric is gone by the end."""
    model = model_of("layer_norm_gated")
    task, metric = random_task(model, 6), METRICS["logit_diff"]
    chunks = Patching(model, Ablation("zero"), task.train).hold(task.train)
    full = masked_metric(model, chunks, model.graph.edge_mask, metric)
    above = {}
    for two_sided in (None, False):
        found = cd.discover(
            model, task, "acdc", ablation="zero", metric="logit_diff", threshold=0.02, two_sided=two_sided, allow_chance=True
        )
        above[two_sided] = masked_metric(model, chunks, found.circuit.mask, metric) - full
    assert above[False] > 1.5
    assert abs(above[None]) < 0.05


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_margin_is_positive_where_the_rule_passes(two_sided, relative):
    rule, generator = Rule(0.2, relative, two_sided), np.random.default_rng(0)
    for before, value in generator.normal(size=(200, 2)):
        change = abs(value - before) if two_sided else before - value
        allowed = 0.2 * abs(before) if relative else 0.2
        assert rule.passes(before, value) == (change < allowed)
        assert rule.margin(before, value) == pytest.approx(allowed - change)


@pytest.mark.parametrize("bad", ["yes", 1, 0.5, "both"])
def test_another_value_gets_a_sentence(bad):
    for algorithm in SETTINGS:
        with pytest.raises(BadSetting, match="two_sided"):
            search(algorithm, "logit_diff", two_sided=bad)
    with pytest.raises(BadSetting, match="two_sided"):
        check_rule(0.1, False, bad, METRICS["kl"])
