"""What every head is worth: the change of the metric when it is ablated alone.

Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (one head ablated at a time).

Shape letters: L layers, H heads, B examples.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.engine.head_values import head_values
from circuitdisc.engine.measuring import Measurement, Measuring
from circuitdisc.errors import UnknownName
from circuitdisc.heads.base import head_mask
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.results import Row, ValuesOverExamples, plain_rows
from circuitdisc.stats import Partition
from circuitdisc.tasks.base import Task

By = Literal["signed", "absolute"]


@dataclass(frozen=True, repr=False)
class HeadEffects(ValuesOverExamples):
    """What ablating every head alone does to the metric, example by example.

    Args:
        names: heads, layer by layer.
        values: metric with the head ablated minus the full model's. [L, H, B]
        low, high: intervals of the means. [L, H]
        full: the full model's metric. [B]
    """

    KEYS = ("mean", "low", "high", "full", "metric", "ablation", "n", "split", "confidence")

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


@takes(Measuring, split="train")
def head_effects(model: Model, task: Task, **options: Unpack[Measuring]) -> HeadEffects:
    """Ablate every head alone and measure the change of the metric.

    Args:
        ablation: what an ablated head carries; means are those of the train split.

    Raises:
        UnknownName: metric, ablation or split is not known.
        BadSetting: the metric needs wrong answers that the task lacks, or a number is out of its bounds.
    """
    setup, graph = Measurement.of_task(model, task, options), model.graph
    names, metric = list(graph.heads), setup.metric
    kept = [head_mask(graph, ()) | True, *(~head_mask(graph, [name]) for name in names)]
    patching = setup.patching()
    with setup.bar(len(kept) * patching.n_chunks(setup.examples), "head effects", "run") as bar:
        values = head_values(patching, setup.examples, kept, [metric], bar.update)[metric.name]
    effects = (values[1:] - values[0]).reshape(graph.n_layers, graph.n_heads, -1)
    return HeadEffects(tuple(names), effects, *setup.intervals(effects), full=values[0], **setup.about())


def effect_order(effects: Float[np.ndarray, "L H"], by: By = "signed") -> list[int]:
    """Heads by number, the lowest effect first (`signed`) or the largest of either sign (`absolute`).

    Raises:
        UnknownName: `by` is neither.
    """
    if by not in ("signed", "absolute"):
        raise UnknownName("value of by", str(by), ("signed", "absolute"))
    flat = np.asarray(effects).ravel()
    return np.argsort(flat if by == "signed" else -np.abs(flat), kind="stable").tolist()
