"""Bootstrap intervals over examples."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 2000


def bootstrap_interval(
    samples: Sequence[Float[np.ndarray, "B"]],
    statistic: Callable[..., Float[np.ndarray, "..."]],
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic when the examples are drawn again with replacement.

    Args:
        samples: one array for each argument of the statistic; example i is the same example in all of them.
        statistic: of the arrays, along `axis`.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    if len(samples[0]) < 2:
        return float("nan"), float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant sample has an interval of length 0, which is said elsewhere
        found = stats.bootstrap(
            tuple(samples),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=200,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def wilson_interval(n_hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion; used where all examples agree and a bootstrap would claim certainty."""
    found = stats.binomtest(n_hits, n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)
