"""Attribution of whole senders: how far the metric follows what each of them writes.

Shape letters: B examples, n tokens that count, S senders.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.engine.gradients.attribution import Attribution, AttributionChunk
from circuitdisc.engine.gradients.layers import EMBEDDING, HEADS, MLP, Place
from circuitdisc.engine.gradients.segments import HeadsSegment, MlpSegment, Step, readout
from circuitdisc.metrics import wide


def node_scores(attribution: Attribution) -> Float[np.ndarray, "S"]:
    """Mean over examples of |sum over positions of (ablated - clean) . gradient| with the gradient at the clean run."""

    def score(chunk: AttributionChunk, scores: Float[Tensor, "S"]) -> None:
        for first, products in sender_products(attribution, chunk):
            scores[first : first + len(products)] += products.abs().sum(-1)

    scores, _ = attribution.over_chunks((attribution.graph.n_senders,), score)
    return (attribution.components.agreed(scores) / len(attribution.examples)).cpu().numpy()


def sender_products(attribution: Attribution, chunk: AttributionChunk) -> Iterator[tuple[int, Float[Tensor, "s B"]]]:
    """Difference times gradient of the senders of each place, example by example, and the number of the first of them."""
    first = {group.place: group.first for group in attribution.groups}
    end = readout(attribution.components, chunk.clean.residual, chunk.batch, attribution.metric, chunk.full_logprobs)
    for step in chunk.clean.backward(end.into):
        place, gradient = _written(step, chunk.differences.tokens)
        values = chunk.differences.values[place]
        yield first[place], _per_example((wide(values) * wide(gradient)).sum(-1), chunk)
    attribution.count_backward(chunk, chunk.clean)


def _written(step: Step, tokens: Int[Tensor, "n"]) -> tuple[Place, Float[Tensor, "s n X"]]:
    """The place of a step, and the gradient with respect to what its senders write (heads: before W_O)."""
    if isinstance(step, HeadsSegment):
        return (step.layer, HEADS), step.out[:, 0].flatten(1, 2)[:, tokens]
    place = (step.layer, MLP) if isinstance(step, MlpSegment) else (-1, EMBEDDING)
    return place, step.out.flatten(1, 2)[:, tokens]


def _per_example(values: Float[Tensor, "s n"], chunk: AttributionChunk) -> Float[Tensor, "s B"]:
    B, T = chunk.batch.clean.shape
    owner = chunk.differences.tokens // T
    return values.new_zeros(values.shape[0], B, dtype=torch.float64).index_add_(1, owner, values.double())
