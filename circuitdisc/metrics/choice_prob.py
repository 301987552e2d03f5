"""Probability of the right answers among the answers that an example names.

Source: Schaeffer et al. 2024, "Why Has Predicting Downstream Capabilities of Frontier AI Models with Scale Remained Elusive?",
the probability of the correct choice among the choices alone (https://arxiv.org/abs/2406.04391).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, pick


def choice_prob(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """p(right) / (p(right) + p(wrong)); of one right and one wrong answer the logistic function of their logit difference."""
    right = torch.where(labels.answers_mask, pick(logits, labels.answers), -torch.inf).logsumexp(-1)
    wrong = torch.where(labels.wrong_mask, pick(logits, labels.wrong), -torch.inf).logsumexp(-1)
    return (right - wrong).sigmoid()


METRIC = Metric(
    "choice_prob",
    choice_prob,
    "answers",
    True,
    "probability of the right among the named answers",
    least_outputs=2,
    least=0.0,
    most=1.0,
)
