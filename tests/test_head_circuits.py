"""A head circuit's fast run, with outputs or attention patterns ablated, equals one plain run for each prompt."""

import numpy as np
import pytest
import torch
from examples import random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of, shared
from plain_heads import Truth, families, kinds, random_heads, targets

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit, kept_heads
from circuitdisc.engine.head_run import head_circuit, head_logits
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.metrics import METRICS
from circuitdisc.models.components import Components
from circuitdisc.tasks.base import Example, Task


@families
@kinds
@pytest.mark.parametrize("side", ["right", "left"])
def test_head_runs_equal_the_edge_runs(family, kind, side):
    """Whole heads replaced in one residual stream give the logits of `Circuit.from_heads`, run edge by edge."""
    model = shared(family)
    task = random_task(model)
    patching = Patching(model, Ablation(kind), task.train, padding_side=side)
    (chunk,) = patching.hold(task.heldout)
    for seed, share in enumerate([0.0, 0.5, 1.0]):
        kept = random_heads(model, seed, share)
        assert isinstance(model.cut, Components)
        logits, seen = head_logits(model.cut, model.graph, chunk, kept)
        circuit = Circuit.from_heads(model.graph, [f"a{layer}.h{head}" for layer, head in np.argwhere(kept)])
        torch.testing.assert_close(logits, patching.circuit_logits(chunk, circuit.mask), atol=1e-9, rtol=0)
        for layer in range(model.graph.n_layers):  # from any layer on, nothing changes
            again, rest = head_logits(model.cut, model.graph, chunk, kept, "output", layer, seen[layer])
            assert torch.equal(again, logits)
            assert len(rest) == model.graph.n_layers - layer


@pytest.mark.parametrize("family", ["gpt2", "attention_only"])
def test_head_runs_equal_the_edge_runs_with_embeddings_apart(family):
    model = model_of(family, split_embeddings=True)
    task = random_task(model)
    patching = Patching(model, Ablation("mean"), task.train)
    (chunk,) = patching.hold(task.heldout)
    kept = random_heads(model, 1)
    assert isinstance(model.cut, Components)
    logits, _ = head_logits(model.cut, model.graph, chunk, kept)
    torch.testing.assert_close(logits, patching.circuit_logits(chunk, head_circuit(model.graph, kept).mask), atol=1e-9, rtol=0)


@families
@targets
@pytest.mark.parametrize(
    "ablation", [Ablation("zero"), Ablation("mean"), Ablation("mean", "position"), Ablation("resample")], ids=lambda a: a.label
)
def test_head_circuits_equal_the_plain_runs(family, target, ablation):
    """Through `circuit_logits`, with the averages of the train split, on held-out prompts."""
    model = shared(family)
    task = same_lengths(random_task(model, n=4))
    ablation = Ablation(ablation.kind, ablation.scope, target=target)
    patching = Patching(model, ablation, task.train)
    (chunk,) = patching.hold(task.heldout)
    truth = Truth(model, ablation, task.heldout, task.train)
    for seed, share in enumerate([0.0, 0.5, 1.0]):
        kept = random_heads(model, seed, share)
        logits = patching.circuit_logits(chunk, head_circuit(model.graph, kept).mask)
        torch.testing.assert_close(logits, truth.logits(kept), atol=1e-9, rtol=0)


def same_lengths(task):
    """Held-out prompts as long as train prompts of their group, so that no position is without an average."""
    lengths = {group: max(len(e.clean) for e in task.train if e.group == group) for group in "ab"}
    kept = tuple(example for example in task.heldout if len(example.clean) <= lengths[example.group])
    assert len({len(example.clean) for example in kept}) > 1
    return Task(task.name, task.train, kept)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@kinds
def test_cut_patterns_do_not_depend_on_the_side_of_the_padding(family, kind):
    model = shared(family)
    task = same_lengths(random_task(model))
    runs = []
    for side in ("right", "left"):
        patching = Patching(model, Ablation(kind, target="pattern"), task.train, padding_side=side)
        (chunk,) = patching.hold(task.heldout)
        runs.append(patching.circuit_logits(chunk, head_circuit(model.graph, random_heads(model, 1)).mask))
    torch.testing.assert_close(runs[0], runs[1], atol=1e-9, rtol=0)


@targets
@kinds
def test_head_circuits_do_not_depend_on_the_memory_budget(kind, target):
    model = shared("gpt2")
    task = same_lengths(random_task(model))
    mask = head_circuit(model.graph, random_heads(model, 1)).mask
    found = []
    for memory in ("4GiB", "200kB"):
        patching = Patching(model, Ablation(kind, target=target), task.train, memory=memory)
        found.append(patching.evaluate(task.heldout, {"c": mask}, [METRICS["logit_diff"]])["c"]["logit_diff"])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)


def test_an_edge_circuit_has_no_pattern_to_cut():
    model = shared("gpt2")
    task = random_task(model)
    patching = Patching(model, Ablation("zero", target="pattern"), task.train)
    (chunk,) = patching.hold(task.train)
    mask = model.graph.edge_mask.copy()
    mask[-1, 1] = False
    with pytest.raises(BadSetting, match="head circuits"):
        patching.circuit_logits(chunk, mask)


def test_a_pattern_that_was_never_averaged_is_refused():
    model = shared("gpt2")
    task = random_task(model)
    with pytest.raises(BadSetting, match=r"no average over positions.*scope=group"):
        Patching(model, Ablation("mean", "dataset", target="pattern"), task.train)
    patching = Patching(model, Ablation("mean", target="pattern"), task.train)
    long = Example((1,) * 20, None, (19,), ((1,),), ((2,),))
    with pytest.raises(BadTask, match="20 tokens is longer than any"):
        list(patching.chunks([long]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_kept_heads_is_the_inverse_of_head_circuit(seed, share):
    model = shared("gpt2")
    kept = random_heads(model, seed, share)
    circuit = head_circuit(model.graph, kept)
    assert circuit.heads() == [f"a{layer}.h{head}" for layer, head in np.argwhere(kept)]
    assert (kept_heads(model.graph, circuit.mask) == kept).all()
