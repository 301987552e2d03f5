"""Direct logit attribution: every component against hooks on the Hugging Face module, and the sum against its own logits."""

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import TOYS, model_of, shared

from circuitdisc.engine.measuring import mean_intervals
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.heads import logit_attribution
from circuitdisc.stats import interval, partition
from circuitdisc.tasks.base import Example, Task

FAMILIES = ["gpt2", "llama", "mistral", "qwen2", "gpt_neox", "gemma2"]
# transformers computes root-mean-square norms and rotary angles in float32, whatever the model's precision
MODULE_PRECISION = {"gpt2": 1e-9}


def logit_difference(logits, example: Example) -> torch.Tensor:
    """Mean over answer positions of mean right minus mean wrong logit. logits [T, V]"""
    rows = zip(example.positions, example.answers, example.wrong, strict=True)
    return torch.stack([logits[p, list(right)].mean() - logits[p, list(wrong)].mean() for p, right, wrong in rows]).mean()


# --- the truth: what the module's own parts write, caught by hooks ---------------------------------------------------------


def parts_of(family, module):
    """Per block: the module that multiplies by W_O, W_O with inputs first, the attention's bias, what comes after both."""
    if family == "gpt2":
        blocks = [(b.attn.c_proj, b.attn.c_proj.weight, b.attn.c_proj.bias, None, b.mlp) for b in module.transformer.h]
        return blocks, module.transformer.ln_f
    if family == "gpt_neox":
        layers = module.gpt_neox.layers
        blocks = [(b.attention.dense, b.attention.dense.weight.T, b.attention.dense.bias, None, b.mlp) for b in layers]
        return blocks, module.gpt_neox.final_layer_norm
    after = family == "gemma2"
    blocks = [
        (
            b.self_attn.o_proj,
            b.self_attn.o_proj.weight.T,
            None,
            b.post_attention_layernorm if after else None,
            b.post_feedforward_layernorm if after else b.mlp,
        )
        for b in module.model.layers
    ]
    return blocks, module.model.norm


@torch.no_grad()
def truth(model, family, example):
    """Name -> what the component adds on one example; and the difference of the logits before any cap."""
    module, caught, handles = model.module, {}, []
    blocks, final_norm = parts_of(family, module)

    def catch_input(key):
        return lambda _, args: caught.__setitem__(key, args[0][0])

    def catch_output(key):
        return lambda _, args, out: caught.__setitem__(key, out[0])

    for layer, (project, _, _, after, mlp) in enumerate(blocks):
        handles.append(project.register_forward_pre_hook(catch_input(("z", layer))))
        handles.append(mlp.register_forward_hook(catch_output(("mlp", layer))))
        if after is not None:
            handles.append(after.register_forward_pre_hook(catch_input(("attention", layer))))
    handles.append(final_norm.register_forward_pre_hook(catch_input("final")))
    handles.append(module.get_output_embeddings().register_forward_hook(catch_output("logits")))
    first = (module.transformer.h if family == "gpt2" else module.base_model.layers)[0]
    handles.append(first.register_forward_pre_hook(catch_input("embedding")))
    module(input_ids=torch.tensor([example.clean]), attention_mask=torch.ones(1, len(example), dtype=torch.long))
    for handle in handles:
        handle.remove()
    written = {"input": caught["embedding"]}
    width = blocks[0][1].shape[0] // model.graph.n_heads
    for layer, (_, W_O, bias, after, _) in enumerate(blocks):
        scale = torch.ones(1)
        if after is not None:
            scale = (1 + after.weight) / (caught["attention", layer].pow(2).mean(-1, keepdim=True) + after.eps).sqrt()
        for head in range(model.graph.n_heads):
            some = slice(head * width, (head + 1) * width)
            written[f"a{layer}.h{head}"] = caught["z", layer][:, some] @ W_O[some] * scale
        if bias is not None:
            written[f"a{layer}.bias"] = bias.expand_as(caught["final"])
        written[f"m{layer}"] = caught["mlp", layer]
    held = Held(family, final_norm, caught["final"], module.get_output_embeddings().weight)
    found = {name: logit_difference(held(value), example) for name, value in written.items()}
    if hasattr(final_norm, "bias"):
        shift = (final_norm.bias @ held.W_U.T).expand(len(example), -1)
        found["norm_shift"] = logit_difference(shift, example)
    return found, logit_difference(caught["logits"], example)


class Held:
    """The final norm with the scale of one residual, then the unembedding."""

    def __init__(self, family, final_norm, residual, W_U):
        self.centres = family in ("gpt2", "gpt_neox")
        centred = residual - residual.mean(-1, keepdim=True) if self.centres else residual
        eps = final_norm.eps if hasattr(final_norm, "eps") else final_norm.variance_epsilon
        self.scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        self.weight, self.W_U = final_norm.weight + (1 if family == "gemma2" else 0), W_U

    def __call__(self, x):
        x = x - x.mean(-1, keepdim=True) if self.centres else x
        return x / self.scale * self.weight @ self.W_U.T


@pytest.mark.parametrize("family", FAMILIES)
def test_every_component_and_the_sum_are_the_modules_own(family):
    model, close = shared(family), MODULE_PRECISION.get(family, 2e-6)
    examples = random_examples(model, 4)
    found = logit_attribution(model, examples)
    for index, example in enumerate(examples):
        expected, difference = truth(model, family, example)
        assert set(found.names) == set(expected)
        for name, row in zip(found.names, found.values, strict=True):
            assert row[index] == pytest.approx(float(expected[name]), abs=close), name
        assert found.logit_diff[index] == pytest.approx(float(difference), abs=close)
    assert found.error < 1e-9
    assert ("before the cap" in found.note) == (family == "gemma2")


def own_difference(model, example):
    tokens = torch.tensor([example.clean])
    logits = model.own_logits(tokens, torch.ones_like(tokens), torch.arange(len(example))[None])[0]
    return float(logit_difference(logits, example))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", list(TOYS))
def test_toys_add_up_to_their_own_logits(name, split):
    model = model_of(name, split_embeddings=split)
    examples = random_examples(model, 3)
    found = logit_attribution(model, examples)
    own = [own_difference(model, example) for example in examples]
    assert found.values.sum(0) == pytest.approx(own, abs=1e-9)
    assert found.after_layer[-1] == pytest.approx(own, abs=1e-9)
    assert "unembed_bias" in found.names
    assert ("pos_embed" in found.names) == split
    assert ("norm_shift" in found.names) == (TOYS[name].get("normalization_type") == "LN")


@pytest.mark.parametrize("family", [*FAMILIES, "own_output_vocabulary"])
def test_single_precision_adds_up_within_rounding(family):
    model = model_of(family, torch.float32)
    assert logit_attribution(model, random_examples(model, 6)).error < 1e-4


def test_a_lone_component_removed_by_hand():
    """The difference after each layer is what is left when everything later is taken out of the residual."""
    model = shared("gpt2")
    (example,) = random_examples(model, 2)[1:]
    found = logit_attribution(model, [example])
    expected, difference = truth(model, "gpt2", example)
    for layer in range(model.graph.n_layers):
        later = [float(value) for name, value in expected.items() if name[0] in "am" and int(name[1]) > layer]
        assert found.after_layer[layer + 1, 0] == pytest.approx(float(difference) - sum(later), abs=1e-9)
    rows = found.by_layer()
    assert rows[-1]["after"] == pytest.approx(float(difference), abs=1e-9)
    assert rows[1]["mlp"] == pytest.approx(float(expected["m0"]), abs=1e-9)


def test_small_chunks_change_nothing_and_the_table_is_sorted():
    model = shared("llama")
    task = random_task(model, n=7)
    whole, pieces = (logit_attribution(model, task, memory=memory) for memory in ("1GiB", "40KB"))
    assert pieces.values == pytest.approx(whole.values, abs=1e-12)
    sizes = [abs(row["adds"]) for row in whole.table()]
    assert sizes == sorted(sizes, reverse=True)
    assert whole.heads[1, 2] == whole.mean[whole.names.index("a1.h2")]
    assert whole.to_dict()["n"] == 7


def test_intervals_agree_with_those_of_scores():
    values = np.random.default_rng(0).normal(size=(3, 40)) + np.array([[0.0], [5.0], [-2.0]])
    over = partition(40, [f"{index % 8}" for index in range(40)])
    low, high = mean_intervals(values, over, 0.9)
    for row in range(3):
        assert (low[row], high[row]) == pytest.approx(interval((values[row],), groups=over, confidence=0.9).ends)
    constant = mean_intervals(np.ones((1, 30)))
    assert (constant[0][0], constant[1][0]) == (1.0, 1.0)
    assert np.isnan(mean_intervals(np.ones((2, 1)))[0]).all()


def test_bad_input_gets_a_sentence():
    model = shared("gpt2")
    task = random_task(model, n=2)
    with pytest.raises(UnknownName, match="Did you mean heldout"):
        logit_attribution(model, task, split="held_out")
    with pytest.raises(BadTask, match="no examples in split 'train'"):
        logit_attribution(model, Task("empty", (), task.heldout), split="train")
    without = Example((1, 2), None, (1,), ((3,),), ((),))
    with pytest.raises(BadSetting, match="needs wrong answers"):
        logit_attribution(model, [without])
    with pytest.raises(BadSetting, match="confidence=1"):
        logit_attribution(model, task, confidence=1)
    with pytest.raises(BadSetting, match="fast components"):
        logit_attribution(model_of("gpt2", components="hooks"), task)


def test_the_cut_model_is_left_as_it_was():
    """`mlp` in two steps is `mlp`; a cap is left out only where that is asked for."""
    cut = shared("gemma2").components
    x = torch.randn(2, 3, cut.spec.d_model, dtype=cut.dtype)
    assert torch.equal(cut.mlp_output(0, cut.hidden(0, x)), cut.mlp(0, x))
    cap = cut.spec.logit_softcap
    assert cap is not None
    assert cut.unembed(x) == pytest.approx(cap * (cut.unembed(x, capped=False) / cap).tanh())
