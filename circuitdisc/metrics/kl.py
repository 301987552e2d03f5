"""Divergence from the full model.

Source: Conmy et al. 2023, "Towards Automated Circuit Discovery" (https://arxiv.org/abs/2304.14997).
"""

from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric


def negative_kl(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """-KL(full model || circuit), in nats, over the whole vocabulary."""
    if labels.full_logprobs is None:
        raise ValueError("the KL metric needs the full model's log-probabilities: Labels.full_logprobs")
    full = labels.full_logprobs
    return -(full.exp() * (full - logits.log_softmax(-1))).sum(-1)


METRIC = Metric("kl", negative_kl, "all", False, "minus KL(full model || circuit), in nats", True, least_outputs=2)
