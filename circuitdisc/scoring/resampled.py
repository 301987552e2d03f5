"""Bootstrap intervals of figures made from the means of many circuits over the same examples.

Every resample of the examples serves all circuits, so that their means stay paired, and a figure made from hundreds of means
costs one product of matrices.

Shape letters: X circuits, B examples, W resamples.
"""

import math

import numpy as np
from jaxtyping import Float

from circuitdisc.scoring.faithfulness import VANISHING
from circuitdisc.scoring.intervals import RESAMPLES


def resampled_means(values: Float[np.ndarray, "*X B"], seed: int = 0) -> Float[np.ndarray, "*X W"]:
    """Means of each circuit over examples drawn again with replacement; NaN for fewer than two examples.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    n = values.shape[-1]
    if n < 2:
        return np.full((*values.shape[:-1], RESAMPLES), math.nan)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return values @ (counts.T / n)


def interval(figures: Float[np.ndarray, "*X W"], confidence: float = 0.95) -> Float[np.ndarray, "2 *X"]:
    """Lower and upper end of the percentile interval of each figure."""
    tail = 50 * (1 - confidence)
    with np.errstate(invalid="ignore"):  # an undefined figure has an undefined interval
        return np.percentile(figures, [tail, 100 - tail], axis=-1)


def normalised(
    circuit: Float[np.ndarray, "*X W"], full: Float[np.ndarray, "*W"], empty: Float[np.ndarray, "*W"]
) -> Float[np.ndarray, "*X W"]:
    """Faithfulness from means: (m(C) - m(empty)) / (m(M) - m(empty))."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((circuit - empty) / (full - empty))


def why_undefined(full: float, empty: float) -> str:
    """Why faithfulness has no value; empty if it has one."""
    if abs(full - empty) <= VANISHING * max(abs(full), abs(empty), 1e-12):
        return "the full model and the empty circuit score the same, so there is nothing to keep"
    return ""


def plain(value: float) -> float | None:
    """A number as JSON has it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None
