"""Edges into queries and keys by the change of the attention pattern itself, several senders at a time.

Shape letters: C senders tried at once, B examples, T positions, D residual width, H heads, K head width, R receivers,
S senders.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.engine.gradients.attribution import Attribution, AttributionChunk
from circuitdisc.engine.gradients.edge_scores import Gradients, add_scores, at_tokens
from circuitdisc.engine.gradients.layers import HEADS, SenderGroup, projections, turned
from circuitdisc.engine.gradients.memory import CPU_PATTERN_ROWS
from circuitdisc.engine.gradients.segments import HeadsSegment, readout
from circuitdisc.metrics import wide


def edges_through_patterns(attribution: Attribution) -> Float[np.ndarray, "R S"]:
    """Scores at the clean run; edges into q and k by (changed pattern - clean pattern) . gradient of the pattern."""

    def score(chunk: AttributionChunk, both: Float[Tensor, "2 R S"]) -> None:
        end = readout(attribution.components, chunk.clean.residual, chunk.batch, attribution.metric)
        tokens = chunk.differences.tokens
        gradients = Gradients(attribution.components, tokens, at_tokens(end.into, tokens))
        for step in chunk.clean.backward(end.into):
            gradients.add(step)
            if isinstance(step, HeadsSegment):
                add_pattern_scores(both[1], attribution, chunk, step, [step.out])
        attribution.count_backward(chunk, chunk.clean)
        add_scores(both[0], attribution.graph, chunk.differences, gradients, attribution.groups)

    linear, exact = attribution.over_chunks((2, *attribution.edges), score)[0]
    return attribution.finish(torch.where(into_patterns(attribution), exact, linear))


def into_patterns(attribution: Attribution) -> Bool[Tensor, "R 1"]:
    """Which receivers are queries and keys."""
    through = np.array([receiver.qkv in ("q", "k") for receiver in attribution.graph.receivers])
    return torch.from_numpy(through).to(attribution.components.device)[:, None]


@torch.no_grad()
def add_pattern_scores(
    scores: Float[Tensor, "R S"],
    attribution: Attribution,
    chunk: AttributionChunk,
    step: HeadsSegment,
    outs: Sequence[Float[Tensor, "H 1 B T K"]],
    sizes: bool = False,
) -> None:
    """Add scores of all edges into the q and k of one layer.

    Args:
        outs: gradients with respect to the heads' pattern-weighted values, as `step.out`, of one or several backward passes.
        sizes: add the size of each pass's score, of a chunk of one example, and not the score with its sign.
    """
    components, graph, frame, layer = attribution.components, attribution.graph, chunk.frame, step.layer
    norm = components.weights.layers[layer].norm_attention
    q, k, v = step.projections
    q, k = turned(components, layer, q, k, frame)
    heads = range(graph.n_heads)
    clean = components.pattern(layer, heads, q, k, frame)
    scale = frame.head_scale.get(layer)
    into_z = outs if scale is None else [out * scale for out in outs]
    gradients = [wide(into @ v.transpose(-1, -2)) for into in into_z]  # [H, 1, B, T, T] each
    row_q, row_k = (graph.receiver_index[f"a{layer}.h0<{qkv}>"] for qkv in ("q", "k"))
    most = max(1, CPU_PATTERN_ROWS // chunk.batch.clean.numel())
    for first, delta in _senders_before(attribution, chunk, layer, most):
        stop = first + delta.shape[0]
        changed_q, changed_k, _ = projections(components, layer, components.norm(step.x + delta, norm))
        changed_q, changed_k = turned(components, layer, changed_q, changed_k, frame)
        for row, pattern in (
            (row_q, components.pattern(layer, heads, changed_q, k, frame)),
            (row_k, components.pattern(layer, heads, q, changed_k, frame)),
        ):
            moved = pattern - clean
            for gradient in gradients:
                change = (moved * gradient).sum((2, 3, 4))
                scores[row : row + graph.n_heads, first:stop] += (change.abs() if sizes else change).to(scores.dtype)


def _senders_before(
    attribution: Attribution, chunk: AttributionChunk, layer: int, most: int
) -> Iterator[tuple[int, Float[Tensor, "C B T D"]]]:
    """The differences of the senders before a layer, a few at a time, 0 at tokens that do not count; with the first's index."""
    shape = chunk.batch.clean.shape
    for group in attribution.groups:
        if group.place >= (layer, HEADS):
            return
        for first in range(group.first, group.stop, most):
            some = slice(first - group.first, min(first + most, group.stop) - group.first)
            yield first, _rebuilt(chunk, group, some, shape)


def _rebuilt(chunk: AttributionChunk, group: SenderGroup, some: slice, shape: torch.Size) -> Float[Tensor, "C B T D"]:
    values = chunk.differences.rebuild(group, slice(None), some)
    flat = values.new_zeros(len(values), shape[0] * shape[1], values.shape[-1])
    return flat.index_copy_(1, chunk.differences.tokens, values).unflatten(1, shape)
