"""Gradients along a path that itself follows a gradient: from the clean embeddings to what makes the corrupted output.

With G(x) the logits at the readings of a run whose embeddings are x, and x' the corrupted embeddings, the path of an example is

    x_0 = the clean embeddings,    g_j = d |G(x_j) - G(x')|^2 / d x_j,    x_(j+1) = x_j - g_j / |g_j|

with |.| the Euclidean norm over all tokens of the example; where g_j is 0 the path stands still. A step has length 1, whatever
the size of embeddings is: the path need not come to x', nor does it end there, so that scores need not add up to anything.

Source: Zhang et al. 2025, "EAP-GP" (https://arxiv.org/abs/2502.06852), Algorithm 1 (see `discovery/eap_gp.py`).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.gradients.attribution import Attribution, AttributionChunk
from circuitdisc.engine.gradients.edge_scores import add_scores
from circuitdisc.engine.gradients.layers import HEADS
from circuitdisc.engine.gradients.segments import EmbeddingStep, SegmentedRun
from circuitdisc.metrics import wide


def edges_along_gradient(attribution: Attribution, steps: int) -> Float[np.ndarray, "R S"]:
    """Scores of all edges with the gradient averaged over the points x_1 .. x_k of the path.

    Args:
        steps: k.
    """

    def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> None:
        corrupted = attribution.interpolated(chunk, attribution.groups[0], (0.0,), gradients=False)
        goal = _logits(attribution, chunk, corrupted.residual).detach()
        x = chunk.residuals[0, HEADS]
        for step in range(steps + 1):
            run = _run_from(attribution, chunk, x)
            if step < steps:
                x = x - _direction(attribution, chunk, run, goal, keep=step > 0).to(x.dtype)
            if step > 0:
                gradients = attribution.gradients(chunk, run)
                add_scores(scores, attribution.graph, chunk.differences, gradients, attribution.groups, attribution.units)
                attribution.bar.update(1)

    return attribution.finish(attribution.over_chunks(attribution.edges, score, steps)[0], steps)


def _run_from(attribution: Attribution, chunk: AttributionChunk, x: Float[Tensor, "1 B T D"]) -> SegmentedRun:
    """The model run on from these embeddings; norms that couple the heads of a layer have the clean run's scales."""
    attribution.cost.model_runs += chunk.batch.n_examples / len(attribution.examples)
    return SegmentedRun(attribution.components, attribution.graph, chunk.frame, x, read=chunk.batch.reads)


def _logits(attribution: Attribution, chunk: AttributionChunk, residual: Float[Tensor, "1 B T D"]) -> Float[Tensor, "1 N V"]:
    return wide(attribution.components.unembed(residual[:, chunk.batch.read_example, chunk.batch.read_position]))


def _direction(
    attribution: Attribution, chunk: AttributionChunk, run: SegmentedRun, goal: Float[Tensor, "1 N V"], keep: bool
) -> Float[Tensor, "1 B T D"]:
    """g / |g|, example by example; the run's segments may be kept for another walk."""
    with torch.enable_grad():
        residual = run.residual.detach().requires_grad_()
        distance = (_logits(attribution, chunk, residual) - goal).pow(2).sum()
        (into,) = torch.autograd.grad(distance, residual)
    for step in run.backward(into, keep):
        if isinstance(step, EmbeddingStep):
            into = step.out
    attribution.count_backward(chunk, run)
    into = wide(into)
    length = into.flatten(2).norm(dim=-1)[..., None, None]
    return into / length.masked_fill(length == 0, 1)
