"""Neurons: masked runs and importance against hooks on the Hugging Face module, one prompt and one neuron at a time."""

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import model_of, shared

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.engine.neuron_run import NeuronRuns
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadModel, BadSetting, GraphMismatch, UnknownName
from circuitdisc.heads import neuron_table, neuron_tokens, neurons
from circuitdisc.heads.neurons.importance import rise
from circuitdisc.metrics import METRICS
from circuitdisc.models.components import Components
from circuitdisc.tasks.base import collate

# transformers computes root-mean-square norms and rotary angles in float32, whatever the model's precision
MODULE_PRECISION = {"gpt2": 1e-9, "llama": 5e-6, "gemma2": 5e-6, "gpt_neox": 5e-6}


# --- the truth: hooks on the module ----------------------------------------------------------------------------------------


def places(family, block):
    """Where a block's neurons are read (the input of its last linear layer), that layer's weight (neurons first), the
    module before the MLP whose input is the residual, and the module whose input all heads' values are."""
    if family == "gpt2":
        return block.mlp.c_proj, block.mlp.c_proj.weight, block.ln_2, block.attn.c_proj
    if family == "gpt_neox":
        return block.mlp.dense_4h_to_h, block.mlp.dense_4h_to_h.weight.T, None, block.attention.dense
    before = block.pre_feedforward_layernorm if family == "gemma2" else block.post_attention_layernorm
    return block.mlp.down_proj, block.mlp.down_proj.weight.T, before, block.self_attn.o_proj


def blocks_of(family, module):
    return module.transformer.h if family == "gpt2" else module.base_model.layers


@contextmanager
def hooked(pairs):
    """Pre-forward hooks on modules: each sees the module's input [T, X] and may return another."""

    def wrap(change):
        def hook(_, args):
            changed = change(args[0][0])
            return None if changed is None else (changed[None], *args[1:])

        return hook

    handles = [module.register_forward_pre_hook(wrap(change)) for module, change in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def module_logits(model, tokens):
    ids = torch.tensor([tokens])
    return model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def catch(found, key):
    return lambda x: found.__setitem__(key, x.clone())


def mean_activations(model, family, examples):
    """Average of every neuron over all tokens of the prompts. [L, M]"""
    rows = {}
    for example in examples:
        found = {}
        pairs = [(places(family, b)[0], catch(found, layer)) for layer, b in enumerate(blocks_of(family, model.module))]
        with hooked(pairs):
            module_logits(model, example.clean)
        for layer, values in found.items():
            rows.setdefault(layer, []).append(values)
    return [torch.cat(rows[layer]).mean(0) for layer in sorted(rows)]


def masked_logits(model, family, example, masked, means):
    """Logits at the readings when the module itself is made to carry `means` at the masked neurons."""

    def replace(layer):
        return lambda x: torch.where(torch.from_numpy(masked[layer]), means[layer], x)

    pairs = [(places(family, b)[0], replace(layer)) for layer, b in enumerate(blocks_of(family, model.module))]
    with hooked(pairs):
        return module_logits(model, example.clean)[list(example.positions)]


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_masked_runs_are_the_modules_own_with_neurons_replaced(family, kind):
    model = shared(family)
    task = random_task(model, n=4)
    ablation = Ablation(kind, scope="dataset")
    runs = NeuronRuns(Patching(model, ablation, task.train), task.train)
    masked = np.random.default_rng(0).random((model.graph.n_layers, runs.n_neurons)) < 0.3
    masked[-1] = masked[-1] & (family != "llama")  # a layer may be left alone
    means = mean_activations(model, family, task.train)
    means = means if kind == "mean" else [torch.zeros_like(mean) for mean in means]
    metrics = [METRICS["logit_diff"], METRICS["log_prob"]]
    found = runs.evaluate(task.heldout, {"some": masked, "none": np.zeros_like(masked)}, metrics)
    for name, one in (("some", masked), ("none", np.zeros_like(masked))):
        logits = torch.cat([masked_logits(model, family, example, one, means) for example in task.heldout])
        batch = collate(task.heldout)
        for metric in metrics:
            expected = batch.per_example(metric(logits, batch.labels))
            assert found[name][metric.name].numpy() == pytest.approx(expected.numpy(), abs=MODULE_PRECISION[family])
    assert not torch.allclose(found["some"]["logit_diff"], found["none"]["logit_diff"])


def log_right(model, family, x, scale, example, reading):
    """Log-probability of the right answers, read off a residual with the final norm's scale held."""
    module = model.module
    norm = {"gpt2": lambda: module.transformer.ln_f, "gpt_neox": lambda: module.gpt_neox.final_layer_norm}
    norm = norm.get(family, lambda: module.model.norm)()
    if family in ("gpt2", "gpt_neox"):
        y = (x - x.mean()) / scale * norm.weight + norm.bias
    else:
        y = x / scale * (norm.weight + (1 if family == "gemma2" else 0))
    logits = y @ module.get_output_embeddings().weight.T
    cap = getattr(module.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * (logits / cap).tanh()
    return torch.log(logits.softmax(-1)[list(example.answers[reading])].sum())


def slow_importance(model, family, example, method, without=()):
    """Importance of every neuron [L, M] on one example, heads in `without` made to write nothing."""
    module, found = model.module, {}
    blocks = blocks_of(family, module)
    width = model.cut.spec.d_head

    def silence(layer):
        def change(z):
            z = z.clone()
            for name in without:
                if int(name[1]) == layer:
                    head = int(name.split("h")[1])
                    z[:, head * width : (head + 1) * width] = 0
            return z

        return change

    pairs = []
    for layer, block in enumerate(blocks):
        down, _, before, heads = places(family, block)
        pairs += [(down, catch(found, ("hidden", layer))), (heads, silence(layer))]
        if before is not None:
            pairs.append((before, catch(found, ("before", layer))))
        if family == "gemma2":
            pairs.append((block.post_feedforward_layernorm, catch(found, ("out", layer))))
    final_norm = {"gpt2": lambda: module.transformer.ln_f, "gpt_neox": lambda: module.gpt_neox.final_layer_norm}
    pairs.append((final_norm.get(family, lambda: module.model.norm)(), catch(found, "final")))
    with hooked(pairs):
        module_logits(model, example.clean)
    rows = []
    for layer, block in enumerate(blocks):
        W_out = places(family, block)[1]
        values = torch.zeros(W_out.shape[0], dtype=torch.float64)
        for reading, position in enumerate(example.positions):
            final = found["final"][position]
            centred = final - final.mean() if family in ("gpt2", "gpt_neox") else final
            scale = (centred.pow(2).mean() + model.cut.spec.eps).sqrt()
            base = found["before", layer][position] if method == "added" else final
            for neuron in range(W_out.shape[0]):
                v = found["hidden", layer][position, neuron] * W_out[neuron]
                if family == "gemma2":
                    out, after = found["out", layer][position], block.post_feedforward_layernorm
                    v = v / (out.pow(2).mean() + after.eps).sqrt() * (1 + after.weight)
                pair = (base + v, base) if method == "added" else (base, base - v)
                left, right = (log_right(model, family, x, scale, example, reading) for x in pair)
                values[neuron] += (left - right) / len(example.positions)
        rows.append(values)
    return torch.stack(rows).numpy()


@pytest.mark.parametrize(
    ("family", "method"), [("gpt2", "added"), ("gpt2", "removed"), ("llama", "added"), ("gemma2", "added")]
)
def test_importance_is_that_of_adding_one_neuron_after_the_other(family, method):
    model = shared(family)
    task = random_task(model, n=2)
    with torch.no_grad():
        slow = np.stack([slow_importance(model, family, example, method) for example in task.train], axis=-1)
    found = neurons(model, task, method=method)
    assert found.values == pytest.approx(slow, abs=MODULE_PRECISION[family])
    assert found.values == pytest.approx(neurons(model, task, method=method, memory="60KB").values, abs=1e-12)
    assert np.abs(slow).max() > 1e-3


@pytest.mark.parametrize("size", [1e-6, 1.0, 60.0, 3000.0])
def test_small_and_huge_neurons_keep_their_digits(size):
    """In single precision, against double; a huge neuron takes all probability from the right answers, or gives it."""
    generator = torch.Generator().manual_seed(0)
    base, logits = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((50,), (40, 50)))
    amount, answers = torch.full((40,), size, dtype=torch.float64), torch.tensor([3, 7])
    probabilities = (base + amount[:, None] * logits).log_softmax(-1)[:, answers].logsumexp(-1)
    expected = probabilities - base.log_softmax(-1)[answers].logsumexp(-1)
    assert rise(None, base, amount, logits, answers).numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-15)
    single = rise(None, base.float(), amount.float(), logits.float(), answers)
    assert single.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_change_is_what_is_lost_without_the_heads(family):
    model = shared(family)
    task = random_task(model, n=2)
    heads = ["a0.h1", "a1.h3"]
    with torch.no_grad():
        slow = np.stack([slow_importance(model, family, example, "added", heads) for example in task.train], axis=-1)
    found = neurons(model, task, knock_out=heads, ablation="zero", layers=[1])
    assert found.without == pytest.approx(slow[1:2], abs=MODULE_PRECISION[family])
    full = neurons(model, task).values[1:2]
    assert found.change == pytest.approx((full - slow[1:2]).mean(-1), abs=MODULE_PRECISION[family])
    best = np.unravel_index(found.change.argmax(), found.change.shape)
    assert found.order()[0] == f"m1.n{best[1]}"
    row = found.table(1)[0]
    assert row["neuron"] == found.order("change")[0]
    assert row["change"] == pytest.approx(row["importance"] - row["without heads"])
    assert row["low"] <= row["change"] <= row["high"]


def test_parallel_blocks_leave_out_their_own_mlp_alone():
    """GPT-NeoX: the residual that a neuron is added to has the block's attention in it; all neurons together are the MLP."""
    model = shared("gpt_neox")
    (example,) = random_examples(model, 2)[1:]
    cut = model.cut
    assert isinstance(cut, Components)
    patching = Patching(model, Ablation("zero"), [example])
    last = model.graph.n_layers - 1
    trace = NeuronRuns(patching, None).trace([example], [last])
    W_out, b_out = cut.weights.layers[last].W_out, cut.weights.layers[last].b_out
    assert W_out is not None
    assert b_out is not None
    rebuilt = trace.before[last] + trace.hidden[last] @ W_out + b_out
    assert rebuilt.numpy() == pytest.approx(trace.final.numpy(), abs=1e-9)
    assert len(trace.final) == len(example.positions)


def test_mask_and_keep_tables_are_masked_runs():
    model = shared("llama")
    task = random_task(model, n=5)
    order = neurons(model, task, layers=[1]).order()
    found = neuron_table(model, task, order, sizes=[2, 10], layers=[1], n_random=3, ablation="zero", metric="log_prob")
    width = found.n_neurons
    zeros = [torch.zeros(width, dtype=torch.float64)] * 2
    batch = collate(task.heldout)
    for k, size in enumerate([2, 10]):
        top = [int(name.split("n")[1]) for name in order[:size]]
        for doing, chosen in (("mask", top), ("keep", [j for j in range(width) if j not in top])):
            masked = np.zeros((2, width), dtype=bool)
            masked[1, chosen] = True
            logits = torch.cat([masked_logits(model, "llama", example, masked, zeros) for example in task.heldout])
            for name in ("log_prob", "accuracy"):
                expected = batch.per_example(METRICS[name](logits, batch.labels)).numpy()
                assert found.values[name][doing][k] == pytest.approx(expected, abs=5e-6)
    assert found.random["log_prob"]["mask"].shape == (2, 3)
    assert np.ptp(found.random["log_prob"]["keep"][0]) > 0
    rows = found.table()
    assert [(row["neurons"], row["k"]) for row in rows[:3]] == [("full model", 0), ("mask top k", 2), ("mask top k", 10)]
    everything = neuron_table(model, task, order, sizes=[width], layers=[1], n_random=2, ablation="zero")
    assert everything.values["logit_diff"]["keep"][0] == pytest.approx(everything.full["logit_diff"], abs=1e-9)
    assert np.isnan(everything.random["logit_diff"]["mask"][0]).all()  # no other neurons can be drawn
    assert everything.table()[1]["metric, random"] is None


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "layer_norm_gated"])
def test_tokens_of_a_neuron_are_those_that_its_row_raises(family):
    model = shared(family)
    cut = model.cut
    assert isinstance(cut, Components)
    for name, layer, index in (("m0.n3", 0, 3), ("m1.n11", 1, 11)):
        block = cut.weights.layers[layer]
        assert block.W_out is not None
        v = block.W_out[index]
        if block.norm_after_mlp is not None and block.norm_after_mlp.scale is not None:
            v = v * block.norm_after_mlp.scale
        held = v - v.mean() if cut.spec.norm == "layer" else v
        assert cut.weights.norm_final.scale is not None
        raised = (held * cut.weights.norm_final.scale) @ cut.weights.W_U
        raised = raised - raised.mean()
        (found,) = neuron_tokens(model, [name], k=4)
        expected = sorted(range(len(raised)), key=lambda token: -float(raised[token]))
        assert [int(token) for token in found.raised] == expected[:4]
        assert [int(token) for token in found.lowered] == expected[::-1][:4]
        assert found.raised_by == pytest.approx([float(raised[token]) for token in expected[:4]])


def test_tokens_are_words_where_there_is_a_tokenizer():
    model = cd.load_model("tpp/lightweight")
    (found,) = neuron_tokens(model, ["m0.n0"], k=3)
    assert all(model.tokenizer.convert_tokens_to_ids(token) != model.tokenizer.unk_token_id for token in found.raised)
    assert found.row()["raises"] == " ".join(found.raised)


def test_bad_input_gets_a_sentence():
    model = shared("gpt2")
    task = random_task(model, n=2)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"knock_out": ["a0.h9"]}, GraphMismatch, "'a0.h9' is not a head"),
        ({"layers": [3]}, BadSetting, "give layers from 0 to 2"),
        ({"method": "add"}, UnknownName, "Did you mean added"),
    ]
    for settings, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            neurons(model, task, **settings)
    with pytest.raises(BadModel, match="no MLPs"):
        neurons(shared("attention_only"), random_task(shared("attention_only"), n=2))
    with pytest.raises(BadSetting, match="fast components"):
        neurons(model_of("gpt2", components="hooks"), task)
    with pytest.raises(BadSetting, match="no head was knocked out"):
        neurons(model, task, layers=[0]).order("change")
    cases = [
        ({"order": ["m0.n200"]}, GraphMismatch, "'m0.n200' is not a neuron"),
        ({"order": ["m0.n1", "m0.n1"]}, BadSetting, "a neuron twice"),
        ({"order": ["m0.n1"], "layers": [1]}, BadSetting, "m0.n1, which lies outside"),
        ({"order": ["m0.n1"], "sizes": [2]}, BadSetting, "none above the 1 neurons"),
        ({"order": ["m0.n1"], "sizes": [1], "ablation": "resample"}, BadSetting, "use ablation=zero"),
    ]
    for settings, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            neuron_table(model, task, **settings)
