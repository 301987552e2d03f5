"""The hard concrete distribution: random masks between 0 and 1 that are often exactly 0 or 1, with gradients to one logit each.

    u ~ uniform(0, 1)
    s = sigmoid((log u - log(1 - u) + logit) / beta)
    mask = clamp(s * (zeta - gamma) + gamma, 0, 1)

P(mask > 0) is known in closed form, so that the expected number of masks that are not 0 (the expected L0 norm) has a
gradient, too.

Source: Louizos, Welling and Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization", section 2.2
(https://arxiv.org/abs/1712.01312), with their constants.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
OFFSET = BETA * math.log(-GAMMA / ZETA)  # the logit at which a mask is 0 half of the time


def sample(logits: Float[Tensor, "*n"], generator: np.random.Generator) -> Float[Tensor, "*n"]:
    """One draw of every mask. The noise is drawn in numpy, so that it is the same on every device."""
    uniform = torch.from_numpy(generator.random(tuple(logits.shape))).to(logits).clamp(1e-6, 1 - 1e-6)
    return _stretched(((uniform.log() - (-uniform).log1p() + logits) / BETA).sigmoid())


def deterministic(logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The mask without noise, for use after the training; above 0.5 where the logit is above 0."""
    return _stretched(logits.sigmoid())


def keep_probability(logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """P(mask > 0). Its sum is the expected L0 norm."""
    return (logits - OFFSET).sigmoid()


def keep_score(*logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-log P(dropped), in nats, of what is kept only if all these masks are above 0: never negative, and it does not saturate.

    P(dropped) = (1 - p) + p (1 - p') for two masks, added up as logarithms.
    """
    dropped = functional.logsigmoid(OFFSET - logits[0])
    kept = functional.logsigmoid(logits[0] - OFFSET)
    for other in logits[1:]:
        dropped = torch.logaddexp(dropped, kept + functional.logsigmoid(OFFSET - other))
        kept = kept + functional.logsigmoid(other - OFFSET)
    return -dropped


def _stretched(s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
