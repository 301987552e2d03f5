"""Probability difference.

Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?" (https://arxiv.org/abs/2305.00586).
"""

from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric, masked_sum, pick
from circuitdisc.metrics.blocks import Blocks, log_probabilities_at


def prob_diff(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Probability of the right answers minus that of the wrong ones."""
    probabilities = logits.softmax(-1)
    right = masked_sum(pick(probabilities, labels.answers), labels.answers_mask)
    return right - masked_sum(pick(probabilities, labels.wrong), labels.wrong_mask)


def prob_diff_of_blocks(blocks: Blocks, labels: Labels) -> Float[Tensor, "... N"]:
    """The same, of logits that arrive in blocks."""
    right, wrong = (
        log_probabilities_at(blocks, labels.columns).exp().split([labels.answers.shape[1], labels.wrong.shape[1]], -1)
    )
    return masked_sum(right, labels.answers_mask) - masked_sum(wrong, labels.wrong_mask)


METRIC = Metric(
    "prob_diff",
    prob_diff,
    "all",
    True,
    "probability of right minus wrong answers",
    least_outputs=2,
    least=-1.0,
    most=1.0,
    of_blocks=prob_diff_of_blocks,
)
