"""How many clusters vectors form, with one as an answer.

1. Every vector is divided by its length: what counts is how a score spreads, not how large it is.
2. k clusters: Ward's tree cut at k, then k-means from its centres.
3. k is a candidate if halves of the vectors agree on it (prediction strength: the smallest share, over clusters of one half, of
   pairs that the other half's centres keep together; at least .8), and no cluster is tiny. It is accepted if the mean
   silhouette is larger, too, than that of vectors drawn from one normal distribution with the same covariance (a Monte Carlo
   test, with Bonferroni's correction for the candidates). How often both are met where there is one cluster is measured:
   benchmarks/mixtures.py.
4. The largest k that is accepted; else 1.

Sources: Tibshirani & Walther 2005, "Cluster Validation by Prediction Strength"; Rousseeuw 1987, "Silhouettes"; Liu et al. 2008,
"Statistical Significance of Clustering for High-Dimension, Low-Sample Size Data" (the null of one normal distribution).

Shape letters: B vectors, X numbers of each, K clusters.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.spatial.distance import cdist

from circuitdisc.results import Result

FEWEST = 5
"""Vectors of a cluster."""
_HALVINGS = 20


@dataclass(frozen=True, repr=False)
class ClusterCount(Result):
    """Whether vectors form so many clusters.

    Args:
        k: how many.
        silhouette: mean over vectors.
        null: 95th percentile of the same of vectors from one normal distribution; None where the halves do not agree.
        p: share of these that are as large.
        strength: prediction strength, the mean over halvings.
        smallest: vectors in the smallest cluster.
        accepted: whether it counts.
    """

    k: int
    silhouette: float
    null: float | None
    p: float | None
    strength: float
    smallest: int
    accepted: bool


@dataclass(frozen=True)
class Clusters:
    """Vectors in clusters, the largest first.

    Args:
        labels: cluster of each vector. [B]
        centres: mean of each, of vectors of length 1. [K, X]
        counts: what was tried.
    """

    labels: Int[np.ndarray, "B"]
    centres: Float[np.ndarray, "K X"]
    counts: tuple[ClusterCount, ...]

    def nearest(self, vectors: Float[np.ndarray, "B X"]) -> Int[np.ndarray, "B"]:
        """The cluster whose centre is nearest to each of these."""
        return self.distances(vectors).argmin(1)

    def distances(self, vectors: Float[np.ndarray, "B X"]) -> Float[np.ndarray, "B K"]:
        """From each of these to each centre."""
        return cdist(directions(vectors), self.centres)


def clusters_of(
    vectors: Float[np.ndarray, "B X"], most: int, n_null: int, strength: float, alpha: float, generator: np.random.Generator
) -> Clusters:
    """Vectors in as many clusters as they form.

    Args:
        most: clusters that are tried.
        n_null: draws from one normal distribution.
        strength: the least prediction strength.
        alpha: level of the test against one normal distribution.
    """
    unit = directions(vectors)
    centred = unit - unit.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = left * sizes  # the same distances in fewer numbers
    spread = sizes / np.sqrt(max(1, len(points) - 1))
    tried = range(2, min(most, len(points) // FEWEST) + 1)
    tree, counts = _tree(points), list[ClusterCount]()
    for k in tried:
        labels = split_in(*tree, k)
        smallest = int(np.bincount(labels, minlength=k).min())
        agreed = prediction_strength(points, k, generator)
        counts.append(ClusterCount(k, silhouette(points, labels), None, None, agreed, smallest, False))
    candidates = [count for count in counts if count.strength >= strength and count.smallest >= FEWEST]
    for count in candidates:
        draws = (_tree(generator.normal(size=points.shape) * spread) for _ in range(n_null))
        null = np.array([silhouette(other, split_in(other, cut, count.k)) for other, cut in draws])
        p = float((1 + (null >= count.silhouette).sum()) / (1 + n_null))
        accepted = p <= alpha / len(candidates) + 1e-9
        counts[count.k - 2] = replace(count, null=float(np.quantile(null, 0.95)), p=p, accepted=accepted)
    k = max((count.k for count in counts if count.accepted), default=1)
    best = split_in(*tree, k) if k > 1 else np.zeros(len(points), dtype=int)
    order = np.argsort(-np.bincount(best), kind="stable")
    labels = np.argsort(order)[best]
    return Clusters(labels, np.stack([unit[labels == place].mean(0) for place in range(len(order))]), tuple(counts))


def directions(vectors: Float[np.ndarray, "B X"]) -> Float[np.ndarray, "B X"]:
    """The vectors at length 1; one of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


Tree = tuple[Float[np.ndarray, "B X"], Float[np.ndarray, "B-1 4"]]


def _tree(points: Float[np.ndarray, "B X"]) -> Tree:
    return points, linkage(points, "ward")


def split_in(points: Float[np.ndarray, "B X"], tree: np.ndarray, k: int) -> Int[np.ndarray, "B"]:
    """The points in k clusters."""
    labels = fcluster(tree, k, "maxclust") - 1
    try:
        return kmeans2(points, _centres(points, labels), minit="matrix", iter=20, missing="raise")[1]
    except ClusterError:  # one was left empty
        return labels


def _centres(points: Float[np.ndarray, "B X"], labels: Int[np.ndarray, "B"]) -> Float[np.ndarray, "K X"]:
    return np.stack([points[labels == place].mean(0) for place in np.unique(labels)])


def silhouette(points: Float[np.ndarray, "B X"], labels: Int[np.ndarray, "B"]) -> float:
    """Mean over points of (b - a) / max(a, b): a the mean distance to its own cluster, b that to the nearest other one."""
    member = labels[:, None] == np.unique(labels)[None]
    sizes = member.sum(0)
    if len(sizes) < 2:
        return 0.0
    totals = cdist(points, points) @ member
    own = totals[member] / np.maximum(sizes[member.argmax(1)] - 1, 1)
    other = np.where(member, np.inf, totals / sizes).min(1)
    larger = np.maximum(own, other)
    values = np.where(larger > 0, (other - own) / np.where(larger > 0, larger, 1.0), 0.0)
    return float(np.where(sizes[member.argmax(1)] > 1, values, 0.0).mean())


def prediction_strength(points: Float[np.ndarray, "B X"], k: int, generator: np.random.Generator) -> float:
    """The smallest share, over clusters of one half, of pairs that the other half's centres keep together; mean of halvings."""
    return float(np.mean([_agreement(points, k, generator.permutation(len(points))) for _ in range(_HALVINGS)]))


def _agreement(points: Float[np.ndarray, "B X"], k: int, order: Int[np.ndarray, "B"]) -> float:
    first, second = points[order[: len(order) // 2]], points[order[len(order) // 2 :]]
    theirs, ours = split_in(*_tree(first), k), split_in(*_tree(second), k)
    predicted, least = cdist(second, _centres(first, theirs)).argmin(1), 1.0
    for place in range(k):
        among = predicted[ours == place]
        if len(among) < 2:
            return 0.0
        pairs = (np.bincount(among) * (np.bincount(among) - 1)).sum()
        least = min(least, float(pairs / (len(among) * (len(among) - 1))))
    return least
