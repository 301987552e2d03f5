"""Divergence from the full model.

Source: Conmy et al. 2023, "Towards Automated Circuit Discovery" (https://arxiv.org/abs/2304.14997).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.metrics.base import Labels, Metric
from circuitdisc.metrics.blocks import Blocks, LogSum


def negative_kl(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """-KL(full model || circuit), in nats, over the whole vocabulary."""
    full = _full(labels)
    return -(full.exp() * (full - logits.log_softmax(-1))).sum(-1)


def negative_kl_of_blocks(blocks: Blocks, labels: Labels) -> Float[Tensor, "... N"]:
    """The same of logits z that arrive in blocks: the mean of log p - z under p, plus log sum exp z.

    The log-probabilities' own rounding is an error of their normaliser most of all, which is measured and taken out.
    """
    full, total, start = _full(labels), LogSum(), 0
    mass = torch.zeros(len(full), dtype=torch.float64, device=full.device)
    gap = torch.zeros_like(mass)
    for logits in blocks:
        log_p = full[:, start : start + logits.shape[-1]]
        p = log_p.exp()
        shifted, most = total.add(logits)  # sums of products with the logits themselves, which can be large, would lose more
        in_block = p.sum(-1, dtype=torch.float64)
        gap = gap + (log_p - shifted).mul_(p).sum(-1).double() - in_block * most
        mass = mass + in_block
        start += logits.shape[-1]
    return mass.log() - gap / mass - total.value


def _full(labels: Labels) -> Float[Tensor, "N V"]:
    if labels.full_logprobs is None:
        raise ValueError("the KL metric needs the full model's log-probabilities: Labels.full_logprobs")
    return labels.full_logprobs


METRIC = Metric(
    "kl",
    negative_kl,
    "all",
    False,
    "minus KL(full model || circuit), in nats",
    True,
    least_outputs=2,
    most=0.0,
    of_blocks=negative_kl_of_blocks,
)
