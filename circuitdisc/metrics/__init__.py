"""The metrics by name. A new metric is a file here with a `METRIC`, its name in the list below, and a file in conf/metric.

Other packages declare theirs as entry points (`circuitdisc/plugins.py`), each a `Metric` of the entry point's name.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.metrics.base import Labels, Metric, log_probabilities, model_output, wide
from circuitdisc.plugins import Registry, Unfit, check_function, name_of, refuse_mark

__all__ = [
    "METRICS",
    "OUTPUT",
    "REGISTRY",
    "AnyMetric",
    "Labels",
    "Metric",
    "get_metric",
    "log_probabilities",
    "model_output",
    "wide",
]

_FILES = (
    "logit_diff",
    "prob_diff",
    "choice_prob",
    "log_prob",
    "accuracy",
    "pair_accuracy",
    "kl",
    "squared_error",
)
METRICS: dict[str, Metric] = {name: import_module(f"circuitdisc.metrics.{name}").METRIC for name in _FILES}
OUTPUT = Metric("output", model_output, "answers", summary="the number that the model puts out")  # what scores correlate


AnyMetric = str | Metric | Callable[..., Any]


def _adopt(name: str, declared: Any) -> Metric:
    if not isinstance(declared, Metric):
        raise Unfit("is no metric")
    if declared.name != name:
        raise Unfit(f"is a metric named {declared.name!r}")
    check_function(declared.function, ("logits", "labels"))
    return declared


REGISTRY = Registry(
    "metric",
    METRICS,
    _adopt,
    "a cd.Metric of the entry point's name, its function (logits, labels)",
    hint="A metric of your own is given as an object: metric=Metric(...).",
)


def get_metric(*wanted: AnyMetric | None) -> Metric:
    """The first metric that is given, by name, as an object or as a function.

    Args:
        wanted: what the caller asks for, then what stands in for it (the metric a circuit was found with, the task's own).
            None and an empty name are passed over. A name may also be that of an object further on. A function (logits
            [..., N, V], labels) -> values [..., N] is a metric of the whole vocabulary without further demands.

    Raises:
        UnknownName: there is none of this name; the message offers the nearest ones.
        BadSetting: an object that is no metric, or one with the name of another metric; or another package's cannot be used.
    """
    given = [_of_function(metric) for metric in wanted if metric is not None and metric != ""]
    if not given:
        raise BadSetting(f"no metric is named: give metric=, one of {', '.join(REGISTRY.names)}")
    own = {metric.name: metric for metric in given if isinstance(metric, Metric)}
    first = given[0]
    if isinstance(first, Metric):
        if not isinstance(first.name, str) or (first.name in REGISTRY.names and REGISTRY.get(first.name) != first):
            raise BadSetting(f"a metric of your own is named {first.name!r}, as one of circuitdisc is: give it another name")
        return first
    if not isinstance(first, str):
        names = ", ".join(REGISTRY.names)
        raise BadSetting(f"metric={first!r} is no metric: give a name ({names}), a function or cd.Metric(name, function)")
    if first in own:
        return get_metric(own[first])
    if first == "correlation":
        raise BadSetting(
            "a correlation is a figure of a whole data set and no mean over its examples, so that no edge can be judged by it: "
            "search with metric=squared_error; scores of a task with targets name the correlation beside it"
        )
    refuse_mark("metric", first)
    return REGISTRY.get(first)


def _of_function(given: Any) -> Any:
    if isinstance(given, Metric | str | type) or not callable(given):
        return given
    metric: Any = given
    try:
        check_function(metric, ("logits", "labels"))
    except Unfit as problem:
        raise BadSetting(f"the metric {name_of(metric)} {problem}: it must take (logits, labels)") from problem
    return Metric(name_of(metric), metric)
