"""Metric values of many head circuits, example by example: whole heads kept or ablated, MLPs and embeddings kept.

A circuit's run begins at the first layer with an ablated head: before it the residual is the full model's.

Shape letters: L layers, H heads, B examples, T positions, N readings.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.evaluate import evaluate
from circuitdisc.engine.head_run import head_logits
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import Metric
from circuitdisc.tasks.base import Example

HeadValues = dict[str, Float[np.ndarray, "X B"]]


@torch.no_grad()
def head_values(
    patching: Patching,
    examples: Sequence[Example],
    kept: Sequence[Bool[np.ndarray, "L H"]],
    metrics: Sequence[Metric],
    on_progress: Callable[[int], object] | None = None,
) -> HeadValues:
    """Metric values of X head circuits.

    Args:
        kept: for each circuit the heads that it keeps. Length X.
        on_progress: called with 1 after each circuit of each chunk.

    Returns:
        metric name -> values. [X, B]
    """
    latest: list[tuple[Chunk, list[Tensor]]] = []  # the chunk that runs now, and its residual before each layer

    def run(chunk: Chunk, heads: Bool[np.ndarray, "L H"]) -> Float[Tensor, "N V"]:
        if not latest or latest[0][0] is not chunk:
            latest[:] = [(chunk, _residuals(patching, chunk))]
        return _logits(patching, chunk, heads, latest[0][1])

    variants = {str(index): partial(run, heads=heads) for index, heads in enumerate(kept)}
    values = evaluate(patching.shares(examples), variants, metrics, on_progress)
    return {
        metric.name: torch.stack([values[name][metric.name].double() for name in variants]).cpu().numpy() for metric in metrics
    }


def _residuals(patching: Patching, chunk: Chunk) -> list[Float[Tensor, "B T D"]]:
    """The full model's residual before each layer; nothing for a model that only runs as a whole."""
    model, graph = patching.model, patching.graph
    if not model.can("partial runs"):
        return []
    everything = np.ones((graph.n_layers, graph.n_heads), dtype=bool)
    return head_logits(model.components, graph, chunk, everything, patching.ablation.target)[1]


def _logits(
    patching: Patching, chunk: Chunk, kept: Bool[np.ndarray, "L H"], before: list[Float[Tensor, "B T D"]]
) -> Float[Tensor, "N V"]:
    if not before:
        return patching.head_logits(chunk, kept)[0]
    ablated = np.flatnonzero(~kept.all(axis=1))
    first = int(ablated[0]) if len(ablated) else patching.graph.n_layers - 1
    patching.cost.circuit_runs += 1
    return patching.head_logits(chunk, kept, first, before[first])[0]
