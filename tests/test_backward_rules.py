"""Conductance, rules of the backward pass (tests/literal_rules.py), GradDrop and gradient paths, against all written out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from direct_attribution import (
    big_buffer,
    direct_atp,
    direct_between_activations,
    direct_between_embeddings,
    direct_conductance,
    direct_eap,
    direct_grad_drop,
    direct_grad_path,
    embedding_senders,
    leaf_run,
    metric_of,
)
from examples import random_examples, random_task
from models import model_of

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.atp import atp
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.ceap import ceap
from circuitdisc.discovery.eap_gp import eap_gp
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.conductance import edges_by_conductance
from circuitdisc.engine.gradients.grad_drop import edges_with_grad_drop
from circuitdisc.engine.gradients.grad_path import edges_along_gradient
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import equal, published_between
from circuitdisc.engine.gradients.rules import RULES
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.weights import ACTIVATIONS

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "gemma3_text", "olmo2", "bloom", "cohere", "granite"]
POINTS = equal(0.0, 0.5)
FULL = Gradient(at_full=True)
DROPS = Gradient(at_full=True, patterns=True, drops=True)


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


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_conductance_adds_up_into_the_logits(family):
    """With many stretches these are what ablating the embedding does, whether norms couple heads or not."""
    model = model_of(family)
    ready = attribution(model, "resample", random_examples(model, 3), "plain", Gradient())
    scores = edges_by_conductance(ready, 60)
    assert ready.path_sum is not None
    assert ready.path_sum.scores == pytest.approx(np.nansum(scores[-1]), rel=1e-12)
    assert ready.path_sum.scores == pytest.approx(ready.path_sum.change, rel=1e-3)


def test_conductance_adds_up_out_of_the_embedding_where_no_norm_couples_heads():
    model = model_of("llama")
    ready = attribution(model, "resample", random_examples(model, 3), "plain", Gradient())
    scores = edges_by_conductance(ready, 60)
    assert ready.path_sum is not None
    assert np.nansum(scores[:, : ready.groups[0].stop]) == pytest.approx(ready.path_sum.change, rel=1e-3)


def test_the_change_is_that_of_the_whole_model_on_the_corrupted_prompts():
    """Ablating the embedding by resampling is running the corrupted prompt."""
    model, metric = model_of("gemma2"), get_metric("log_prob")
    examples = random_examples(model, 3)
    ready = attribution(model, "resample", examples, "plain", Gradient())
    edges_by_conductance(ready, 2)
    chunk, _ = big_buffer(model, Ablation("resample"), examples)
    overrides = {s: chunk.ablated.expand_as(chunk.clean)[s] for s in embedding_senders(model)}
    full, empty = (metric_of(metric, chunk, leaf_run(model, chunk, given, {}, own_scales=True)) for given in ({}, overrides))
    assert ready.path_sum is not None
    assert ready.path_sum.change == pytest.approx(float(empty - full), rel=1e-9)


def test_under_a_rule_nothing_is_said_of_sums():
    model = model_of("gpt2")
    ready = attribution(model, "resample", random_examples(model, 3), "gim", Gradient())
    edges_by_conductance(ready, 2)
    assert ready.path_sum is None


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_relp_at_nothing_has_the_slope_of_the_activation(name):
    """f(x) / x has a limit at 0, where f(0) = 0: its slope there, and not 0 / 0."""
    function, rule = ACTIVATIONS[name], RULES["relp"]
    x = torch.tensor([0.0, 1e-6, -0.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(rule.activation(function, x).sum(), x)
    value = x.detach()
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (limit,) = torch.autograd.grad(function(zero), zero)
    assert slope[0] == limit
    assert slope[1:].tolist() == pytest.approx((function(value) / value)[1:].tolist(), rel=1e-9)


def test_conductance_needs_a_way_to_the_corrupted_prompts():
    model = model_of("gpt2")
    with pytest.raises(BadSetting, match="use ablation=resample"):
        ceap(model, random_task(model), Ablation("mean"), SearchContext(metric="log_prob"))


# --- GradDrop ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "bloom", "cohere", "mixtral", "no_norm"])
def test_grad_drop_equals_autograd_with_each_layer_detached(family):
    model, metric, ablation = model_of(family), get_metric("log_prob"), Ablation("resample")
    examples = random_examples(model, 3)
    found = edges_with_grad_drop(attribution(model, "resample", examples, "plain", DROPS))
    assert far(found, direct_grad_drop(model, ablation, examples, metric)) < 1e-9
    assert np.nanmin(found) >= 0
    assert far(found, np.abs(direct_atp(model, ablation, examples, metric))) > 1e-2


def test_grad_drop_takes_a_backward_pass_for_each_layer_and_has_no_sign():
    model = model_of("llama")
    task = random_task(model, 3)
    found = atp(model, task, Ablation("resample"), SearchContext(metric="log_prob"), grad_drop=True)
    assert (found.cost.model_runs, found.cost.backward_runs) == (pytest.approx(2), pytest.approx(model.graph.n_layers))
    assert any("no sign" in note for note in found.notes)
    with pytest.raises(BadSetting, match="have no sign: use by=absolute"):
        found.top_k(9, "signed")
    with pytest.raises(BadSetting, match="by=signed needs scores with a sign"):
        atp(model, task, Ablation("resample"), SearchContext(metric="log_prob"), grad_drop=True, by="signed")
    ready = attribution(model, "resample", task.train, "plain", DROPS)
    ready.graph = ComputationGraph(1, 2)
    with pytest.raises(BadSetting, match="this model has one: use false"):
        edges_with_grad_drop(ready)


# --- paths that follow a gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "bloom", "cohere", "mixtral"])
def test_a_gradient_path_equals_it_written_out(family):
    model, metric, ablation = model_of(family), get_metric("log_prob"), Ablation("resample")
    examples = random_examples(model, 3)
    found = edges_along_gradient(attribution(model, "resample", examples, "plain", Gradient(all_columns=True)), 3)
    assert far(found, direct_grad_path(model, ablation, examples, metric, 3)) < 1e-9
    straight = attribution(model, "resample", examples, "plain", Gradient(rows=3)).edges_between(published_between(3))
    assert far(found, straight) > 1e-2


def test_a_gradient_path_with_embeddings_kept_apart_and_a_metric_that_is_flat_at_the_start():
    model, kl, ablation = model_of("gpt2", split_embeddings=True), get_metric("kl"), Ablation("resample")
    examples = random_examples(model, 3)
    ready = Attribution(model, ablation, examples, kl, gradient=Gradient(all_columns=True))
    assert far(edges_along_gradient(ready, 2), direct_grad_path(model, ablation, examples, kl, 2)) < 1e-9


def test_a_gradient_path_stands_still_where_there_is_nowhere_to_go():
    """Corrupted prompts that are the clean ones: every gradient is 0, and so is every score."""
    model = model_of("llama")
    same = [replace(example, corrupted=example.clean) for example in random_examples(model, 3)]
    found = edges_along_gradient(attribution(model, "resample", same, "plain", Gradient(all_columns=True)), 2)
    assert np.nanmax(np.abs(found)) == 0


def test_a_gradient_path_costs_and_refuses():
    model = model_of("llama")
    task, context = random_task(model, 3), SearchContext(metric="log_prob")
    cost = eap_gp(model, task, Ablation("resample"), context, steps=3).cost
    assert (cost.model_runs, cost.backward_runs) == (pytest.approx(2 + 1 + 4), pytest.approx(6))
    with pytest.raises(BadSetting, match="use ablation=resample, or eap_ig"):
        eap_gp(model, task, Ablation("zero"), context)
