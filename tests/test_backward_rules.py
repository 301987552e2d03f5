"""Conductance, and attribution under rules of the backward pass, against both written out (tests/literal_rules.py)."""

from typing import Any

import numpy as np
import pytest
from direct_attribution import direct_between_activations, direct_between_embeddings, direct_conductance, direct_eap
from examples import random_examples, random_task
from models import model_of

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.ceap import ceap
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.conductance import edges_by_conductance
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import equal
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import get_metric

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "gemma3_text", "olmo2", "bloom", "cohere", "granite"]
POINTS = equal(0.0, 0.5)
FULL = Gradient(at_full=True)


def attribution(model, kind: Any, examples, rule, gradient=FULL):
    return Attribution(model, Ablation(kind), examples, get_metric("log_prob"), gradient=gradient, rule=rule)


def far(found, wanted):
    assert (np.isnan(found) == np.isnan(wanted)).all()
    return np.nanmax(np.abs(found - wanted)) / np.nanmax(np.abs(wanted))


@pytest.mark.parametrize("rule", ["relp", "gim"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_rule_written_out(family, rule):
    model, metric, ablation = model_of(family), get_metric("log_prob"), Ablation("resample")
    examples = random_examples(model, 3)
    wanted = direct_eap(model, ablation, examples, metric, rule)
    assert far(attribution(model, "resample", examples, rule).edges_at_full(), wanted) < 1e-9
    plain = attribution(model, "resample", examples, "plain").edges_at_full()
    assert far(plain, wanted) > 1e-2  # the rule matters
    between = attribution(model, "resample", examples, rule, Gradient(rows=2, places=True))
    wanted = direct_between_embeddings(model, ablation, examples, metric, POINTS, rule)
    assert far(between.edges_between(POINTS), wanted) < 1e-9


@pytest.mark.parametrize("rule", ["relp", "gim"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_so_do_points_between_activations(family, rule):
    model, metric, ablation = model_of(family), get_metric("log_prob"), Ablation("mean")
    examples = random_examples(model, 3)
    between = attribution(model, "mean", examples, rule, Gradient(rows=2, places=True))
    wanted = direct_between_activations(model, ablation, examples, metric, POINTS, rule=rule)
    assert far(between.edges_between_activations(POINTS, POINTS), wanted) < 1e-9


def test_what_has_no_rule_is_refused():
    model = model_of("mixtral")
    with pytest.raises(BadSetting, match="mixtures of experts"):
        attribution(model, "zero", random_examples(model, 2), "relp")
    with pytest.raises(UnknownName, match="relp"):
        attribution(model, "zero", random_examples(model, 2), "repl")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma3_text", "olmo2", "bloom", "cohere"])
def test_conductance_equals_the_stretches_written_out(family):
    model, metric, ablation = model_of(family), get_metric("log_prob"), Ablation("resample")
    examples = random_examples(model, 3)
    found = edges_by_conductance(attribution(model, "resample", examples, "plain", Gradient()), 3)
    assert far(found, direct_conductance(model, ablation, examples, metric, 3)) < 1e-9


def test_conductance_adds_up_across_the_graph():
    """With many stretches the scores into `logits`, like those out of the embedding, are the change of the metric."""
    model, examples = model_of("llama"), random_examples(model_of("llama"), 3)
    ready = attribution(model, "resample", examples, "plain", Gradient())
    scores = edges_by_conductance(ready, 60)
    assert ready.path_sum is not None
    assert np.nansum(scores[-1]) == pytest.approx(ready.path_sum.change, rel=1e-3)
    assert ready.path_sum.scores == pytest.approx(ready.path_sum.change, rel=1e-3)


def test_conductance_needs_a_way_to_the_corrupted_prompts():
    model = model_of("gpt2")
    with pytest.raises(BadSetting, match="use ablation=resample"):
        ceap(model, random_task(model), Ablation("mean"), SearchContext(metric="log_prob"))
