"""Log-probability of the right answers."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, pick


def log_prob(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Log-probability, in nats, that the next token is one of the right answers."""
    picked = pick(logits.log_softmax(-1), labels.answers)
    return torch.where(labels.answers_mask, picked, -torch.inf).logsumexp(-1)


METRIC = Metric("log_prob", log_prob, "all", False, "log-probability of the right answers, in nats", least_outputs=2)
