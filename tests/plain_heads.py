"""Head circuits run slowly: one prompt at a time, one head after the other, every run from scratch."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from reference import norm, rotate, run_mlp, unembed

from circuitdisc.metrics import METRICS
from circuitdisc.tasks.base import collate

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "attention_only"]
KINDS = ["zero", "mean", "resample"]
families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", KINDS)
targets = pytest.mark.parametrize("target", ["output", "pattern"])


def random_heads(model, seed, share=0.5):
    shape = (model.graph.n_layers, model.graph.n_heads)
    return np.random.default_rng(seed).random(shape) < share


@dataclass
class PlainRun:
    """One prompt: logits [T, V]; what every head wrote [T, D] and attended to [T, T], by (layer, head)."""

    logits: torch.Tensor
    outputs: dict
    patterns: dict
    scales: dict


@cache
def in_reach(length, window):
    """True where query i may attend to key j. [T, T]"""
    return torch.tensor([[j <= i and (window is None or i - j < window) for j in range(length)] for i in range(length)])


def plain_run(model, tokens, outputs=None, patterns=None, scales=None):
    """Run a prompt, some heads' outputs or attention patterns replaced.

    Args:
        scales: of the norm after attention, by layer, held where heads are cut; None computes them.
    """
    cut, outputs, patterns = model.components, outputs or {}, patterns or {}
    spec, weights = cut.spec, cut.weights
    positions, length = torch.arange(len(tokens)), len(tokens)
    x = weights.W_E[torch.tensor(tokens)] * spec.embed_scale
    if weights.W_pos is not None:
        x = x + weights.W_pos[positions]
    run = PlainRun(x, {}, {}, {})
    for layer, block in enumerate(weights.layers):
        normed = norm(spec, x, block.norm_attention)
        for head in range(spec.n_heads):
            group = head // (spec.n_heads // spec.n_kv_heads)
            q, k, v = normed @ block.W_Q[head], normed @ block.W_K[group], normed @ block.W_V[group]
            if block.b_Q is not None and block.b_K is not None and block.b_V is not None:
                q, k, v = q + block.b_Q[head], k + block.b_K[group], v + block.b_V[group]
            if weights.inverse_frequencies:
                q, k = (rotate(y[None], positions[None], weights.inverse_frequencies[0])[0] for y in (q, k))
            scores = q @ k.T * spec.attn_scale[layer]
            if spec.score_softcap:
                scores = spec.score_softcap * (scores / spec.score_softcap).tanh()
            window = spec.window[layer] if spec.window else None
            scores = torch.where(in_reach(length, window), scores, -math.inf)
            pattern = patterns.get((layer, head), scores.softmax(-1))
            run.patterns[layer, head] = pattern
            run.outputs[layer, head] = pattern @ v @ block.W_O[head]
        if block.norm_after_attention is not None:
            total = torch.stack([run.outputs[layer, head] for head in range(spec.n_heads)]).sum(0)
            run.scales[layer] = 1 / (total.pow(2).mean(-1, keepdim=True) + spec.eps).sqrt() if scales is None else scales[layer]
            for head in range(spec.n_heads):
                run.outputs[layer, head] = run.outputs[layer, head] * run.scales[layer] * block.norm_after_attention.scale
        after = x if block.b_O is None else x + block.b_O
        for head in range(spec.n_heads):
            run.outputs[layer, head] = outputs.get((layer, head), run.outputs[layer, head])
            after = after + run.outputs[layer, head]
        if model.graph.has_mlp:
            after = after + run_mlp(spec, block, x if spec.parallel else after)
        x = after
    run.logits = unembed(spec, weights, norm(spec, x, weights.norm_final))
    return run


class Truth:
    """Logits of head circuits on some examples, every run from scratch.

    Args:
        reference: the examples that `mean` averages over.
    """

    def __init__(self, model, ablation, examples, reference):
        self.model, self.ablation, self.examples = model, ablation, examples
        self.clean = [plain_run(model, example.clean) for example in examples]
        self.reference = [plain_run(model, example.clean) for example in reference] if ablation.kind == "mean" else []
        self.cut = [self._cut(index, reference) for index in range(len(examples))]

    def _cut(self, index, reference):
        """What every head of this example carries, or attends to, when cut."""
        model, ablation, example = self.model, self.ablation, self.examples[index]
        which = "outputs" if ablation.target == "output" else "patterns"
        if ablation.kind == "zero":
            own = getattr(self.clean[index], which)
            return {key: torch.zeros_like(value) for key, value in own.items()}
        if ablation.kind == "resample":
            return getattr(plain_run(model, example.corrupted), which)
        runs = [
            getattr(run, which)
            for run, other in zip(self.reference, reference, strict=True)
            if ablation.scope != "group" or other.group == example.group
        ]
        return {key: self._mean([run[key] for run in runs], len(example.clean)) for key in runs[0]}

    def _mean(self, rows, length):
        """Mean at each position over the prompts that reach it; a pattern's rows are as wide as this prompt."""
        width = rows[0].shape[-1] if self.ablation.target == "output" else length
        found = torch.zeros(length, width, dtype=torch.float64)
        for position in range(length):
            reaching = [row[position] for row in rows if len(row) > position]
            for row in reaching:
                found[position, : min(width, len(row))] += row[:width] / len(reaching)
        return found

    def logits(self, kept):
        """Logits [V] at every reading when only these heads are kept."""
        found = []
        for example, clean, cut in zip(self.examples, self.clean, self.cut, strict=True):
            dropped = {key: value for key, value in cut.items() if not kept[key]}
            replaced = {"outputs" if self.ablation.target == "output" else "patterns": dropped}
            run = plain_run(self.model, example.clean, **replaced, scales=clean.scales)
            found += [run.logits[position] for position in example.positions]
        return torch.stack(found)

    def metric(self, kept, name):
        """Mean over examples of the mean over an example's readings."""
        batch = collate(self.examples)
        return float(batch.per_example(METRICS[name](self.logits(kept), batch.labels)).mean())
