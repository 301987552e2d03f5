"""How a circuit is judged: the options that scores share, and what every score does first."""

from collections.abc import Mapping
from typing import Annotated, Any

from typing_extensions import TypedDict

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.engine.measuring import Measurement
from circuitdisc.errors import BadSetting, GraphMismatch
from circuitdisc.metrics import AnyMetric
from circuitdisc.models.model import Model
from circuitdisc.options import OnSplit, Option, from_options
from circuitdisc.scoring.base import judging_ablation
from circuitdisc.tasks.base import SPLITS, Task
from circuitdisc.tasks.measured import metric_for


class UnderAblation(TypedDict, total=False):
    """Under which ablation."""

    ablation: Annotated[
        str | Ablation | dict[str, Any] | None,
        Option(None, "what cut edges carry; None takes what the circuit was found with. Means are those of the train split."),
    ]


class ByMetric(UnderAblation, total=False):
    """And by which metric."""

    metric: Annotated[AnyMetric | None, Option(None, "None takes what the circuit was found with.")]


class Judging(OnSplit, UnderAblation, total=False):
    """On which examples, with what intervals."""


class JudgingBy(OnSplit, ByMetric, total=False):
    """The same by a metric."""


def judging(model: Model, task: Task, found_with: Provenance, options: Mapping[str, Any]) -> Measurement:
    """A measurement of circuits with the options of a call.

    Args:
        found_with: how the circuit was found.

    Raises:
        BadSetting: the split is empty, no ablation is known, or the metric says nothing about this task or model.
        UnknownName: the split, ablation or metric is not known.
    """
    check_split(task, options["split"])
    return from_options(
        Measurement,
        options,
        model=model,
        task=task,
        examples=task.split(options["split"]),
        ablation=judging_ablation(options["ablation"], found_with),
        metric=metric_for(model, task, options["metric"], found_with.metric),
    )


def check_graph(model: Model, circuit: Circuit) -> None:
    """Refuse a circuit of another architecture."""
    if circuit.graph != model.graph:
        raise GraphMismatch(
            f"the circuit belongs to a model of {circuit.graph.describe()}; {model.name} has {model.graph.describe()}"
        )


def check_split(task: Task, split: str) -> None:
    """Refuse a split that does not exist or is empty."""
    check_choice("split", split, SPLITS)
    if not task.split(split):
        raise BadSetting(f"split={split!r} has no examples: give the task some, or take the other split")
