"""Metrics from blocks of columns are those of the whole vocabulary: the values, what float32 loses, ACDC's decisions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of, shared
from test_metrics import V, made_up
from torch.utils._python_dispatch import TorchDispatchMode

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.acdc import acdc
from circuitdisc.discovery.base import SearchContext
from circuitdisc.engine.evaluate import n_logits, of_residual
from circuitdisc.engine.memory import columns_at_once
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import METRICS, Labels, log_probabilities

IN_BLOCKS = sorted(name for name, metric in METRICS.items() if metric.of_blocks is not None)
THRESHOLDS = {"kl": 1e-3, "log_prob": 0.02, "prob_diff": 1e-3}
CASES = {
    "layer norm, no bias": ("gpt2", {}),
    "bias": ("layer_norm_gated", {}),
    "root-mean-square norm": ("llama", {}),
    "softcap": ("gemma2", {}),
    "another output vocabulary": ("own_output_vocabulary", {}),
    "no norm": ("no_norm", {}),
    "hooks": ("gpt2", {"components": "hooks"}),
}


def of_blocks(metric, logits, labels, width):
    assert metric.of_blocks is not None
    return metric.of_blocks(logits.split(width, dim=-1), labels)


@pytest.fixture
def narrow(monkeypatch):
    """Blocks of 7 columns."""
    monkeypatch.setattr("circuitdisc.engine.memory.BYTES_OF_BLOCK", {"cpu": 0})
    monkeypatch.setattr("circuitdisc.engine.memory.LEAST_COLUMNS", 7)


def test_which_metrics_need_not_see_the_whole_vocabulary():
    assert IN_BLOCKS == ["kl", "log_prob", "prob_diff"]
    assert all(METRICS[name].columns == "all" for name in IN_BLOCKS)


@pytest.mark.parametrize("name", IN_BLOCKS)
@settings(deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, V), shift=st.sampled_from([0.0, -100.0, 700.0]))
def test_values_are_those_of_the_whole_vocabulary(name, seed, width, shift):
    logits, *_, labels = made_up(seed)
    rows = torch.stack([logits, logits.flip(-1), logits * 20]) + shift
    before = rows.clone()
    wanted = METRICS[name](rows, labels)
    torch.testing.assert_close(of_blocks(METRICS[name], rows, labels, width), wanted, atol=1e-12, rtol=1e-12)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_large_logits_do_not_overflow(name):
    logits = torch.tensor([[-1e4, 0.0, 1e4]])
    token = torch.tensor([[2]]), torch.tensor([[True]]), torch.tensor([[0]]), torch.tensor([[True]])
    labels = Labels(*token, torch.tensor([[-2e4, -1e4, 0.0]]))
    assert of_blocks(METRICS[name], logits, labels, 1).tolist() == METRICS[name](logits, labels).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("peak", [1.0, 6.0])
@pytest.mark.parametrize("distance", [1e-3, 3e-2, 1.0])
def test_a_divergence_loses_no_more_in_float32_than_that_of_the_whole_vocabulary(dtype, peak, distance):
    """Against the same logits in float64, with the full model's probabilities at hand in float64, too."""
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(8, 5000, generator=generator) * peak - 60
    logits = (near + distance * torch.randn(16, 8, 5000, generator=generator)).to(dtype).float()
    near = near.to(dtype).float()
    none = torch.zeros(8, 0, dtype=torch.long)
    labels = Labels(none, none.bool(), none, none.bool(), log_probabilities(near))
    truth = METRICS["kl"](logits.double(), replace(labels, full_logprobs=near.double().log_softmax(-1)))

    def error(values):
        return float((values.double() - truth).abs().max())

    assert error(of_blocks(METRICS["kl"], logits, labels, 256)) < 1.2 * error(METRICS["kl"](logits, labels)) + 1e-8


@pytest.mark.parametrize("name", IN_BLOCKS)
@pytest.mark.parametrize("case", CASES)
def test_of_residual_is_that_of_all_logits(case, name, narrow):
    family, more = CASES[case]
    model = model_of(family, **more) if more else shared(family)
    examples = random_examples(model, 4)
    (chunk,) = Patching(model, Ablation("zero"), examples).hold(examples)
    assert len(chunk.batch.read_example) > len(examples)
    n, generator = len(chunk.batch.read_example), torch.Generator().manual_seed(0)
    width = model.d_vocab_out if more else model.backend.d_model
    final = torch.randn(3, n, width, generator=generator, dtype=torch.float64) * 3
    metric = METRICS[name]
    wanted = of_residual(model, chunk, final, replace(metric, of_blocks=None))
    torch.testing.assert_close(of_residual(model, chunk, final, metric), wanted, atol=1e-12, rtol=1e-12)
    blocks = list(model.backend.logit_blocks(final, 7))
    torch.testing.assert_close(torch.cat(blocks, -1), model.backend.unembed(final), atol=1e-12, rtol=1e-12)
    assert max(block.shape[-1] for block in blocks) == 7


def test_a_gradient_is_followed_through_all_logits(narrow):
    model = shared("gpt2")
    examples = random_examples(model, 3)
    (chunk,) = Patching(model, Ablation("zero"), examples).hold(examples)
    final = torch.randn(1, len(chunk.batch.read_example), model.backend.d_model, dtype=torch.float64, requires_grad=True)
    metric = replace(METRICS["kl"], of_blocks=lambda blocks, labels: pytest.fail("it has no gradient"))
    of_residual(model, chunk, final, metric).sum().backward()
    assert final.grad is not None


@pytest.mark.parametrize(("name", "components"), [("kl", "hooks"), *((name, "auto") for name in IN_BLOCKS)])
def test_acdc_decides_as_with_all_logits(name, components, monkeypatch, narrow):
    model = model_of("gpt2", components=components)
    task = random_task(model, 3)
    traces = []
    for metric in (METRICS[name], replace(METRICS[name], of_blocks=None)):
        monkeypatch.setitem(METRICS, name, metric)
        result = acdc(model, task, Ablation("resample"), SearchContext(metric=name), threshold=THRESHOLDS[name])
        traces.append([(line["edge"], line["kept"]) for line in result.trace if "edge" in line])
    assert traces[0] == traces[1]
    assert {kept for _, kept in traces[0]} == {True, False}


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made._is_view():
            self.size = max(self.size, made.numel())
        return made


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_no_more_logits_are_made_than_are_planned(name, narrow):
    model = shared("gpt2")
    examples = random_examples(model, 3)
    chunks = Patching(model, Ablation("zero"), examples).hold(examples)
    (chunk,) = chunks
    n_readings = len(chunk.batch.read_example)
    final = torch.zeros(5, n_readings, model.backend.d_model, dtype=torch.float64)
    whole = replace(METRICS[name], of_blocks=None)
    for metric, columns in ((METRICS[name], 7), (whole, model.d_vocab_out)):
        with Largest() as largest:
            of_residual(model, chunk, final, metric)
        assert n_logits(model, chunks, metric) == n_readings * columns
        assert largest.size == 5 * n_readings * max(columns, model.backend.d_model)
    assert n_logits(model, chunks, METRICS[name], in_blocks=False) == n_readings * model.d_vocab_out


def test_a_block_of_all_rows_fits_in_the_cache():
    model = shared("gpt2")
    widths = [columns_at_once(model, n) for n in (1, 16, 64, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert all(64 * n * 8 * width <= 2**22 for n, width in zip((1, 16), widths, strict=False))
    assert np.diff(widths)[-1] <= 0
    assert widths[-1] == 256
