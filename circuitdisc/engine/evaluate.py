"""Metric values, example by example: chunk x variant x metric in one place.

A *variant* is a way to run the model on a chunk of examples: a circuit, a head circuit, a set of interventions, ablated
neurons. What a metric needs of the unembedding (the answers' columns, the whole vocabulary in blocks, or all of it at once) is
decided here alone.

Shape letters: B examples, C rows, N readings, V vocabulary, W columns of the unembedding, D residual width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.memory import columns_at_once
from circuitdisc.engine.ranks import gathered
from circuitdisc.metrics import Labels, Metric, wide
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import PromptBatch

Values = dict[str, dict[str, Float[Tensor, "B"]]]
Keep = Callable[[str, Callable[[], Any]], Any]
Variant = Callable[[Chunk], Float[Tensor, "N V"]]
Unembed = Callable[[Int[Tensor, "N W"] | None], Float[Tensor, "*C N W"]]


def evaluate(
    chunks: Iterable[Chunk],
    variants: Mapping[str, Variant],
    metrics: Sequence[Metric],
    on_progress: Callable[[int], object] | None = None,
    keep: Keep | None = None,
) -> Values:
    """Metric values of several variants.

    Args:
        chunks: of all examples, or of this rank's share of each (`Patching.shares`); the values are those of all.
        variants: name -> what gives the logits of the whole vocabulary at a chunk's readings.
        on_progress: called with 1 after each variant of each chunk.
        keep: (name of a unit, what computes its values) -> the values, maybe those of an earlier start. A unit is one
            variant on one chunk; its values are plain lists by metric, in float64.

    Returns:
        variant -> metric -> values. [B]
    """
    parts: dict[str, dict[str, list[Tensor]]] = {name: {metric.name: [] for metric in metrics} for name in variants}
    first = 0
    for chunk in chunks:
        for name, run in variants.items():

            def measure(chunk: Chunk = chunk, run: Variant = run) -> dict[str, Float[Tensor, "B"]]:
                own = of_logits(chunk.batch, chunk.labels, run(chunk), metrics)
                return {metric: gathered(values, chunk.share, metric) for metric, values in own.items()}

            values = measure() if keep is None else _kept(keep, f"{name}, examples from {first}", measure)
            for metric in values:
                parts[name][metric].append(values[metric])
            if on_progress is not None:
                on_progress(1)
        first += chunk.n_examples
    return {name: {metric: torch.cat(some) for metric, some in by_metric.items()} for name, by_metric in parts.items()}


def _kept(keep: Keep, unit: str, measure: Callable[[], dict[str, Float[Tensor, "B"]]]) -> dict[str, Float[Tensor, "B"]]:
    lists = keep(unit, lambda: {metric: values.double().tolist() for metric, values in measure().items()})
    return {metric: torch.tensor(values, dtype=torch.float64) for metric, values in lists.items()}


def of_logits(
    batch: PromptBatch, labels: Labels, logits: Float[Tensor, "*C N V"], metrics: Sequence[Metric]
) -> dict[str, Float[Tensor, "*C B"]]:
    """Several metrics from the logits of the whole vocabulary at the readings."""
    return {metric.name: batch.per_example(metric(logits, labels)) for metric in metrics}


def of_columns(batch: PromptBatch, labels: Labels, unembed: Unembed, metric: Metric) -> Float[Tensor, "*C B"]:
    """One metric, from no more columns of the unembedding than it needs.

    Args:
        unembed: columns at each reading (None: the whole vocabulary) to logits.
    """
    if metric.columns == "answers":
        return batch.per_example(metric(unembed(labels.columns), labels.among_columns()))
    return batch.per_example(metric(unembed(None), labels))


def of_residual(model: Model, chunk: Chunk, final: Float[Tensor, "C N D"], metric: Metric) -> Float[Tensor, "C B"]:
    """One metric from final residuals at the readings (of models that run by hooks: from the logits there).

    The logits of the whole vocabulary are in memory only where the metric needs them at once, or a gradient is followed.
    """
    if metric.of_blocks is not None and not final.requires_grad:
        blocks = model.backend.logit_blocks(final, columns_at_once(model, final.shape[1]))
        values = metric.of_blocks(map(wide, blocks), chunk.labels)
        return chunk.batch.per_example(values.to(wide(final[:0]).dtype))
    return of_columns(chunk.batch, chunk.labels, partial(model.backend.unembed, final), metric)


def n_logits(model: Model, chunks: Sequence[Chunk], metric: Metric, in_blocks: bool = True) -> int:
    """Logits that a metric needs at once of one row, in the largest chunk: readings x columns.

    Args:
        in_blocks: False where the metric does not come from `of_residual`.
    """

    def width(n_readings: int) -> int:
        if metric.columns == "answers":
            return chunks[0].labels.columns.shape[1]
        at_once = columns_at_once(model, n_readings) if in_blocks and metric.of_blocks is not None else model.d_vocab_out
        return min(at_once, model.d_vocab_out)

    return max(n * width(n) for n in (len(chunk.batch.read_example) for chunk in chunks))
