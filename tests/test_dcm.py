"""Masks of desiderata: runs against hooks on the Hugging Face module, gradients against differences."""

from functools import cache

import numpy as np
import pytest
import torch
from examples import examples_with_role
from models import hugging_face, shared

from circuitdisc.ablation import Ablation
from circuitdisc.engine.changed_heads import hold
from circuitdisc.engine.patching import Patching
from circuitdisc.heads.dcm.fit import TARGET_LOGIT, target_loss
from circuitdisc.heads.dcm.parts import EdgeParts, HeadParts
from circuitdisc.tasks.roles import position_of

GROUPS = {"one": ["a0.h1", "a1.h2"], "two": ["a2.h0"], "three": ["a1.h2", "a2.h3"]}
MASK = torch.tensor([0.3, 1.0, 0.6], dtype=torch.float64)
POSITIONS = {"all": "all", "end": "end", "two": ["s2", "end"]}


@cache
def examples_of(family):
    return examples_with_role(shared(family), 6)


def held(family, batch=6, positions="all"):
    """Made ready; with positions, tokens before the first of them are not run again."""
    return hold(shared(family), Ablation("resample"), examples_of(family), TARGET_LOGIT, batch=batch, positions=positions)


# --- the truth: hooks on the module, one prompt at a time ----------------------------------------------------------------


@cache
def module_of():
    return hugging_face("gpt2").double()


def hooked_logits(example, shares):
    """Logits at the readings, each head's values (before the output projection) mixed with those of the corrupted run.

    Args:
        shares: (layer, head, token) -> share of the corrupted value.
    """
    module, stored = module_of(), {}
    width = module.config.n_embd // module.config.n_head

    def run(ids, hook):
        layers = [(layer, block.attn.c_proj) for layer, block in enumerate(module.transformer.h)]
        handles = [out.register_forward_pre_hook(lambda _, args, layer=layer: hook(layer, args[0])) for layer, out in layers]
        with torch.no_grad():
            logits = module(torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
        return logits

    def store(layer, z):
        stored[layer] = z.clone()

    def mix(layer, z):
        z = z.clone()
        for (at, head, token), share in shares.items():
            if at == layer:
                part = slice(head * width, (head + 1) * width)
                z[0, token, part] = (1 - share) * z[0, token, part] + share * stored[layer][0, token, part]
        return (z,)

    run(example.corrupted, store)
    return run(example.clean, mix)[list(example.positions)]


def shares_of(example, groups, mask, positions):
    """(layer, head, token) -> share; a head in two groups keeps the product of what each leaves."""
    places = (
        range(len(example)) if positions == "all" else [position_of(example, at) for at in np.atleast_1d(positions).tolist()]
    )
    found = {}
    for heads, m in zip(groups.values(), mask.tolist(), strict=True):
        for head in heads:
            layer, _, number = head[1:].partition(".h")
            for token in places:
                at = (int(layer), int(number), token)
                found[at] = 1 - (1 - found.get(at, 0.0)) * (1 - m)
    return found


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("where", POSITIONS)
def test_mixed_heads_equal_hooks_on_the_module(where, tail):
    model, positions = shared("gpt2"), POSITIONS[where]
    parts = HeadParts(model.graph, GROUPS, positions)
    batches = held("gpt2", 4, positions if tail else "all")
    assert (where != "all" and tail) == any(one.start > 0 for batch in batches for one in batch)
    found = torch.cat([parts.logits(model, one, MASK) for batch in batches for one in batch])
    wanted = [hooked_logits(one, shares_of(one, GROUPS, MASK, positions)) for one in examples_of("gpt2")]
    assert float((found - torch.cat(wanted)).abs().max()) < 1e-12
    unpatched = torch.cat([hooked_logits(one, {}) for one in examples_of("gpt2")])
    assert float((found - unpatched).abs().max()) > 1e-3


def test_each_group_may_have_its_own_place():
    model = shared("gpt2")
    parts = HeadParts(model.graph, GROUPS, {"one": "all", "two": "s2", "three": "end"})
    (batch,) = held("gpt2")
    found = torch.cat([parts.logits(model, one, MASK) for one in batch])
    wanted = []
    for one in examples_of("gpt2"):
        left: dict = {}
        for index, (name, at) in enumerate((("one", "all"), ("two", "s2"), ("three", "end"))):
            for key, share in shares_of(one, {name: GROUPS[name]}, MASK[index : index + 1], at).items():
                left[key] = left.get(key, 1.0) * (1 - share)
        wanted.append(hooked_logits(one, {key: 1 - value for key, value in left.items()}))
    assert float((found - torch.cat(wanted)).abs().max()) < 1e-12


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "gemma3_text", "attention_only", "parallel"])
def test_masks_of_zero_leave_the_clean_run(family):
    model = shared(family)
    heads, edges = HeadParts(model.graph, {"x": ["a0.h0", "a1.h3"]}), EdgeParts(model.graph, model.graph.edge_mask, "end")
    for one in (one for batch in held(family) for one in batch):
        own = model.own_logits(one.chunk.batch.clean, one.chunk.batch.is_token.long(), one.chunk.batch.position_ids)
        for parts in (heads, edges):
            found = parts.logits(model, one, torch.zeros(len(parts.names), dtype=torch.float64))
            assert float((found - own[one.chunk.batch.reads]).abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gpt_neox", "gemma2", "parallel", "bidirectional"])
@pytest.mark.parametrize("where", POSITIONS)
def test_a_head_is_all_edges_that_leave_it(family, where):
    model, positions = shared(family), POSITIONS[where]
    parts = HeadParts(model.graph, {"x": ["a0.h1", "a1.h0"]}, positions)
    mask = np.zeros_like(model.graph.edge_mask)
    mask[:, [model.graph.sender_index[head] for head in ("a0.h1", "a1.h0")]] = True
    edges = EdgeParts(model.graph, mask & model.graph.edge_mask, positions)
    for one, short in zip(held(family)[0], held(family, positions=positions)[0], strict=True):
        whole = parts.logits(model, one, torch.full((1,), 0.7, dtype=torch.float64))
        tail = parts.logits(model, short, torch.full((1,), 0.7, dtype=torch.float64))
        assert float((whole - tail).abs().max()) < 1e-9
        apart = edges.logits(model, one, torch.full((len(edges.names),), 0.7, dtype=torch.float64))
        assert float((whole - apart).abs().max()) < 1e-9


def test_whole_edges_patched_everywhere_are_the_run_of_a_circuit():
    model = shared("gpt2")
    generator = np.random.default_rng(0)
    cut = model.graph.edge_mask & (generator.random(model.graph.edge_mask.shape) < 0.3)
    edges = EdgeParts(model.graph, cut)
    (batch,) = held("gpt2")
    found = torch.cat([edges.logits(model, one, torch.ones(len(edges.names), dtype=torch.float64)) for one in batch])
    patching = Patching(model, Ablation("resample"), ())
    (chunk,) = patching.hold(examples_of("gpt2"))
    assert torch.allclose(found, patching.circuit_logits(chunk, model.graph.edge_mask & ~cut), atol=1e-9)


# --- gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["head", "edge"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_gradients_are_those_of_differences(family, over):
    model = shared(family)
    some = np.zeros_like(model.graph.edge_mask)
    for name in ("a0.h1->m0", "input->a1.h0<q>", "m0->logits", "a0.h2->a1.h1<v>"):
        some[model.graph.parse_edge(name)] = True
    groups = {"one": ["a0.h1", "a1.h2"], "two": ["a0.h1"], "three": ["a1.h3"]}
    parts = EdgeParts(model.graph, some, ["s2", "end"]) if over == "edge" else HeadParts(model.graph, groups, ["s2", "end"])
    mask = torch.linspace(0.2, 0.9, len(parts.names), dtype=torch.float64).requires_grad_()
    (batch,) = held(family)
    target_loss(model, parts, batch, mask, 0.25)
    assert mask.grad is not None
    for index in range(len(parts.names)):
        moved = []
        for step in (1e-5, -1e-5):
            other = mask.detach().clone()
            other[index] += step
            moved.append(target_loss(model, parts, batch, other.requires_grad_(), 0.25))
        assert float(mask.grad[index]) == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-5, abs=1e-7)
