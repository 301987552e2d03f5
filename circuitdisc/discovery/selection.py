"""From scores of edges to a circuit of a given size.

`top_k` keeps the best edges wherever they are; `greedy` grows the circuit from `logits`, always adding the best edge into a
node that is already in it, so that every edge has a path to `logits`; `optimal` has the largest sum of scores of all circuits
whose edges lie on paths from an embedding to `logits` (`best_connected.py`).

Source: Syed et al. 2023 (top edges by absolute score), Hanna et al. 2024, section 3 (greedy growth).
"""

import heapq
import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from typing_extensions import TypedDict

from circuitdisc.checks import EDGES, FRACTION, KEEP
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.best_connected import best_connected
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.options import Option

Grow = Literal["top_k", "greedy"]
Chosen = Literal["top_k", "greedy", "optimal"]
By = Literal["absolute", "signed"]
Allowed = Bool[np.ndarray, "R S"] | None


def top_k(
    graph: ComputationGraph, scores: Float[np.ndarray, "R S"], n: int, by: By = "absolute", only: Allowed = None
) -> Circuit:
    """The circuit of the n best edges, without those that then lead nowhere (so that it may have fewer than n).

    Args:
        scores: the estimated change of the metric when an edge is cut, NaN where the graph has no edge.
        by: `absolute`: the largest changes come first, of either sign; `signed`: the largest falls do.
        only: the edges that may be chosen; None: all.
    """
    mask = np.zeros_like(graph.edge_mask)
    mask.flat[_ranking(graph, scores, by, only)[:n]] = True
    return Circuit(graph, mask).prune()


def greedy(
    graph: ComputationGraph, scores: Float[np.ndarray, "R S"], n: int, by: By = "absolute", only: Allowed = None
) -> Circuit:
    """The circuit of n edges that grows from `logits`: in each step the best edge into a node that is already in it.

    Args:
        scores: the estimated change of the metric when an edge is cut, NaN where the graph has no edge.
        by, only: as for `top_k`.
    """
    order = _ranking(graph, scores, by, only)
    rank = np.full(graph.edge_mask.size, len(order))
    rank[order] = np.arange(len(order))
    rank_RS = rank.reshape(graph.edge_mask.shape)
    mask = np.zeros_like(graph.edge_mask)
    heap: list[tuple[int, int, int]] = []
    reached = {"logits"}
    _offer(graph, rank_RS, "logits", heap)
    for _ in range(min(n, graph.n_edges)):
        if not heap:
            break
        at, receiver, sender = heapq.heappop(heap)
        if at == len(order):
            break  # nothing is left but edges that may not be chosen
        mask[receiver, sender] = True
        name = graph.senders[sender].name
        if name not in reached:
            reached.add(name)
            _offer(graph, rank_RS, name, heap)
    return Circuit(graph, mask).prune()


def connected(circuit: Circuit, scores: Float[np.ndarray, "R S"], by: By = "absolute") -> Circuit:
    """The circuit with a path from an embedding to each of its nodes that none reached: the path whose worst edge is best.

    Edges that the circuit has cost nothing.

    Args:
        scores, by: as for `top_k`.
    """
    graph, mask = circuit.graph, circuit.mask.copy()
    order = _ranking(graph, scores, by)
    rank = np.full(graph.edge_mask.shape, len(order))
    rank.flat[order] = np.arange(len(order))
    reached, live = circuit.reached_senders(), circuit.live_senders()
    for sender in np.flatnonzero(live & ~reached).tolist():  # in order: what comes before it is connected already
        last, at = _widest(graph, np.where(mask, -1, rank), reached, sender), sender
        while not reached[at]:
            receiver, before = last[at]
            mask[receiver, before], reached[at], at = True, True, before
    return Circuit(graph, mask)


def _widest(
    graph: ComputationGraph, rank: Int[np.ndarray, "R S"], reached: Bool[np.ndarray, "S"], until: int
) -> dict[int, tuple[int, int]]:
    """For every sender up to one that is not reached: the last edge, receiver and sender, of the best path to it."""
    worst, last = np.where(reached, -1.0, np.inf), dict[int, tuple[int, int]]()
    for sender, node in enumerate(graph.senders[: until + 1]):
        for receiver in () if reached[sender] else graph.node_receivers[node.name]:
            n = int(graph.n_upstream[receiver])
            along = np.maximum(rank[receiver, :n], worst[:n])
            if along.min() < worst[sender]:
                worst[sender], last[sender] = along.min(), (receiver, int(along.argmin()))
    return last


def _offer(graph: ComputationGraph, rank: np.ndarray, node: str, heap: list[tuple[int, int, int]]) -> None:
    """Put all edges into a node on the heap."""
    for receiver in graph.node_receivers[node]:
        for sender in range(int(graph.n_upstream[receiver])):
            heapq.heappush(heap, (int(rank[receiver, sender]), receiver, sender))


def _ranking(graph: ComputationGraph, scores: Float[np.ndarray, "R S"], by: By, only: Allowed = None) -> np.ndarray:
    """Flat indices of all edges that may be chosen, the best first; among equals the lower index comes first."""
    if by not in get_args(By):
        raise UnknownName("value of by", str(by), get_args(By))
    if scores.shape != graph.edge_mask.shape:
        raise BadSetting(f"scores of shape {scores.shape} do not fit the graph ({graph.describe()}): {graph.edge_mask.shape}")
    edges: Bool[np.ndarray, "R S"] = graph.edge_mask
    if not np.isfinite(scores[edges]).all():
        raise BadSetting("some edges have scores that are not finite: no circuit can be chosen by them")
    edges = edges if only is None else edges & only
    keys = -np.abs(scores[edges]) if by == "absolute" else scores[edges]
    return np.flatnonzero(edges)[np.argsort(keys, kind="stable")]


class Sizing(TypedDict, total=False):
    """How large a circuit is, and how it grows."""

    edges: Annotated[
        int | None,
        Option(
            None,
            "size of the circuit in edges; None takes `fraction`. Edges that lead nowhere are left out afterwards, so that the "
            "circuit may be smaller.",
            EDGES,
        ),
    ]
    fraction: Annotated[float, Option(0.05, "size of the circuit as a share of the graph's edges.", FRACTION)]
    grow: Annotated[
        Chosen,
        Option(
            "top_k",
            "`top_k`: the best edges; `greedy`: grown from `logits`, the best edge into a node of the circuit at a time; "
            "`optimal`: of all connected circuits the one with the largest sum, by an integer program.",
        ),
    ]


class Aiming(Sizing, total=False):
    """The same, where the size may be a result."""

    target: Annotated[
        float | None,
        Option(
            None,
            "in place of `edges` and `fraction`: as few of the best edges as keep this share of the gap in the metric between "
            "the full model and the empty circuit, on a quarter of the training examples that is set apart (see `target.py`).",
            KEEP,
        ),
    ]


class Ranking(Aiming, total=False):
    """The same for scores that have a sign."""

    by: Annotated[
        By,
        Option(
            "absolute",
            "`absolute`: scores of either sign count; `signed`: the edges whose cutting lowers the metric most come first.",
        ),
    ]


class Consistent(Ranking, total=False):
    """The same for scores that are means over examples."""

    sign_consistent: Annotated[
        float | None,
        Option(
            None,
            "only edges whose score keeps its sign in at least this share of 1,000 bootstrap resamples of the examples are "
            "chosen; None: all may be.",
            FRACTION,
        ),
    ]


@dataclass(frozen=True)
class Selection:
    """How a circuit is chosen from scores.

    Args:
        edges: how many edges; None takes `fraction`.
        fraction: share of the graph's edges, rounded up.
        grow: `top_k`, `greedy` or `optimal`.
        by: `absolute`: the largest changes come first, of either sign; `signed`: the edges whose cutting lowers the metric
            most do.
        target: the share to be kept, in place of a size; `discover_to_target` looks for the size.
        sign_consistent: the share of resamples in which an edge's score must keep its sign; `UnitScores` knows these.

    Raises:
        BadSetting: `edges` is no positive whole number, `fraction` or `sign_consistent` does not lie between 0 and 1, or
            `target` stands beside `edges` or `grow=optimal`.
        UnknownName: `grow` or `by` is not known.
    """

    edges: int | None = None
    fraction: float = 0.05
    grow: Chosen = "top_k"
    by: By = "absolute"
    target: float | None = None
    sign_consistent: float | None = None

    def __post_init__(self) -> None:
        if self.edges is not None:
            EDGES.check("edges", self.edges)
        if self.target is not None:
            KEEP.check("target", self.target)
            if self.edges is not None:
                raise BadSetting(f"edges={self.edges} and target={self.target:g} both say how large the circuit is: give one")
            if self.grow == "optimal":
                raise BadSetting(
                    "target= adds the best edges one by one; grow=optimal chooses all of a size together: give edges="
                )
        FRACTION.check("fraction", self.fraction)
        if self.sign_consistent is not None:
            FRACTION.check("sign_consistent", self.sign_consistent)
        for name, value, allowed in (("grow", self.grow, Chosen), ("by", self.by, By)):
            if value not in get_args(allowed):
                raise UnknownName(f"value of {name}", str(value), get_args(allowed))

    def n_edges(self, graph: ComputationGraph) -> int:
        """How many edges are asked for.

        Raises:
            BadSetting: more than the graph has, or the size is still to be found.
        """
        if self.target is not None:
            raise BadSetting(f"target={self.target:g} sets examples apart before a search: call it by cd.discover(...)")
        if self.edges is None:
            return math.ceil(self.fraction * graph.n_edges)
        if self.edges > graph.n_edges:
            raise BadSetting(f"edges={self.edges} is more than the {graph.n_edges} of the graph ({graph.describe()})")
        return self.edges

    def circuit(self, graph: ComputationGraph, scores: Float[np.ndarray, "R S"], only: Allowed = None) -> Circuit:
        """The circuit of the best edges, pruned: edges that lead nowhere are left out, so that it may be smaller than asked.

        Args:
            only: the edges that may be chosen; None: all.
        """
        if self.grow == "optimal":
            _ranking(graph, scores, self.by)  # that scores fit
            return best_connected(graph, -scores if self.by == "signed" else np.abs(scores), self.n_edges(graph), only)
        choose = top_k if self.grow == "top_k" else greedy
        return choose(graph, scores, self.n_edges(graph), self.by, only)
