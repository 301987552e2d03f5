"""Probability difference.

Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?" (https://arxiv.org/abs/2305.00586).
"""

from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, masked_sum, pick


def prob_diff(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Probability of the right answers minus that of the wrong ones."""
    probabilities = logits.softmax(-1)
    right = masked_sum(pick(probabilities, labels.answers), labels.answers_mask)
    return right - masked_sum(pick(probabilities, labels.wrong), labels.wrong_mask)


METRIC = Metric("prob_diff", prob_diff, "all", True, "probability of right minus wrong answers", least_outputs=2)
