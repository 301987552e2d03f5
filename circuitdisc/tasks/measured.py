"""Which metric measures a task: by name or as an object, seen to fit the task's examples and the model's outputs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from circuitdisc.errors import BadSetting
from circuitdisc.metrics import METRICS, AnyMetric, Metric, get_metric
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.model import TaskModel


def metric_for(model: TaskModel, task: Task, *wanted: AnyMetric | None) -> Metric:
    """The metric that is asked for, else what stands in for it, else the task's own.

    Args:
        wanted: as for `get_metric`: what the caller gave, then the metric that a circuit was found with.

    Raises:
        UnknownName: it is not known.
        BadSetting: it is no metric, or says nothing about this task or model.
    """
    metric = get_metric(*wanted, task.metric)
    check_metric(metric, (*task.train, *task.heldout), model, task.name)
    return metric


def check_metric(metric: Metric, examples: Sequence[Example], model: TaskModel, task: str) -> None:
    """Refuse a metric that has no value on these examples, or the same value whatever the model does.

    Raises:
        BadSetting: it needs wrong answers or targets that some example lacks, or more outputs than the model has.
    """
    if model.d_vocab_out < metric.least_outputs:
        raise BadSetting(
            f"metric '{metric.name}' weighs outputs against each other, and {model.name} has {model.d_vocab_out}: it is "
            "the same whatever the model computes: the output is a number, so give each example a 'target' and use "
            "metric=squared_error"
        )
    if metric.needs_wrong and not all(all(example.wrong) for example in examples):
        other = "squared_error" if is_numeric(examples) else "log_prob"
        raise BadSetting(f"metric '{metric.name}' needs wrong answers, and task '{task}' has examples without: use {other}")
    if metric.needs_targets and not is_numeric(examples):
        raise BadSetting(
            f"metric '{metric.name}' needs the number that the model should put out, and task '{task}' has examples without: "
            "give each a 'target', or use another metric"
        )


def beside(model: TaskModel, metric: Metric, *names: str) -> list[Metric]:
    """A metric and, beside it, those of these names that say something about this model; each is there once."""
    others = [METRICS[name] for name in names if METRICS[name].least_outputs <= model.d_vocab_out]
    return list({each.name: each for each in (metric, *others)}.values())


def mean_targets(examples: Sequence[Example]) -> Float[np.ndarray, "B"]:
    """Each example's right number; of several readings their mean, as `PromptBatch.per_example` takes it of values."""
    return np.array([np.mean(example.targets) for example in examples], dtype=np.float64)


def is_numeric(examples: Sequence[Example]) -> bool:
    """Whether the answers are numbers, not tokens."""
    return all(example.targets for example in examples)


def constant_errors(examples: Sequence[Example]) -> Float[np.ndarray, "B"]:
    """Minus the squared error of the best constant answer: what a model that reads nothing can reach."""
    best = np.mean([target for example in examples for target in example.targets])
    return np.array([-np.mean(np.square(np.array(example.targets) - best)) for example in examples])


def need_choice(model: TaskModel, what: str) -> None:
    """Refuse a model with one output, whose most likely answer is that output whatever it computes.

    Args:
        what: what asks for the most likely answer, or for its probability.

    Raises:
        BadSetting: the model has one output.
    """
    if model.d_vocab_out < 2:
        raise BadSetting(f"{what} reads which answer a model finds most likely, and {model.name} puts out one number")
