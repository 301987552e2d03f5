"""Heads ablated one after the other, from the layer of the change on.

The residual before every layer is kept: a change in layer l leaves layers 0..l-1 alone, and only layers from l on run again.

Shape letters: L layers, H heads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuitdisc.engine.chunk import Chunk, n_examples_of
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.ranks import gathered
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric


class HeadRemoval:
    """Heads ablated one after the other, on all examples.

    Args:
        patching: model and ablation; `ablation.target` says whether a head's output or its attention pattern is cut.
        chunks: the examples, held in memory.
        kept: the heads to start from. [L, H]
    """

    def __init__(self, patching: Patching, chunks: Sequence[Chunk], metric: Metric, kept: Bool[np.ndarray, "L H"]) -> None:
        self.patching, self.chunks, self.metric = patching, chunks, metric
        self.graph = patching.graph
        if patching.ablation.target == "pattern" and not patching.model.can("patterns"):
            raise BadSetting("attention patterns can be ablated only in models with fast components: use target=output")
        self.kept = kept.copy()
        self._before: list[list[Tensor]] = [[] for _ in chunks]  # residual before each layer, for each chunk
        self._tried: tuple[bytes, float, list[list[Tensor]]] | None = None
        self.value = self._take_over(self.kept, 0)

    def try_ablating(self, layer: int, head: int) -> float:
        """The metric if this head is ablated, too."""
        kept = self.kept.copy()
        kept[layer, head] = False
        self.patching.cost.candidates += 1
        value, seen = self._measure(kept, layer)
        self._tried = kept.tobytes(), value, seen
        return value

    def set_head(self, layer: int, head: int, keep: bool) -> float:
        """Ablate or restore a head for good; returns the metric. What was just tried is not run again."""
        self.kept[layer, head] = keep
        self.value = self._take_over(self.kept, layer)
        return self.value

    def _take_over(self, kept: Bool[np.ndarray, "L H"], layer: int) -> float:
        """The metric with these heads; from now on runs begin from theirs."""
        if self._tried is not None and self._tried[0] == kept.tobytes():
            _, value, seen = self._tried
        else:
            value, seen = self._measure(kept, layer)
        self._before = [before[:layer] + after for before, after in zip(self._before, seen, strict=True)]
        self._tried = None
        return value

    def _measure(self, kept: Bool[np.ndarray, "L H"], layer: int) -> tuple[float, list[list[Tensor]]]:
        """The metric, and the residual before each layer from `layer` on, for each chunk."""
        sums, states = [], []
        for index, chunk in enumerate(self.chunks):
            before = self._before[index]
            logits, seen = self.patching.head_logits(chunk, kept, layer, before[layer] if before else None)
            states.append(seen)
            sums.append(of_logits(chunk.batch, chunk.labels, logits, [self.metric])[self.metric.name].double().sum())
        whole = gathered(torch.stack(sums), self.chunks[0].share, "sums of heads")
        return sum(whole.tolist()) / n_examples_of(self.chunks), states
