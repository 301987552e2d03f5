"""Where on the way from ablated to clean an integrated gradient is taken, and whether what comes out adds up.

The way is z' + s (z - z'), from the ablated output z' (s = 0) to the clean one z (s = 1). The scores of the edges out of z add
up to an estimate of metric(z') - metric(z): all points of the way give it exactly, a few roughly. How far the sum is off says
how far the points can be trusted.

Under zero ablation of the embedding s = 0 is a residual stream of 0, where a norm's slope is 1 / sqrt(eps): 300 (eps = 1e-5) to
1,000 (1e-6), where that of an ordinary input is 1 over its size. A rule with a point there measures eps.

Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", section 3 (completeness).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from circuitdisc.ablation import Ablation
from circuitdisc.models.weights import ModelSpec

Points = Literal["auto", "published", "gauss"]


@dataclass(frozen=True)
class PathPoints:
    """Points of the way and their weights, which add up to 1.

    Args:
        shares: s of each point. Length C.
        weights: of the gradient there. Length C.
    """

    shares: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.shares) == len(self.weights), "a weight for each point"

    @property
    def factors(self) -> tuple[float, ...] | None:
        """Weights over their mean; None if all are equal."""
        return None if len(set(self.weights)) == 1 else tuple(weight * len(self.weights) for weight in self.weights)


def equal(*shares: float) -> PathPoints:
    """Points of equal weight."""
    return PathPoints(shares, (1 / len(shares),) * len(shares))


def published_between(steps: int) -> PathPoints:
    """0/m, 1/m ... (m-1)/m: with the ablated end, without the clean one, as EAP-IG takes them."""
    return equal(*(step / steps for step in range(steps)))


def gauss_between(steps: int) -> PathPoints:
    """Gauss-Legendre points: inside the way, and exact for polynomials of degree 2 m - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return PathPoints(tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist()))


PUBLISHED_ENDS = equal(1.0, 0.0)
GAUSS_WITH_CLEAN_END = PathPoints((1.0, 1 / 3), (1 / 4, 3 / 4))
"""Gauss-Radau: the clean end and the inner point that together are exact for polynomials of degree 2."""


def starts_at_nothing(ablation: Ablation, spec: ModelSpec) -> bool:
    """True if the ablated embedding is 0 and goes into a norm, so that the gradient there is that of eps."""
    return ablation.cuts_embedding_to_nothing and spec.norm is not None


@dataclass(frozen=True)
class PathSum:
    """What the scores across a cut of the graph add up to, beside what ablating the embedding does.

    Args:
        scores: sum of the scores of all edges out of the embedding, or into `logits`, in units of the metric.
        change: metric with the embedding ablated minus that of the clean run, mean over examples.
        size: mean size of that change over examples.
        n_points: gradients were taken at.
        where: which edges these are.
    """

    scores: float
    change: float
    size: float
    n_points: int
    where: str = "out of the embedding"

    @property
    def off(self) -> float:
        """How far the two are apart, as a share of `size`; 0 is exact."""
        gap = abs(self.scores - self.change)
        return gap / self.size if self.size > 0 else (0.0 if gap == 0 else float("inf"))
