"""Logit difference: how far the right answers lie above the wrong ones.

Source: Wang et al. 2022, "Interpretability in the Wild" (https://arxiv.org/abs/2211.00593).
"""

from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, masked_mean, pick


def logit_diff(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Mean logit of the right answers minus mean logit of the wrong ones."""
    right = masked_mean(pick(logits, labels.answers), labels.answers_mask)
    return right - masked_mean(pick(logits, labels.wrong), labels.wrong_mask)


METRIC = Metric("logit_diff", logit_diff, "answers", True, "logit of right minus wrong answers")
