"""Squared error, for models whose output is a number."""

from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, model_output


def squared_error(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Minus the squared difference between the model's number and the right one."""
    if labels.targets is None:
        raise ValueError("the squared error needs the right numbers: Labels.targets")
    return -(model_output(logits, labels) - labels.targets.to(logits.dtype)).square()


METRIC = Metric(
    "squared_error", squared_error, "answers", False, "minus the squared error of a number", needs_targets=True, most=0.0
)
