"""What a measurement on a task's examples is made of: the examples, what is ablated, the metric, and the intervals.

    @takes(Measuring, split="train")
    def head_effects(model, task, **options: Unpack[Measuring]):
        setup = Measurement.of_task(model, task, options)
        values = run(setup.patching(), setup.examples, setup.metric)
        return Effects(values, *setup.intervals(values), **setup.about())

Shape letters: B examples, X quantities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm
from typing_extensions import TypedDict

from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadTask, UnknownName
from circuitdisc.metrics import AnyMetric, Metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, OnSplit, Option, from_options
from circuitdisc.progress import progress_bar
from circuitdisc.stats import Partition, interval, partition_of
from circuitdisc.tasks.base import SPLITS, Example, Task
from circuitdisc.tasks.measured import metric_for


class Ablating(TypedDict, total=False):
    """What is put in a part's place, and what is then measured."""

    ablation: Annotated[
        str | Ablation | Mapping[str, Any],
        Option("mean", "what an ablated part carries; means are those of the train split."),
    ]
    metric: Annotated[
        AnyMetric | None, Option(None, "a name, or a metric of your own: a `Metric` or a function; None takes the task's.")
    ]


class AblatingAll(Drawing, Ablating, total=False):
    """The same where both splits have their part."""


class Measuring(OnSplit, Ablating, total=False):
    """A metric on some examples under an ablation."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A measurement of the model as it is: on which examples, with what intervals.

    Args:
        task: that the examples are of; None if they were given by themselves.
        memory, progress: as in `Working`.
    """

    model: Model
    task: Task | None
    examples: tuple[Example, ...]
    split: str
    confidence: float
    seed: int
    memory: str | int
    progress: bool

    @classmethod
    def of(cls, model: Model, task: Task | Sequence[Example], options: Mapping[str, Any]) -> "Reading":
        """A measurement with the options of a call.

        Raises:
            UnknownName: there is no such split.
            BadTask: it is empty.
        """
        own = task if isinstance(task, Task) else None
        return from_options(cls, options, model=model, task=own, examples=examples_of(task, options["split"]))

    @property
    def over(self) -> Partition:
        """What is drawn again for intervals."""
        return partition_of(self.examples)

    def intervals(self, values: Float[np.ndarray, "*X B"]) -> tuple[Float[np.ndarray, "*X"], Float[np.ndarray, "*X"]]:
        """Lower and upper ends of the means' intervals."""
        return mean_intervals(values, self.over, self.confidence, self.seed)

    def bar(self, total: int, description: str, unit: str) -> "tqdm[Any]":
        """A progress bar, if one is asked for."""
        return progress_bar(total, description, unit, self.progress)

    def about(self) -> dict[str, Any]:
        """What a result says of how it was measured."""
        return {"split": self.split, "confidence": self.confidence, "over": self.over}


@dataclass(frozen=True, kw_only=True)
class Measurement(Reading):
    """A measurement of a metric with parts ablated."""

    ablation: Ablation
    metric: Metric

    @classmethod
    def of_task(cls, model: Model, task: Task, options: Mapping[str, Any]) -> "Measurement":
        """A measurement with the options of a call.

        Raises:
            UnknownName: metric, ablation or split is not known.
            BadSetting: the metric says nothing about this task or model.
            BadTask: the split is empty.
        """
        ablation, metric = get_ablation(options["ablation"]), metric_for(model, task, options["metric"])
        examples = examples_of(task, options["split"])
        return from_options(cls, options, model=model, task=task, examples=examples, ablation=ablation, metric=metric)

    def patching(self) -> Patching:
        """The model under the ablation."""
        assert self.task is not None, "an ablation refers to a task's train split"
        return Patching(self.model, self.ablation, examples_of(self.task, "train"), memory=self.memory)

    def about(self) -> dict[str, Any]:
        return {"metric": self.metric.name, "ablation": self.ablation.label, **super().about()}


def examples_of(task: Task | Sequence[Example], split: str) -> tuple[Example, ...]:
    """A split of a task, or the examples themselves.

    Raises:
        UnknownName: there is no such split.
        BadTask: it is empty.
    """
    if split not in SPLITS:
        raise UnknownName("split", str(split), SPLITS)
    chosen = task.split(split) if isinstance(task, Task) else tuple(task)
    if not chosen:
        raise BadTask(f"there are no examples in split '{split}': give the task some, or name the other split")
    return tuple(chosen)


def mean_intervals(
    values: Float[np.ndarray, "*X B"], over: Partition | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, "*X"], Float[np.ndarray, "*X"]]:
    """Lower and upper ends of the intervals of many means over the same examples (`circuitdisc/stats.py`).

    Args:
        over: what is drawn again; None: single examples.
    """
    ends = interval((values,), groups=over, confidence=confidence, seed=seed)
    return ends.low, ends.high
