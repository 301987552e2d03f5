"""What the engine offers to every kind of ablation (`ablation/base.py`): the reference examples and runs of the model on them.

A kind that learns something follows gradients through `CleanRun`s: the metric as a function of whatever hooks are made of.
Where values are kept differs, and with it what `run` and `carry_constants` write: `SenderSource` in `prepared.py` for runs of
circuits, `PlaceSource` in `gradients/differences.py` for attribution.

Shape letters: B examples, T positions, E embedding senders, D residual width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.evaluate import of_columns
from circuitdisc.engine.forward import Hooks, LayerState, clean_states, forward, logits_at
from circuitdisc.metrics import Metric, log_probabilities, wide
from circuitdisc.models.model import Model, fast_components
from circuitdisc.tasks.base import Example, PromptBatch, collate


class CleanRun:
    """The model on one batch of the reference examples, as it is and under hooks.

    Args:
        share: of the reference examples that are in this batch, for the count of costs.
        cost: a `Cost`; runs are counted there, those with gradients as backward passes, too.
    """

    def __init__(self, model: Model, batch: PromptBatch, share: float, cost: Any) -> None:
        self.components, self.graph, self.batch = fast_components(model, "a learned ablation"), model.graph, batch
        self.frame = self.components.frame(batch.is_token, batch.position_ids)
        self._share, self._cost = share, cost

    @property
    def embedding(self) -> Float[Tensor, "E B T D"]:
        """What the embedding's senders write."""
        return self.components.embed(self.batch.clean, self.batch.position_ids, self.graph.split_embeddings)

    def layers(self) -> Iterator[LayerState]:
        """The layers of a run with nothing changed, one by one."""
        self._cost.model_runs += self._share
        return clean_states(self.components, self.graph, self.batch, self.frame)

    @cached_property
    @torch.no_grad()
    def _labels(self) -> Any:
        *_, last = self.layers()
        logits = logits_at(self.components, last.after, self.batch.reads)
        return replace(self.batch.labels, full_logprobs=log_probabilities(logits))

    def values(self, metric: Metric, x: Float[Tensor, "B T D"], hooks: Hooks, first: int = 0) -> Float[Tensor, "B"]:
        """The metric of a run under hooks, example by example, with gradients to whatever they are made of.

        Args:
            x: the residual before layer `first`.
        """
        labels, part = self._labels, self._share * (1 - first / self.graph.n_layers)
        self._cost.model_runs += part
        final = forward(self.components, self.graph, self.frame, x, hooks, first=first)[self.batch.reads]
        self._cost.backward_runs += part * final.requires_grad
        return of_columns(self.batch, labels, lambda columns: wide(self.components.unembed(final[None], columns)[0]), metric)

    def scale(self, layer: int) -> Float[Tensor, "B T 1"] | float:
        """Of a norm after attention, by which what the layer's heads write is multiplied; 1 where there is none."""
        return self.frame.head_scale.get(layer, 1.0)


@dataclass
class Reference:
    """A model and the examples that an ablation learns from.

    Args:
        chunk_size: how many of the examples fit in memory.
        cost: a `Cost`; runs are counted there.
    """

    model: Model
    examples: Sequence[Example]
    chunk_size: int
    cost: Any

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(len(example) for example in self.examples)

    def batches(self, padding_side: str = "right") -> Iterator[PromptBatch]:
        """The examples, as many at a time as fit in memory."""
        for first in range(0, len(self.examples), self.chunk_size):
            yield collate(self.examples[first : first + self.chunk_size], padding_side, self.model.device)

    def clean_runs(self) -> list[CleanRun]:
        """The reference examples, ready to be run with gradients; for models with fast components.

        Raises:
            BadSetting: the model has none.
        """
        share = 1 / len(self.examples)
        return [CleanRun(self.model, batch, batch.n_examples * share, self.cost) for batch in self.batches()]
