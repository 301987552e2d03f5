"""Overlap: do two circuits of one graph share more heads, nodes or edges than chance would have it?

With A and B the kept heads (or nodes, or edges) of two circuits, and N all of the graph's:

    jaccard     |A & B| / |A | B|
    precision   |A & B| / |B|: how much of B is in A
    recall      |A & B| / |A|: how much of A is in B

Two chances stand beside the number shared. `uniform`: a random set of |B| out of all N; the number shared is hypergeometric.
`matched`: a random set with as many members as B in each layer and of each kind, connected or not, which shares more with A if
both circuits favour the same layers; the number shared is then a sum of one hypergeometric number for each layer or kind. Both
distributions are exact: nothing is drawn.

Sources: Merullo et al. 2024, "Circuit Component Reuse Across Tasks in Transformer Language Models" (shared heads of circuits of
two tasks); the hypergeometric test of a shared set is Fisher's exact test, one-sided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from circuitdisc.circuit import Circuit
from circuitdisc.controls import edge_strata
from circuitdisc.errors import GraphMismatch
from circuitdisc.results import Result
from circuitdisc.scoring.base import check_one_ablation

HEADS_DECIDE = "the edges and nodes of a head circuit follow from its heads, so their overlap is no evidence of its own"


@dataclass(frozen=True)
class OverlapChance:
    """The number shared with a random set.

    Args:
        expected: its mean.
        p_value: probability of sharing at least as many as the circuits do.
    """

    expected: float
    p_value: float


@dataclass(frozen=True, repr=False)
class Overlap(Result):
    """What two circuits share of one kind of thing.

    Args:
        kind: `heads`, `nodes` or `edges`.
        n_all: all of the graph's.
        n_a, n_b, n_shared: those of circuit A, of circuit B, and of both.
        uniform, matched: what chance would share; None where it means nothing, and then `note` says why.
        shared: names of those that both have, in the graph's order; those of edges are not listed.
        only_a, only_b: names of those that one has.
    """

    KEYS = ("*", "jaccard", "precision", "recall")

    kind: str
    n_all: int
    n_a: int
    n_b: int
    n_shared: int
    uniform: OverlapChance | None = None
    matched: OverlapChance | None = None
    shared: tuple[str, ...] = ()
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    note: str = ""

    @property
    def jaccard(self) -> float:
        """1 for two empty sets."""
        union = self.n_a + self.n_b - self.n_shared
        return self.n_shared / union if union else 1.0

    @property
    def precision(self) -> float | None:
        """Share of B's that are in A; None if B has none."""
        return self.n_shared / self.n_b if self.n_b else None

    @property
    def recall(self) -> float | None:
        """Share of A's that are in B; None if A has none."""
        return self.n_shared / self.n_a if self.n_a else None


def overlap(a: Circuit, b: Circuit, *, mix: bool = False) -> dict[str, Overlap]:
    """What two circuits share.

    A head counts if one of its outgoing edges is kept. Nodes are heads and MLPs that a kept edge enters or leaves: embeddings
    and `logits` belong to nearly every circuit and would only raise the overlap.

    Args:
        mix: compare circuits that were found under different ablations, too.

    Returns:
        `heads`, `nodes` and `edges`.

    Raises:
        GraphMismatch: the circuits belong to models of different architecture.
        BadSetting: they were found under different ablations, and `mix` is not set.
    """
    if a.graph != b.graph:
        raise GraphMismatch(
            f"circuits of different graphs have nothing to share: {a.graph.describe()} and {b.graph.describe()}; "
            "compare circuits of one architecture"
        )
    check_one_ablation((a.provenance, b.provenance), mix)
    graph = a.graph
    nodes = [node.name for node in graph.senders if node.kind in ("head", "mlp")]
    in_layer = {node.name: (node.kind, node.layer) for node in graph.senders}
    overlaps = {
        "heads": _of_names("heads", list(graph.heads), in_layer, a.heads(), b.heads()),
        "nodes": _of_names("nodes", nodes, in_layer, a.nodes(), b.nodes()),
        "edges": _of_edges(a, b),
    }
    if "head" in (a.granularity, b.granularity):
        overlaps |= {kind: _without_chance(overlaps[kind]) for kind in ("nodes", "edges")}
    return overlaps


def _of_names(kind: str, names: list[str], stratum: dict[str, Any], a: Sequence[str], b: Sequence[str]) -> Overlap:
    in_a, in_b = (np.array([name in kept for name in names], dtype=bool) for kept in (set(a), set(b)))
    places: dict[Any, int] = {}
    strata = np.array([places.setdefault(stratum[name], len(places)) for name in names], dtype=int)

    def chosen(mask: Bool[np.ndarray, "N"]) -> tuple[str, ...]:
        return tuple(name for name, is_chosen in zip(names, mask, strict=True) if is_chosen)

    return Overlap(
        kind,
        len(names),
        int(in_a.sum()),
        int(in_b.sum()),
        int((in_a & in_b).sum()),
        *_chances(in_a, in_b, strata),
        chosen(in_a & in_b),
        chosen(in_a & ~in_b),
        chosen(in_b & ~in_a),
    )


def _of_edges(a: Circuit, b: Circuit) -> Overlap:
    every = a.graph.edge_mask
    in_a, in_b = a.mask[every], b.mask[every]
    chances = _chances(in_a, in_b, edge_strata(a.graph)[every])
    return Overlap("edges", a.graph.n_edges, a.n_edges, b.n_edges, int((in_a & in_b).sum()), *chances)


def _without_chance(overlap: Overlap) -> Overlap:
    return Overlap(**{**vars(overlap), "uniform": None, "matched": None, "note": HEADS_DECIDE})


def _chances(
    in_a: Bool[np.ndarray, "N"], in_b: Bool[np.ndarray, "N"], strata: Int[np.ndarray, "N"]
) -> tuple[OverlapChance, OverlapChance]:
    """`uniform` and `matched`: one stratum that holds everything, and the strata given."""
    return _chance(in_a, in_b, np.zeros_like(strata)), _chance(in_a, in_b, strata)


def _chance(in_a: Bool[np.ndarray, "N"], in_b: Bool[np.ndarray, "N"], strata: Int[np.ndarray, "N"]) -> OverlapChance:
    _, places = np.unique(strata, return_inverse=True)
    sizes, n_a, n_b = (np.bincount(places, weights=weights).astype(int) for weights in (None, in_a, in_b))
    fewest, likely = shared_distribution(sizes, n_a, n_b)
    at_least = likely[max(0, int((in_a & in_b).sum()) - fewest) :]
    return OverlapChance(float((n_a * n_b / sizes).sum()), min(1.0, float(at_least.sum())))


def shared_distribution(
    sizes: Int[np.ndarray, "G"], n_a: Int[np.ndarray, "G"], n_b: Int[np.ndarray, "G"]
) -> tuple[int, Float[np.ndarray, "K"]]:
    """How many members a fixed set and a random one share in all, when the random one is drawn stratum by stratum.

    Args:
        sizes: members of each stratum.
        n_a: how many of them belong to the fixed set.
        n_b: how many of them are drawn, without replacement.

    Returns:
        The fewest that they can share, and the probabilities of sharing that many, one more, two more, ...
    """
    fewest = np.maximum(0, n_a + n_b - sizes)
    likely = [
        stats.hypergeom.pmf(np.arange(low, min(a, b) + 1), size, a, b)
        for low, size, a, b in zip(fewest, sizes, n_a, n_b, strict=True)
        if low < min(a, b)
    ]
    return int(fewest.sum()), reduce(np.convolve, likely, np.ones(1))
