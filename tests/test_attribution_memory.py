"""The plan of an attribution's memory: how it grows, what it refuses, and that it keeps a run within its budget."""

from typing import Any

import pytest
import torch
from examples import random_examples, random_task
from models import model_of
from torch.utils._python_dispatch import TorchDispatchMode

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.engine.gradients import edge_scores
from circuitdisc.engine.gradients.memory import (
    CPU_TOKEN_ROWS,
    HEAP_HOLES,
    Gradient,
    Shapes,
    block_bytes,
    buffer_bytes,
    examples_in_budget,
    peak_bytes,
)
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import get_metric

FULL = Gradient(at_full=True)


def shapes_of(family="llama"):
    cut = model_of(family).components
    return Shapes.of(cut, get_metric("log_prob"))


def test_more_of_anything_takes_more():
    shapes = shapes_of()
    base = peak_bytes(shapes, 100, 20, FULL)
    assert peak_bytes(shapes, 200, 20, FULL) > base
    assert peak_bytes(shapes, 100, 40, FULL) > 2 * (base - block_bytes(shapes))  # patterns grow with the square
    assert peak_bytes(shapes, 100, 20, Gradient(rows=5)) > base
    assert peak_bytes(shapes, 100, 20, FULL, means=10**6) == base + 10**6


def test_as_many_examples_as_fit_and_no_more():
    shapes, model = shapes_of(), model_of("llama")
    examples = random_examples(model, 300)
    length = max(len(example) for example in examples)
    readings = max(len(example.positions) for example in examples)
    for budget in (2**22, 2**23, 2**25):
        try:
            n = examples_in_budget(shapes, budget, examples, FULL, None)
        except BadSetting:
            assert HEAP_HOLES * peak_bytes(shapes, 1, length, FULL, n_readings=readings) > budget
            continue
        assert HEAP_HOLES * peak_bytes(shapes, n, length, FULL, n_readings=readings) <= budget
    assert examples_in_budget(shapes, 2**40, examples, FULL, None) == CPU_TOKEN_ROWS // length
    with pytest.raises(BadSetting, match=r"one example of \d+ tokens needs about [\d.]+ MiB"):
        examples_in_budget(shapes, 1000, examples, FULL, None)


def test_the_buffer_that_is_never_made():
    shapes = shapes_of()
    assert buffer_bytes(shapes, 3, 5, 11) == 3 * 5 * 11 * 32 * 8


@pytest.mark.parametrize(
    ("algorithm", "settings"), [("eap", {}), ("eap_ig", {"steps": 1}), ("eap_ig_activations", {"steps": 1})]
)
def test_no_tensor_is_near_the_buffer(algorithm, settings, monkeypatch):
    """What any torch operation of a run makes stays below half of [B, T, S, D]."""
    monkeypatch.setattr(edge_scores, "tokens_a_block", lambda *args: 4)
    model = model_of("gpt2", torch.float32)
    task = random_task(model, 40)
    length = max(len(example) for example in task.train)
    sizes = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            results = out if isinstance(out, tuple | list) else [out]
            sizes.extend(one.untyped_storage().nbytes() for one in results if isinstance(one, torch.Tensor))
            return out

    with Watch():
        context = SearchContext(metric="logit_diff")
        ALGORITHMS[algorithm].function(model, task, Ablation("resample"), context, edges=10, **settings)
    assert max(sizes) < 40 * length * model.graph.n_senders * 32 * 4 / 2
