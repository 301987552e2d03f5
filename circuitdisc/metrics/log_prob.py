"""Log-probability of the right answers."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, pick
from circuitdisc.metrics.blocks import Blocks, log_probabilities_at


def log_prob(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Log-probability, in nats, that the next token is one of the right answers."""
    return _of_any(pick(logits.log_softmax(-1), labels.answers), labels)


def log_prob_of_blocks(blocks: Blocks, labels: Labels) -> Float[Tensor, "... N"]:
    """The same, of logits that arrive in blocks."""
    return _of_any(log_probabilities_at(blocks, labels.answers), labels)


def _of_any(log_probabilities: Float[Tensor, "... N A"], labels: Labels) -> Float[Tensor, "... N"]:
    return torch.where(labels.answers_mask, log_probabilities, -torch.inf).logsumexp(-1)


METRIC = Metric(
    "log_prob",
    log_prob,
    "all",
    False,
    "log-probability of the right answers, in nats",
    least_outputs=2,
    most=0.0,
    of_blocks=log_prob_of_blocks,
)
