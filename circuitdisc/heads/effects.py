"""What every head is worth: the change of the metric when it is ablated alone.

Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (one head ablated at a time).

Shape letters: L layers, H heads, B examples.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.checks import CONFIDENCE, SEED, bounded
from circuitdisc.engine.head_values import head_values
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import UnknownName
from circuitdisc.heads.base import OverExamples, Row, examples_of, head_mask, mean_intervals, plain, plain_rows
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.stats import Partition, partition_of
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import metric_for

By = Literal["signed", "absolute"]


@dataclass(frozen=True)
class HeadEffects(OverExamples):
    """What ablating every head alone does to the metric, example by example.

    Args:
        names: heads, layer by layer.
        values: metric with the head ablated minus the full model's. [L, H, B]
        low, high: intervals of the means. [L, H]
        full: the full model's metric. [B]
    """

    names: tuple[str, ...]
    values: Float[np.ndarray, "L H B"]
    low: Float[np.ndarray, "L H"]
    high: Float[np.ndarray, "L H"]
    full: Float[np.ndarray, "B"]
    metric: str
    ablation: str
    split: str
    confidence: float
    over: Partition | None = None

    def order(self, by: By = "signed") -> list[str]:
        """All heads, the one that the metric misses most first (`absolute`: the largest change of either sign)."""
        return [self.names[h] for h in effect_order(self.mean, by)]

    def table(self) -> list[Row]:
        """Heads, the one that the metric misses most first."""
        mean, low, high = self.mean.ravel(), self.low.ravel(), self.high.ravel()
        return plain_rows(
            {"head": self.names[h], "effect": mean[h], "low": low[h], "high": high[h], "n": self.n}
            for h in effect_order(self.mean, "signed")
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": plain(self.mean),
            "low": plain(self.low),
            "high": plain(self.high),
            "full": plain(float(self.full.mean())),
            "metric": self.metric,
            "ablation": self.ablation,
            "n": self.n,
            "split": self.split,
            "confidence": self.confidence,
        }


@bounded(confidence=CONFIDENCE, seed=SEED)
def head_effects(
    model: Model,
    task: Task,
    *,
    ablation: str | Ablation | dict[str, Any] = "mean",
    metric: str | Metric | None = None,
    split: str = "train",
    confidence: float = 0.95,
    seed: int = 0,
    memory: str | int = "4GiB",
    progress: bool = False,
) -> HeadEffects:
    """Ablate every head alone and measure the change of the metric.

    Args:
        ablation: what an ablated head carries; means are those of the train split.
        metric: None takes the task's own.
        split: `train` or `heldout`.
        confidence: coverage of the intervals.
        seed: of the bootstrap.
        memory: budget for activations, as `4GiB`.
        progress: show a progress bar.

    Raises:
        UnknownName: metric, ablation or split is not known.
        BadSetting: the metric needs wrong answers that the task lacks, or a number is out of its bounds.
    """
    cut, measure, examples = get_ablation(ablation), metric_for(model, task, metric), examples_of(task, split)
    graph = model.graph
    names = list(graph.heads)
    kept = [head_mask(graph, ()) | True, *(~head_mask(graph, [name]) for name in names)]
    patching = Patching(model, cut, examples_of(task, "train"), memory=memory)
    with progress_bar(len(kept) * patching.n_chunks(examples), "head effects", "run", progress) as bar:
        values = head_values(patching, examples, kept, [measure], bar.update)[measure.name]
    effects = (values[1:] - values[0]).reshape(graph.n_layers, graph.n_heads, -1)
    over = partition_of(examples)
    low, high = mean_intervals(effects, over, confidence, seed)
    return HeadEffects(tuple(names), effects, low, high, values[0], measure.name, cut.label, split, confidence, over)


def effect_order(effects: Float[np.ndarray, "L H"], by: By = "signed") -> list[int]:
    """Heads by number, the lowest effect first (`signed`) or the largest of either sign (`absolute`).

    Raises:
        UnknownName: `by` is neither.
    """
    if by not in ("signed", "absolute"):
        raise UnknownName("value of by", str(by), ("signed", "absolute"))
    flat = np.asarray(effects).ravel()
    return np.argsort(flat if by == "signed" else -np.abs(flat), kind="stable").tolist()
