"""`zero_folded` is `zero` in a model whose norms and value biases are folded: by hand, and by TransformerLens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from direct_attribution import direct_eap
from examples import random_task
from models import hugging_face, model_of, toy
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.ablation.zero_folded import folded_values
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import get_metric
from circuitdisc.models import cut_hugging_face, cut_toy

METRIC = get_metric("log_prob")
RAW, FOLDED = Ablation("zero"), Ablation("zero_folded")


def fold(module):
    """GPT-2 with its norms and value biases folded, weight by weight."""
    d = module.config.n_embd
    with torch.no_grad():
        for block in module.transformer.h:
            for norm, read in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                read.bias += norm.bias @ read.weight
                read.weight *= norm.weight[:, None]
                norm.weight.fill_(1.0)
                norm.bias.zero_()
            block.attn.c_proj.bias += block.attn.c_attn.bias[2 * d :] @ block.attn.c_proj.weight
            block.attn.c_attn.bias[2 * d :] = 0.0
    return module


def values(model, ablation, task, masks):
    found = Patching(model, ablation, task.train).evaluate(task.train, masks, [METRIC])
    return {name: value[METRIC.name].numpy() for name, value in found.items()}


def carried(model):
    """What every sender carries when cut. [S, 1, 1, D]"""
    examples = random_task(model, 1).train
    (chunk,) = Patching(model, FOLDED, examples).chunks(examples)
    return chunk.ablated


def some_masks(graph):
    generator = np.random.default_rng(0)
    masks = {f"random {i}": graph.edge_mask & (generator.random(graph.edge_mask.shape) < share) for i, share in
             enumerate((0.2, 0.5, 0.9))}  # fmt: skip
    masks |= {"heads": Circuit.from_heads(graph, ["a0.h1", "a1.h2"]).mask, "empty": np.zeros_like(graph.edge_mask)}
    return masks | {"full": graph.edge_mask}


def both():
    raw, folded = (hugging_face("gpt2").double() for _ in range(2))
    return cut_hugging_face(raw, name="raw"), cut_hugging_face(fold(folded), name="folded")


def test_circuits_equal_those_of_the_model_with_folded_weights():
    raw, folded = both()
    task, masks = random_task(raw, 4), some_masks(raw.graph)
    found, wanted = values(raw, FOLDED, task, masks), values(folded, RAW, task, masks)
    for name in masks:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-9, err_msg=name)
    as_it_is = values(raw, RAW, task, masks)
    assert np.abs(as_it_is["heads"] - found["heads"]).max() > 1e-3, "raw zeros are another thing here"
    np.testing.assert_allclose(as_it_is["full"], found["full"], atol=1e-12)


@pytest.mark.parametrize("algorithm", ["acdc", "exact", "eap", "eap_ig", "head_ablation", "path_patching", "bisect"])
def test_searches_equal_those_of_the_model_with_folded_weights(algorithm):
    raw, folded = both()
    task, settings = random_task(raw, 3), {"threshold": 0.02} if algorithm in ("acdc", "bisect") else {}
    if algorithm == "eap_ig":
        settings = {"points": "auto"}
    found, wanted = (
        ALGORITHMS[algorithm].function(model, task, ablation, SearchContext(metric="log_prob"), **settings)
        for model, ablation in ((raw, FOLDED), (folded, RAW))
    )
    assert found.circuit == wanted.circuit
    assert (found.edge_scores is None) == (wanted.edge_scores is None)
    if found.edge_scores is not None and wanted.edge_scores is not None:
        np.testing.assert_allclose(found.edge_scores, wanted.edge_scores, atol=1e-8)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gpt_neox", "layer_norm_gated", "no_norm", "parallel", "gemma2"])
def test_fast_runs_and_gradients_carry_the_constants(family):
    """Every way to run a circuit, and the gradients, read the same constants as the masked run."""
    model = model_of(family)
    task, masks = random_task(model, 3), some_masks(model.graph)
    found = values(model, FOLDED, task, masks)
    (chunk,) = Patching(model, FOLDED, task.train, memory="64GiB").hold(task.train)
    for name, mask in masks.items():
        slow = chunk.batch.per_example(METRIC(masked_run(model, chunk, mask), chunk.labels))
        np.testing.assert_allclose(found[name], slow.numpy(), atol=1e-9, err_msg=name)
    scores = ALGORITHMS["eap"].function(model, task, FOLDED, SearchContext(metric="log_prob")).edge_scores
    wanted = direct_eap(model, FOLDED, task.train, METRIC)
    assert scores is not None
    np.testing.assert_allclose(scores, wanted, atol=1e-9 * np.nanmax(np.abs(wanted)))


def test_without_value_biases_nothing_changes():
    model = model_of("llama")
    assert not carried(model).any()


def test_the_constants_are_what_heads_write_from_biases_alone():
    """Shift times W_V plus b_V, times W_O, head by head; every other sender carries 0."""
    module = toy("layer_norm_gated").double()
    model = cut_toy(module, name="toy")
    constants = carried(model)[:, 0, 0]
    for layer, block in enumerate(model.components.weights.layers):
        for head in range(model.graph.n_heads):
            assert block.norm_attention.shift is not None
            assert block.b_V is not None
            values = block.norm_attention.shift @ block.W_V[head] + block.b_V[head]
            np.testing.assert_allclose(constants[model.graph.sender_index[f"a{layer}.h{head}"]], values @ block.W_O[head])
    others = [index for index, node in enumerate(model.graph.senders) if node.kind != "head"]
    assert not constants[others].any()


def test_transformer_lens_zeroes_the_same_after_its_own_processing():
    """Its compatibility mode folds norms and value biases and centres weights; `hook_z` is where heads are zeroed."""
    bridge_builder = pytest.importorskip("transformer_lens.model_bridge.sources._bridge_builder")
    module = hugging_face("gpt2")
    model = cut_hugging_face(hugging_face("gpt2").double(), name="raw")
    task = random_task(model, 4)
    kept = ["a0.h1", "a1.h0", "a1.h2", "a2.h3"]
    module.config.use_cache = False
    lens = bridge_builder.build_bridge_from_module(
        module, type(module).__name__, hf_config=module.config, tokenizer=None, model_name="local"
    )
    lens.enable_compatibility_mode()

    def zero(layer):
        def hook(z, hook):
            z = z.clone()
            for head in range(model.graph.n_heads):
                if f"a{layer}.h{head}" not in kept:
                    z[:, :, head] = 0
            return z

        return hook

    hooks = [(f"blocks.{layer}.attn.hook_z", zero(layer)) for layer in range(model.graph.n_layers)]
    found, raw = (
        values(model, ablation, task, {"kept": Circuit.from_heads(model.graph, kept).mask})["kept"]
        for ablation in (FOLDED, RAW)
    )
    for index, example in enumerate(task.train):
        with torch.no_grad():
            logits = lens.run_with_hooks(torch.tensor([example.clean]), fwd_hooks=hooks)[0].double()
        logprobs = logits.log_softmax(-1)
        wanted = np.mean([
            float(logprobs[position, list(answers)].logsumexp(-1))
            for position, answers in zip(example.positions, example.answers, strict=True)
        ])  # fmt: skip
        assert found[index] == pytest.approx(wanted, abs=1e-4)
        assert abs(raw[index] - wanted) > 1e-3


def test_what_has_no_such_zero_is_refused():
    with pytest.raises(BadSetting, match="target=output"):
        get_ablation({"kind": "zero_folded", "target": "pattern"})
    slow = model_of("gpt2", components="hooks")
    with pytest.raises(BadSetting, match="zero_folded"):
        cd.discover(slow, random_task(slow), "acdc", ablation="zero_folded", allow_chance=True)
    coupled = model_of("gemma2").components  # whose norm behind attention couples the heads; value biases are given to it here
    layers = [replace(block, b_V=torch.ones_like(block.W_V[:, 0])) for block in coupled.weights.layers]
    coupled.weights = replace(coupled.weights, layers=tuple(layers))
    with pytest.raises(BadSetting, match="norm behind attention"):
        folded_values(coupled)
    assert FOLDED.label == "zero (norms and value biases folded)"
