"""Metrics of a model in a 16-bit type are those of the same logits in float64, up to float32's rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import random_task
from models import model_of

from circuitdisc.ablation import Ablation
from circuitdisc.engine.backends import full_run
from circuitdisc.engine.cross.cache import keep_activations
from circuitdisc.engine.forward import logits_at
from circuitdisc.engine.memory import rows_that_fit
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import METRICS, Metric, log_probabilities

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
OF_TOKENS = [name for name, metric in METRICS.items() if not metric.needs_targets]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def patched(request):
    """A model in a 16-bit type, its task, and a circuit near the full model: a small divergence, lost in 16-bit rounding."""
    model = model_of("llama", request.param)
    task = random_task(model, 6)
    patching = Patching(model, Ablation("resample"), task.train)
    mask = model.graph.edge_mask.copy()
    mask[model.graph.parse_edge("a0.h1->m0")] = False
    return model, task, patching, mask


def own_logits(model, batch):
    """Logits of the whole model on the clean prompts, as they were computed for the divergence."""
    run = full_run(model, batch.clean, batch.is_token, batch.position_ids)
    return logits_at(model.components, run.residual, batch.reads)


def in_float64(metric, logits, full_logits, labels):
    """The metric of these logits, computed in float64 throughout."""
    return metric.function(logits.double(), replace(labels, full_logprobs=full_logits.double().log_softmax(-1)))


@pytest.mark.parametrize("name", OF_TOKENS)
def test_scores_and_searches_measure_in_float32(patched, name):
    model, task, patching, mask = patched
    (chunk,) = patching.chunks(task.train)
    full, logits = own_logits(model, chunk.batch), patching.circuit_logits(chunk, mask)
    assert logits.dtype == model.dtype
    wanted = chunk.batch.per_example(in_float64(METRICS[name], logits, full, chunk.labels))
    values = patching.evaluate(task.train, {"circuit": mask}, [METRICS[name]])["circuit"][name]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), wanted, atol=2e-6, rtol=2e-5)
    assert chunk.labels.full_logprobs is not None
    assert chunk.labels.full_logprobs.dtype == torch.float32
    removal = patching.removal([chunk], mask, METRICS[name], first=model.graph.n_receivers - 1)
    if METRICS[name].columns == "all":  # the answers' columns alone are another product of matrices, and round otherwise
        assert removal.value == pytest.approx(float(wanted.mean()), abs=2e-6, rel=2e-5)


def test_the_divergence_of_a_near_circuit_is_not_lost(patched):
    """What a softmax in 16 bits makes of it is far off; this is what the test above would miss if both sides rounded."""
    model, task, patching, mask = patched
    (chunk,) = patching.chunks(task.train)
    full, logits = own_logits(model, chunk.batch), patching.circuit_logits(chunk, mask)
    of_examples = chunk.batch.per_example
    right = -float(of_examples(in_float64(METRICS["kl"], logits, full, chunk.labels)).mean())
    coarse = full.log_softmax(-1)
    rounded = float(of_examples((coarse.exp() * (coarse - logits.log_softmax(-1))).sum(-1).double()).mean())
    ours = -float(patching.evaluate(task.train, {"circuit": mask}, [METRICS["kl"]])["circuit"]["kl"].mean())
    assert abs(ours - right) < 0.01 * abs(rounded - right)


def test_activations_of_another_model_keep_float32_log_probabilities():
    model = model_of("gpt2", torch.bfloat16)
    task = random_task(model, 4)
    given = keep_activations(model, task.train, [(0, 4)], ("output",), [METRICS["kl"]])
    assert given.log_probs[0].dtype == torch.float32
    assert float(given.metrics["kl"].abs().max()) < 1e-6


@HALF
def test_a_metric_of_ones_own_sees_float32(dtype):
    seen = []
    mine = Metric("mine", lambda logits, labels: seen.append(logits.dtype) or logits[..., 0])
    model = model_of("gpt2", dtype)
    task = random_task(model, 3)
    Patching(model, Ablation("zero"), task.train).evaluate(task.train, {"full": model.graph.edge_mask}, [mine])
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_types_are_left_as_they_are(dtype):
    logits = torch.randn(3, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.equal(log_probabilities(logits), logits.log_softmax(-1))
    assert Metric("same", lambda x, labels: x[..., 0])(logits, None).dtype == dtype  # pyright: ignore[reportArgumentType]


def test_memory_for_logits_is_that_of_float32():
    """A 16-bit model's candidates are planned with 4 bytes a logit; those of float32 and float64 as before."""
    rows = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        model = model_of("gpt2", dtype)
        n_logits = 10**6
        rows[dtype] = [rows_that_fit(model, budget, 1, 0, 0, n_logits) for budget in (2**27, 2**28, 2**29)]
    assert (
        rows[torch.bfloat16] == rows[torch.float32] == [2**27 // (4 * 4 * 10**6), 2**28 // (16 * 10**6), 2**29 // (16 * 10**6)]
    )
    assert rows[torch.float64] == [max(1, 2**27 // (32 * 10**6)), 2**28 // (32 * 10**6), 2**29 // (32 * 10**6)]
    assert np.all(np.array(rows[torch.float32]) > 1)
