"""Prompts with roles, positioned circuits of them, and their runs: ours, and the whole masked one."""

from dataclasses import replace

import numpy as np
import torch
from examples import random_examples
from reference import masked_run

from circuitdisc.ablation import Ablation
from circuitdisc.engine.forward import logits_at
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.positioned_run import PositionedRun
from circuitdisc.positioned.circuit import PositionedCircuit
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.spans import Spans


def with_roles(model, n, seed=0) -> list[Example]:
    """Random prompts of unequal lengths, with the roles `a` and `b` in either order."""
    examples = random_examples(model, n, seed)
    return [replace(e, roles={"a": 1 + index % 2, "b": 2 - index % 2}) for index, e in enumerate(examples)]


def role_task(model, n=6, seed=0):
    examples = tuple(with_roles(model, 2 * n, seed))
    return Task("roles", examples[:n], examples[n:])


def some_units(graph, spans, seed=0, share=0.5):
    """About this share of all units."""
    random = np.random.default_rng(seed).random((len(spans), *graph.edge_mask.shape))
    return PositionedCircuit(graph, spans, graph.edge_mask & (random < share))


def made_ready(model, kind="resample", n=6, padding_side="right"):
    examples = with_roles(model, n)
    patching = Patching(model, Ablation(kind), examples, padding_side=padding_side)
    (chunk,) = patching.hold(examples)
    return chunk, Spans.of(examples, causal=model.backend.causal)


def run_of(model, chunk, circuit):
    run = PositionedRun(model.components, model.graph, chunk, circuit.mask, circuit.spans.of_batch(chunk.batch))
    return logits_at(model.components, run.residual, chunk.batch.reads)


def reference(model, chunk, circuit):
    """Where each edge is kept, token by token; nowhere at padding."""
    spans = circuit.spans.of_batch(chunk.batch)
    kept = np.concatenate([circuit.mask, np.zeros_like(circuit.mask[:1])])
    return masked_run(model, chunk, torch.tensor(kept[spans]).permute(2, 3, 0, 1))


def example(length, positions=None, **roles):
    positions = positions or (length - 1,)
    return Example(tuple(range(length)), None, positions, ((0,),) * len(positions), ((1,),) * len(positions), roles=roles)
