"""Top-1 accuracy."""

from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric


def accuracy(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """1 where the most likely token of the whole vocabulary is a right answer, else 0."""
    hit = (logits.argmax(-1, keepdim=True) == labels.answers) & labels.answers_mask
    return hit.any(-1).to(logits.dtype)


METRIC = Metric(
    "accuracy",
    accuracy,
    "all",
    False,
    "share of examples whose top token is right",
    differentiable=False,
    least_outputs=2,
    least=0.0,
    most=1.0,
)
