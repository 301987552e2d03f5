"""Accuracy among the answers that an example names."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, pick


def pair_accuracy(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """1 where the highest logit of a right answer lies above that of every wrong one, else 0; all other tokens are ignored."""
    right = torch.where(labels.answers_mask, pick(logits, labels.answers), -torch.inf).amax(-1)
    wrong = torch.where(labels.wrong_mask, pick(logits, labels.wrong), -torch.inf).amax(-1)
    return (right > wrong).to(logits.dtype)


METRIC = Metric(
    "pair_accuracy",
    pair_accuracy,
    "answers",
    True,
    "share with a right answer above every wrong",
    differentiable=False,
    least_outputs=2,
    least=0.0,
    most=1.0,
)
