"""Contract 1 and 2: the graph is exactly the model, and every fast run equals the slow reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import random_examples
from models import TOYS, model_of
from reference import masked_run

from circuitdisc.ablation import Ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.selfcheck import check_model
from circuitdisc.errors import BadModel
from circuitdisc.models.components import Components
from circuitdisc.models.families import all_families

FAMILIES = [*(kind for family in all_families() for kind in family.titles), "falcon_alibi", "falcon_groups"]
# All other families' own code computes norms, softmaxes or rotary angles in float32 whatever the dtype.
OWN_FLOAT64 = {"gpt2", "falcon", "falcon_groups"}
ABLATIONS = [Ablation("zero"), Ablation("mean"), Ablation("mean", scope="dataset"), Ablation("resample")]


def differences(model, ablation, seed=0):
    """Largest differences, relative to the largest logit.

    The full circuit against the model itself; the empty and a random 40 % circuit against the reference.
    """
    examples = random_examples(model, 6)
    patching = Patching(model, ablation, examples)
    (chunk,) = patching.hold(examples)
    batch, full = chunk.batch, model.graph.edge_mask
    own = model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)
    found = {"full": patching.circuit_logits(chunk, full) - own[batch.read_example, batch.read_position]}
    some = full & (np.random.default_rng(seed).random(full.shape) < 0.4)
    for name, mask in (("empty", np.zeros_like(full)), ("random", some)):
        found[name] = patching.circuit_logits(chunk, mask) - masked_run(model, chunk, mask)
    scale = max(1.0, float(own.abs().max()))
    return {name: float(difference.abs().max()) / scale for name, difference in found.items()}


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda a: a.label)
@pytest.mark.parametrize("family", [*FAMILIES, *TOYS])
def test_runs_equal_the_reference_in_float64(family, ablation):
    found = differences(model_of(family), ablation)
    assert found["full"] < (1e-9 if family in {*OWN_FLOAT64, *TOYS} else 1e-6)
    assert found["empty"] < 1e-9
    assert found["random"] < 1e-9


@pytest.mark.parametrize("family", [*FAMILIES, *TOYS])
def test_runs_equal_the_reference_in_float32(family):
    model = model_of(family, torch.float32)
    for ablation in ABLATIONS:
        found = differences(model, ablation)
        assert max(found.values()) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "attention_only"])
def test_embeddings_apart(family):
    model = model_of(family, split_embeddings=True)
    assert model.graph.senders[1].name == "pos_embed"
    assert max(differences(model, Ablation("resample")).values()) < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_hook_based_fallback_equals_the_components(family):
    """Two implementations that share no code: functions of the weights, and hooks in TransformerLens's bridge."""
    fast, slow = model_of(family), model_of(family, components="hooks")
    assert fast.graph == slow.graph
    check_model(slow)
    examples = random_examples(fast, 4)
    mask = fast.graph.edge_mask & (np.random.default_rng(1).random(fast.graph.edge_mask.shape) < 0.5)
    for ablation in ABLATIONS:
        logits = [next(iter(p.chunks(examples))) for p in (Patching(m, ablation, examples) for m in (fast, slow))]
        runs = [
            Patching(m, ablation, examples).circuit_logits(chunk, mask) for m, chunk in zip((fast, slow), logits, strict=True)
        ]
        torch.testing.assert_close(runs[0], runs[1], atol=1e-6, rtol=0)


def test_fallback_runs_an_architecture_without_components():
    """Grouped queries are ungrouped, the bridge's hooks do the rest."""
    model = model_of("qwen3", components="hooks")
    check_model(model)
    assert model.graph.n_heads == 4


@pytest.mark.parametrize("family", ["opt", "gptj"])
def test_an_architecture_that_cannot_be_split_is_refused_with_the_reason(family):
    with pytest.raises(BadModel, match="cannot be cut at heads and inputs"):
        model_of(family, components="hooks")


def test_heads_that_do_not_add_up_are_refused_with_the_numbers():
    with pytest.raises(BadModel, match=r"Sum of all senders.*relative difference"):
        check_model(model_of("gemma2", components="hooks"))


@pytest.mark.parametrize("family", [*FAMILIES, *TOYS])
def test_self_check_passes(family):
    check_model(model_of(family, torch.float32))


def test_self_check_refuses_a_graph_that_is_not_the_model():
    model = model_of("no_norm")
    cut = Components(replace(model.components.spec, attn_scale=(0.123, 0.123)), model.components.weights)
    wrong = replace(model, backend=cut)
    with pytest.raises(BadModel, match="the computation graph is not the model"):
        check_model(wrong)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda a: a.label)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_left_and_right_padding_agree(family, ablation):
    model = model_of(family)
    examples = random_examples(model, 6)
    mask = model.graph.edge_mask & (np.random.default_rng(2).random(model.graph.edge_mask.shape) < 0.5)
    runs = []
    for side in ("right", "left"):
        patching = Patching(model, ablation, examples, padding_side=side)
        (chunk,) = patching.hold(examples)
        runs.append(patching.circuit_logits(chunk, mask))
    torch.testing.assert_close(runs[0], runs[1], atol=1e-9, rtol=0)


def test_results_do_not_depend_on_the_memory_budget():
    model = model_of("gpt2")
    examples = random_examples(model, 8)
    mask = model.graph.edge_mask & (np.random.default_rng(3).random(model.graph.edge_mask.shape) < 0.5)
    from circuitdisc.metrics import METRICS

    metrics = [METRICS["logit_diff"], METRICS["kl"]]
    found = []
    for memory in ("4GiB", "200kB"):
        patching = Patching(model, Ablation("mean"), examples, memory=memory)
        found.append(patching.evaluate(examples, {"c": mask}, metrics)["c"])
    assert Patching(model, Ablation("zero"), examples, memory="200kB").n_chunks(examples) > 1
    for name in ("logit_diff", "kl"):
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-12, rtol=0)
