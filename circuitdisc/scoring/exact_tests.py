"""The statistics of the hypothesis tests: each takes numbers and knows nothing of circuits.

The p values hold for any number of observations: binomial tails are exact, and a permutation p value counts the observed order
among the permutations.

Shape letters: B observations, N tests.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from scipy.spatial.distance import pdist, squareform

# Differences this small, relative to the largest value, are rounding of float32: the two are tied.
TIE = 1e-5


def apart(first: Float[np.ndarray, "B"], second: Float[np.ndarray, "B"]) -> Bool[np.ndarray, "B"]:
    """Where two numbers differ by more than rounding."""
    scale = max(float(np.abs(first).max()), float(np.abs(second).max()))
    return np.abs(first - second) > TIE * scale


def sign_test(first: Float[np.ndarray, "B"], second: Float[np.ndarray, "B"], epsilon: float) -> tuple[float, float, int]:
    """Does `first` exceed `second` about as often as it falls short of it?

    H0: |P(first > second) - 1/2| < epsilon, among the pairs that are not tied.

    Args:
        epsilon: from 0 to below 1/2; how far from 1/2 still counts as equivalent.

    Returns:
        |share - 1/2|, its p value (both tails of the binomial distribution with P = 1/2 + epsilon, where H0 rejects
        most often) and the number of pairs that are not tied. 0 and 1 if all are tied.

    Source: Shi et al. 2024, equivalence.
    """
    untied = apart(first, second)
    n, above = int(untied.sum()), int((first > second)[untied].sum())
    if n == 0:
        return 0.0, 1.0, 0
    few, many = min(above, n - above), max(above, n - above)
    lower = stats.binomtest(few, n, 0.5 + epsilon, alternative="less").pvalue
    upper = stats.binomtest(many, n, 0.5 + epsilon, alternative="greater").pvalue
    return abs(above / n - 0.5), min(1.0, float(lower + upper)), n


def hsic_test(
    first: Float[np.ndarray, "B"], second: Float[np.ndarray, "B"], n_permutations: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Are two numbers of each observation independent?

    H0: they are.

    Returns:
        HSIC = trace(K H L H) / B^2 (K, L: Gaussian kernels of the two; H = I - 1/B) and the share of orders of `second`,
        the observed one among them, with an HSIC at least as large.

    Source: Gretton et al. 2007, "A Kernel Statistical Test of Independence"; Shi et al. 2024, independence.
    """
    kernel, other = _centred(gaussian_kernel(first)), _centred(gaussian_kernel(second))
    n = len(first)
    observed = float((kernel * other).sum()) / n**2
    rounding = 1e-12 * max(float((kernel**2).sum() * (other**2).sum()) ** 0.5 / n**2, 1e-12)
    as_large = 0
    for _ in range(n_permutations):
        order = generator.permutation(n)
        as_large += float(np.vdot(kernel, other[np.ix_(order, order)])) / n**2 >= observed - rounding
    return observed, (1 + as_large) / (1 + n_permutations)


def gaussian_kernel(values: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B B"]:
    """exp(-d^2 / 2 w^2), d the distance of two values and w the median of the distances that are not 0."""
    distances = pdist(np.asarray(values, dtype=np.float64)[:, None])
    apart = distances[distances > 0]
    width = float(np.median(apart)) if len(apart) else 1.0
    return np.exp(-(squareform(distances) ** 2) / (2 * width**2))


def _centred(kernel: Float[np.ndarray, "B B"]) -> Float[np.ndarray, "B B"]:
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def more_often(n_hits: int, n: int, quantile: float) -> float:
    """p value of H0: the probability of a hit is at most `quantile`. Exact binomial tail."""
    return float(stats.binomtest(n_hits, n, quantile, alternative="greater").pvalue)


def less_often(n_hits: int, n: int, quantile: float) -> float:
    """p value of H0: the probability of a hit is at least `quantile`. Exact binomial tail."""
    return float(stats.binomtest(n_hits, n, quantile, alternative="less").pvalue)


def holm(p_values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """p values corrected for their number, so that the probability of any false rejection stays below alpha.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
