"""How well scores pick out what is true: ROC curve, AUROC, average precision. Equal scores are one group everywhere.

Shape letters: N things that are scored, K different scores.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats


@dataclass(frozen=True)
class RocCurve:
    """What is taken as the threshold falls: one point before anything is taken, and one after each group of equal scores.

    Args:
        thresholds: the score of the group that was taken last; infinite at the first point. [K+1]
        n_taken: things taken. [K+1]
        n_hits: true ones among them. [K+1]
        n: all things.
        n_true: all true ones.
    """

    thresholds: Float[np.ndarray, "K1"]
    n_taken: Int[np.ndarray, "K1"]
    n_hits: Int[np.ndarray, "K1"]
    n: int
    n_true: int

    @property
    def tpr(self) -> Float[np.ndarray, "K1"]:
        """True positive rate (recall): share of the true ones that are taken; NaN if nothing is true."""
        return self.n_hits / self.n_true if self.n_true else np.full(len(self.n_hits), np.nan)

    @property
    def fpr(self) -> Float[np.ndarray, "K1"]:
        """False positive rate: share of the others that are taken; NaN if everything is true."""
        others = self.n - self.n_true
        return (self.n_taken - self.n_hits) / others if others else np.full(len(self.n_hits), np.nan)

    @property
    def precision(self) -> Float[np.ndarray, "K1"]:
        """Share of what is taken that is true; 1 where nothing is taken."""
        return np.where(self.n_taken > 0, self.n_hits / np.maximum(self.n_taken, 1), 1.0)


def curve(scores: Float[np.ndarray, "N"], is_true: Bool[np.ndarray, "N"]) -> RocCurve:
    """The points of the curves, the highest score first."""
    values, group = np.unique(-scores, return_inverse=True)
    sizes = np.bincount(group, minlength=len(values))
    hits = np.bincount(group[is_true], minlength=len(values))
    return RocCurve(
        np.concatenate([[np.inf], -values]),
        np.concatenate([[0], sizes.cumsum()]),
        np.concatenate([[0], hits.cumsum()]),
        len(scores),
        int(is_true.sum()),
    )


def auroc(scores: Float[np.ndarray, "N"], is_true: Bool[np.ndarray, "N"]) -> float | None:
    """Probability that a true one scores above one that is not, ties counting half; None if there are no such pairs.

    Source: Mann & Whitney 1947, from mid ranks; the area under the ROC curve with its points joined by lines.
    """
    n_true, n_false = int(is_true.sum()), int((~is_true).sum())
    if n_true == 0 or n_false == 0:
        return None
    ranks = stats.rankdata(scores)
    return float((ranks[is_true].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def average_precision(points: RocCurve) -> float | None:
    """Mean of the precision at each true one, all of a group at the precision behind the group; None if nothing is true."""
    if points.n_true == 0:
        return None
    return float((np.diff(points.n_hits) * points.precision[1:]).sum() / points.n_true)
