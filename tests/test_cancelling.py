"""Where every effect cancels in the mean, a search says so, and names a metric that sees it; elsewhere it says nothing."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task
from models import model_of
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.checkpoints.joint import joint_discover
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import SearchContext
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.metrics import get_metric
from circuitdisc.models import ToyConfig, ToyTransformer, cut_toy
from circuitdisc.tasks.base import Example, Task

DECIDE = ["acdc", "bisect", "refine", "head_ablation", "path_patching"]
SCORE = ["exact", "eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "atp"]
COARSE: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.01},
    "bisect": {"threshold": 0.01},
    "refine": {"threshold": 0.01},
    "head_ablation": {"relative": False, "threshold": 0.01},
}


@pytest.fixture(scope="module")
def linear():
    """Attention that is even over all tokens, no norm, no MLP: every logit is linear in what each sender writes."""
    sizes: dict[str, Any] = {"n_layers": 1, "n_heads": 3, "d_model": 12, "d_head": 4, "d_vocab": 20, "n_ctx": 16}
    module = ToyTransformer(ToyConfig(**sizes, attn_only=True, normalization_type=None), 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
            if "W_Q" in name or "b_Q" in name:
                parameter.zero_()
    return cut_toy(module.double(), name="linear")


def same_answer_everywhere(permuted=False):
    """Random prompts, answer 3 and wrong answer 7 in all; corrupted: other prompts, or the clean ones moved on by one."""
    generator = np.random.default_rng(0)
    clean, other = (generator.integers(0, 20, (20, 6)).tolist() for _ in range(2))
    corrupted = [*clean[1:], clean[0]] if permuted else other
    examples = [
        Example(clean=tuple(a), corrupted=tuple(b), positions=(5,), answers=((3,),), wrong=((7,),))
        for a, b in zip(clean, corrupted, strict=True)
    ]
    return Task("same answer", tuple(examples), tuple(examples[:2]))


def discover(model, task, algorithm, ablation, metric="logit_diff"):
    """The discovery, and what was warned about cancelling."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = cd.discover(
            model, task, algorithm, ablation=ablation, metric=metric, allow_chance=True, **COARSE.get(algorithm, {})
        )
    return found, [str(one.message) for one in caught if issubclass(one.category, CircuitdiscWarning)
                   and "cancels" in str(one.message)]  # fmt: skip


def literal_changes(model, task, ablation, mask, metric):
    """Metric of the masked run minus the full model's, example by example."""
    (chunk,) = Patching(model, Ablation(ablation), task.train, memory="64GiB").hold(task.train)
    measure = get_metric(metric)
    cut, full = (
        chunk.batch.per_example(measure(masked_run(model, chunk, one), chunk.labels)) for one in (mask, model.graph.edge_mask)
    )
    return (cut - full).numpy()


@pytest.mark.parametrize("algorithm", DECIDE + SCORE)
def test_mean_ablation_of_a_linear_metric_is_said_to_cancel(linear, algorithm):
    task = same_answer_everywhere()
    found, said = discover(linear, task, algorithm, "mean")
    assert len(said) == 1, said
    assert found.circuit.provenance.notes[-1] == said[0]
    assert "metric=kl" in said[0]
    assert "under mean ablation" in said[0]
    assert len(said[0]) < 500
    if algorithm in ("acdc", "bisect", "refine"):
        changes = literal_changes(linear, task, "mean", np.zeros_like(linear.graph.edge_mask), "logit_diff")
        assert found.circuit == Circuit.empty(linear.graph)
        assert abs(changes.mean()) < 1e-12
        assert f"{np.abs(changes).mean():.3g} on an example" in said[0]


@pytest.mark.parametrize("algorithm", ["acdc", "eap", "exact"])
def test_prompts_in_another_order_cancel_under_resample_ablation(linear, algorithm):
    _, said = discover(linear, same_answer_everywhere(permuted=True), algorithm, "resample")
    assert len(said) == 1
    assert "under mean ablation" not in said[0]


@pytest.mark.parametrize("algorithm", ["acdc", "exact", "eap_ig"])
def test_the_metric_that_is_named_sees_it(linear, algorithm):
    found, said = discover(linear, same_answer_everywhere(), algorithm, "mean", metric="kl")
    assert not said
    assert found.circuit.n_edges > 0


@pytest.mark.parametrize("algorithm", DECIDE + SCORE)
@pytest.mark.parametrize("ablation", ["mean", *(pytest.param(name, marks=pytest.mark.long) for name in ("zero", "resample"))])
def test_nothing_is_said_where_effects_do_not_cancel(algorithm, ablation):
    model = model_of("layer_norm_gated")
    _, said = discover(model, random_task(model, 6), algorithm, ablation)
    assert not said


def test_an_empty_circuit_that_costs_the_metric_is_another_matter(linear):
    task = random_task(model_of("layer_norm_gated"), 6)
    model = model_of("layer_norm_gated")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CircuitdiscWarning)
        found = cd.discover(model, task, "acdc", ablation="zero", metric="log_prob", threshold=1e6, allow_chance=True)
    assert found.circuit.n_edges == 0


def test_a_joint_search_says_it_too(linear):
    context = SearchContext("logit_diff")
    with pytest.warns(CircuitdiscWarning, match="Everything cancels"):
        found = joint_discover([linear, linear], same_answer_everywhere(), "acdc", Ablation("mean"), context)
    assert "cancels" in found.circuit.provenance.notes[-1]
