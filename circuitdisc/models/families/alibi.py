"""Linear positions (ALiBi, Press et al. 2022): a score falls by a head's slope for each token that the key is further away.

Against one query, that is the slope times the key's position, and a constant that the softmax does not see.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def slopes(n_heads: int) -> Float[Tensor, "H"]:
    """A geometric series from 2^(-8/n); for numbers of heads between powers of two, every second of the next series as well."""
    n = 2 ** math.floor(math.log2(n_heads))
    first = _series(n)
    return first if n == n_heads else torch.cat([first, _series(2 * n)[::2][: n_heads - n]])


def _series(n: int) -> Float[Tensor, "n"]:
    return torch.tensor(2 ** (-8 / n), dtype=torch.float32) ** torch.arange(1, n + 1)
