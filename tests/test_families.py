"""A model family is one file with a `FAMILY` and one line in the registry: this file is such a file, for OPT."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import hugging_face, model_of
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.engine.cross.plan import shapes_from_config, shapes_of
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.selfcheck import check_model
from circuitdisc.errors import BadModel, BadSetting
from circuitdisc.models import families
from circuitdisc.models.components import LayerWeights, ModelSpec, Weights
from circuitdisc.models.families.common import layer_norm, sizes, split_bias, split_input, split_output, transposed
from circuitdisc.models.families.family import Family


def translate(hf_model: Any) -> tuple[ModelSpec, Weights]:
    """Specification and weights of an `OPTForCausalLM`: its positions are stored two rows further on."""
    config, body = hf_model.config, hf_model.model.decoder
    n_heads, d_head = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    spec = ModelSpec(
        **sizes(config),
        d_head=d_head,
        norm="layer",
        eps=body.final_layer_norm.eps,
        activation=config.activation_function,
        attn_scale=(d_head**-0.5,) * config.num_hidden_layers,
    )
    weights = Weights(
        W_E=body.embed_tokens.weight,
        W_pos=body.embed_positions.weight[2:],
        layers=tuple(_layer(layer, n_heads) for layer in body.layers),
        norm_final=layer_norm(body.final_layer_norm),
        W_U=hf_model.lm_head.weight.t(),
    )
    return spec, weights


def _layer(layer: Any, n_heads: int) -> LayerWeights:
    attention = layer.self_attn
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    return LayerWeights(
        W_Q=split_input(q.weight, n_heads),
        W_K=split_input(k.weight, n_heads),
        W_V=split_input(v.weight, n_heads),
        b_Q=split_bias(q.bias, n_heads),
        b_K=split_bias(k.bias, n_heads),
        b_V=split_bias(v.bias, n_heads),
        W_O=split_output(attention.out_proj.weight, n_heads),
        b_O=attention.out_proj.bias,
        norm_attention=layer_norm(layer.self_attn_layer_norm),
        norm_mlp=layer_norm(layer.final_layer_norm),
        W_in=transposed(layer.fc1),
        b_in=layer.fc1.bias,
        W_out=transposed(layer.fc2),
        b_out=layer.fc2.bias,
    )


FAMILY = Family({"opt": "OPT"}, translate)


@pytest.fixture
def registered(monkeypatch):
    """The one line."""
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, __name__))


def test_a_family_that_nobody_registered_has_no_fast_components():
    with pytest.raises(BadModel, match="no fast components for 'opt'"):
        model_of("opt", components="fast")
    with pytest.raises(BadSetting, match=r"\(GPT-2, GPT-NeoX, Llama, Mistral, Qwen 2, Gemma 2, toys\)"):
        _ = model_of("gpt2", components="hooks").components


@pytest.mark.usefixtures("registered")
def test_a_registered_family_is_the_model_and_runs_every_circuit():
    model = model_of("opt", components="fast")
    assert max(check_model(model).values()) < 1e-6  # OPT's own code takes softmaxes in float32
    examples = random_examples(model, 5)
    patching = Patching(model, Ablation("resample"), examples)
    (chunk,) = patching.hold(examples)
    mask = model.graph.edge_mask & (np.random.default_rng(0).random(model.graph.edge_mask.shape) < 0.4)
    torch.testing.assert_close(patching.circuit_logits(chunk, mask), masked_run(model, chunk, mask), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("registered")
def test_a_registered_family_is_known_wherever_families_are():
    fast, slow = model_of("opt"), model_of("gpt2", components="hooks")
    task = random_task(fast, n=4)
    found = cd.discover(fast, task, "eap_ig", edges=20, allow_chance=True)
    assert found.circuit.n_edges > 0
    with pytest.raises(BadSetting, match="Gemma 2 and OPT; algorithms that only run circuits"):
        cd.discover(slow, task, "eap_ig", edges=20, allow_chance=True)
    with pytest.raises(BadSetting, match="Gemma 2, OPT, toys"):
        _ = slow.components


@pytest.mark.parametrize("kind", [kind for family in families.all_families() for kind in family.titles])
def test_what_a_family_declares_is_what_its_models_have(kind):
    module = hugging_face(kind)
    family = families.find_family(kind)
    assert family is not None
    assert family.translate(module)[1].layers[0].W_gate is not None or not family.gated
    expected = shapes_of(model_of(kind, torch.float32))
    assert shapes_from_config(module.config.to_dict(), 4) == replace(expected, tied=module.config.tie_word_embeddings)


def test_the_reason_why_hooks_do_not_fit_is_the_familys():
    with pytest.raises(BadModel, match="Its norm after attention couples the heads: leave components=auto"):
        check_model(model_of("gemma2", components="hooks"))


def test_no_architecture_belongs_to_two_families_and_nothing_else_has_one():
    kinds = [kind for family in families.all_families() for kind in family.titles]
    assert len(set(kinds)) == len(kinds)
    for name in ("opt", None, ["gpt2"], {}):
        assert families.find_family(name) is None
