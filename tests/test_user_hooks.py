"""`cd.run_with_hooks` and `cd.run_with_cache` against plain runs, head circuits and literal sums."""

import pytest
import torch
from examples import random_examples
from models import model_of

import circuitdisc as cd
from circuitdisc.engine.backends import full_run
from circuitdisc.engine.forward import POINTS
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.tasks.base import collate

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "parallel", "attention_only", "bidirectional", "rms_rotary_grouped"]


def rows_of(model, n=3):
    return [example.clean for example in random_examples(model, n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_hooks_it_is_the_model(family):
    model = model_of(family)
    for row in rows_of(model):
        tokens = torch.tensor([row])
        own = model.own_logits(tokens, torch.ones_like(tokens), torch.arange(len(row))[None])
        torch.testing.assert_close(cd.run_with_hooks(model, tokens, {}), own, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_unequal_length_do_not_touch_each_other(family):
    model, rows = model_of(family), rows_of(model_of(family))
    together = cd.run_with_hooks(model, rows, {})
    for row, logits in zip(rows, together, strict=True):
        alone = cd.run_with_hooks(model, [row], {})[0]
        torch.testing.assert_close(logits[: len(row)], alone, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_adds_up_as_the_layers_do(family):
    model = model_of(family)
    _, cache = cd.run_with_cache(model, rows_of(model))
    graph, layers = model.graph, model.components.weights.layers
    for layer in range(graph.n_layers):
        at = {point: values[layer] for point, values in cache.items() if len(values) > layer}
        b_O = layers[layer].b_O
        torch.testing.assert_close(at["attn_out"], at["result"].sum(0) + (0 if b_O is None else b_O))
        written = at["attn_out"] + (at["mlp_out"] if graph.has_mlp else 0)
        torch.testing.assert_close(at["resid_post"], at["resid_pre"] + written)
        group = graph.n_heads // at["v"].shape[0]
        torch.testing.assert_close(at["z"], at["pattern"] @ at["v"].repeat_interleave(group, 0))
    assert set(cache) == set(POINTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_written_apart_are_those_of_one_product(family):
    """`result` is hooked: every head is computed apart; it is not: one product with W_O."""
    model, rows = model_of(family), rows_of(model_of(family))
    apart = cd.run_with_hooks(model, rows, {"result": lambda layer, value: value})
    torch.testing.assert_close(apart, cd.run_with_hooks(model, rows, {}), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_silenced_head_is_a_zero_ablated_one(family):
    model, examples = model_of(family), random_examples(model_of(family), 4)
    batch = collate(examples)

    def silence(layer, result):
        return result * torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=result.dtype)[:, None, None, None] if layer == 1 else result

    logits = cd.run_with_hooks(model, [example.clean for example in examples], {"result": silence})
    heads = [node.name for node in model.graph.senders if node.kind == "head" and node.name != "a1.h1"]
    patching = Patching(model, cd.Ablation("zero"), examples)
    (chunk,) = patching.hold(examples)
    expected = patching.circuit_logits(chunk, cd.Circuit.from_heads(model.graph, heads).mask)
    torch.testing.assert_close(logits[batch.reads], expected, atol=1e-9, rtol=1e-9)


def test_gradients_flow_to_what_hooks_are_made_of():
    model = model_of("gpt2")
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def of(value):
        return cd.run_with_hooks(model, rows_of(model), {"z": lambda layer, z: z * value}).square().sum()

    (gradient,) = torch.autograd.grad(of(share), share)
    step = 1e-5
    literal = (of(share.detach() + step) - of(share.detach() - step)) / (2 * step)
    torch.testing.assert_close(gradient, literal, rtol=1e-6, atol=1e-6)


def test_the_full_run_keeps_what_every_sender_writes():
    model = model_of("llama")
    batch = collate(random_examples(model, 3))
    run = full_run(model, batch.clean, batch.is_token, batch.position_ids)
    _, cache = cd.run_with_cache(model, [example.clean for example in batch.examples], ["result", "mlp_out"])
    rows = [sender for layer in range(model.graph.n_layers) for sender in (*cache["result"][layer], cache["mlp_out"][layer])]
    torch.testing.assert_close(run.senders[1:][:, batch.is_token], torch.stack(rows)[:, batch.is_token])


@pytest.mark.parametrize(
    ("prompts", "hooks", "error", "words"),
    [
        ([[1, 2]], {"resid_prae": lambda layer, x: x}, UnknownName, "Did you mean resid_pre"),
        ([[1, 2]], {"z": lambda layer, x: None}, BadSetting, "gave NoneType"),
        ([[1, 2]], {"z": lambda layer, x: x[:1]}, BadSetting, "where the value has shape"),
        ([], {}, BadTask, "nothing to run"),
        ([[]], {}, BadTask, "nothing to run"),
        ([[1, 400]], {}, BadTask, "no token id 400"),
        ([[1] * 65], {}, BadTask, "65 tokens"),
        ("text", {}, BadTask, "no tokenizer"),
        ([["a"]], {}, BadTask, "lists of token ids"),
    ],
)
def test_bad_input_gets_a_sentence(prompts, hooks, error, words):
    with pytest.raises(error, match=words):
        cd.run_with_hooks(model_of("gpt2"), prompts, hooks)
