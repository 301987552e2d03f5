"""What a search or a score will count (`Cost`), from graph, settings and number of examples, before anything runs.

Counts that follow from the settings are exact. Where they depend on what a search finds there is a least and a most, which
every run lies within, and in words what decides. *Plain forwards* are forward passes of the whole model over the examples;
a backward pass counts as two, as in `scoring/work.py`.

Shape letters: R receivers, S senders, L layers, H heads.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.path_plan import read_plan
from circuitdisc.discovery.ranking import RANKINGS
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.discovery.rules import AUTO
from circuitdisc.discovery.scored import takes_gauss
from circuitdisc.engine.gradients.layers import sender_groups
from circuitdisc.engine.memory import MOST_ROWS
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model

Span = tuple[float, float]
"""The least and the most; equal where the count is exact."""

NOTHING: Span = (0.0, 0.0)


def span(low: float, high: float | None = None) -> Span:
    """A span; of one number, which is exact."""
    return float(low), float(low if high is None else high)


@dataclass(frozen=True)
class Counts:
    """A cost that is planned; the first five as in `Cost`.

    Args:
        forwards: plain forwards in all.
        usual: plain forwards if every candidate is tried once, nothing is dead and no guess is wrong.
        why: what the ranges depend on; empty where all is exact.
        units: work of each step of the search's bar, in order, where steps differ. [n]
    """

    model_runs: Span = NOTHING
    backward_runs: Span = NOTHING
    circuit_runs: Span = NOTHING
    candidates: Span = NOTHING
    node_evaluations: Span = NOTHING
    forwards: Span = NOTHING
    usual: float = 0.0
    why: str = ""
    units: Float[np.ndarray, "n"] | None = None

    def __add__(self, other: "Counts") -> "Counts":
        """Both, one after the other; the units are the first one's."""
        sums = {name: _sum(getattr(self, name), getattr(other, name)) for name in COUNTED_IN}
        why = ", and ".join(dict.fromkeys(filter(None, (self.why, other.why))))
        return replace(self, **sums, usual=self.usual + other.usual, why=why)


COUNTED_IN = ("model_runs", "backward_runs", "circuit_runs", "candidates", "node_evaluations", "forwards")


def _sum(one: Span, other: Span) -> Span:
    return one[0] + other[0], one[1] + other[1]


@dataclass(frozen=True)
class Search:
    """What the counts of a search depend on.

    Args:
        model: its weights are not looked at.
        settings: of the algorithm, with its defaults.
        n: train examples.
        n_chunks: in how many chunks they are made ready.
        changing: the share of the tokens that a cut can change.
        learned: what `optimal` learns was learned before, in the same process.
    """

    model: Model
    ablation: Ablation
    settings: Mapping[str, Any]
    n: int
    n_chunks: int = 1
    changing: float = 1.0
    learned: bool = False

    @property
    def graph(self) -> ComputationGraph:
        return self.model.graph

    @property
    def n_nodes(self) -> int:
        """Heads and MLPs."""
        return self.graph.n_layers * (self.graph.n_heads + self.graph.has_mlp)

    @property
    def fit(self) -> Span:
        """Runs with which the ablation learns, beside the training of `optimal`; of another package's they are not known."""
        known = {"mean": span(1), **dict.fromkeys(("optimal", "resample", "zero", "zero_folded"), NOTHING)}
        return known.get(self.ablation.kind, (0.0, float("inf")))

    @property
    def ready(self) -> Span:
        """Runs that it takes to make the examples ready, with what the ablation learns."""
        each = 1 + self.ablation.method.runs_per_example
        return self.fit[0] + each, self.fit[1] + each

    def of(self, algorithm: str) -> "Search":
        """Another algorithm on the same examples, at its defaults."""
        return replace(self, settings=get_algorithm(algorithm).settings, learned=True)

    @property
    def training(self) -> Counts:
        """What `optimal` counts while it learns: for each sender so many steps, both ways, through what is behind it."""
        if self.ablation.kind != "optimal" or self.learned:
            return Counts()
        graph, steps = self.graph, self.ablation.method.steps + 1  # pyright: ignore[reportAttributeAccessIssue] - `Optimal`
        behind_them = 1 + graph.split_embeddings + (graph.n_heads + graph.has_mlp) * (graph.n_layers + 1) / 2
        each, clean = steps * behind_them, 2
        why = "of how many senders `optimal` has yet to learn a constant"
        most = clean + 3 * each
        return Counts((0.0, clean + each), (0.0, each), forwards=(0.0, most), usual=most, why=why)


def counts_of(algorithm: str, search: Search) -> Counts | None:
    """What a search counts; None for an algorithm whose counts nobody planned."""
    counts = COUNTERS[algorithm](search) if algorithm in COUNTERS else None
    if counts is None:
        return None
    if search.settings.get("target") is not None:
        counts = counts + _to_target(search)
    return counts if algorithm in UNABLATED else counts + search.training


def _to_target(search: Search) -> Counts:
    """What `target=` runs besides: full model, empty circuit, sizes by halving, repairs; sizes that prune alike run once."""
    halvings = math.ceil(math.log2(search.graph.n_edges))
    most = (4 + halvings) * search.n_chunks
    return counted(
        search,
        model_runs=search.ready,
        circuit_runs=(2.0, float(most)),
        node_evaluations=(0.0, float(4 + halvings) * search.n_nodes),
        usual=search.ready[0] + halvings / 2,
        why="how many sizes differ, and how many nodes of each circuit are alive",
    )


def counted(search: Search, n_splits: int = 1, **given: Any) -> Counts:
    """Counts with their sum in plain forwards.

    Args:
        n_splits: sets of examples on each of which nodes are counted; a plain forward is on all of them.
    """
    counts = Counts(**given)
    ends = (
        counts.model_runs[end] + 2 * counts.backward_runs[end] + counts.node_evaluations[end] / search.n_nodes / n_splits
        for end in (0, 1)
    )
    low, high = ends
    usual = given.get("usual", high if high < float("inf") else low)
    return replace(counts, forwards=(low, high), usual=usual)


# --- attribution and masks ------------------------------------------------------------------------------------------------


def _gradients(search: Search, points: float, backward: float) -> Counts:
    low, high = search.ready
    why = "what the ablation learns" if high == float("inf") else ""
    runs = (low + points, high + points)
    counts = counted(search, model_runs=runs, backward_runs=span(backward), why=why)
    return replace(counts, usual=low + points + 2 * backward)


def _at_full(search: Search) -> Counts:
    return _gradients(search, 0, search.graph.n_layers if search.settings.get("grad_drop") else 1)


def _between(search: Search) -> Counts:
    steps = search.settings.get("steps", 2)
    gauss = takes_gauss(search.settings["points"], search.model, search.ablation)
    return _gradients(search, steps + gauss, steps)  # of Gauss's points none is the ablated end, which runs beside them


def _stretches(search: Search) -> Counts:
    steps = search.settings["steps"]
    return _gradients(search, 2 * steps + 1, steps)  # where each begins and ends, and its middle


def _along_gradient(search: Search) -> Counts:
    steps = search.settings["steps"]
    return _gradients(search, steps + 2, 2 * steps)  # the goal and the start; the path's own gradients


def _between_activations(search: Search) -> Counts:
    graph, steps = search.graph, search.settings["steps"]
    gauss = takes_gauss(search.settings["points"], search.model, search.ablation)
    # at each place the part of the model behind it runs
    shares = sum(1 - group.next_place(graph)[0] / graph.n_layers for group in sender_groups(graph))
    return _gradients(search, shares * steps + gauss, shares * steps)


def _masks(search: Search) -> Counts:
    steps, batch = search.settings["steps"], min(search.settings["batch"], search.n)
    n_batches = -(-search.n // batch)
    whole, rest = divmod(steps, n_batches)
    least = whole + max(0, rest * batch - (-search.n % batch)) / search.n
    most = whole + min(search.n, rest * batch) / search.n
    counts = counted(
        search,
        model_runs=search.ready,
        backward_runs=(least, most),
        circuit_runs=span(steps),
        node_evaluations=(least * search.n_nodes, most * search.n_nodes),
        why="" if least == most else "whether the short mini-batch is among those of the last round",
    )
    start = search.settings.get("start")
    first = counts_of(start, search.of(start)) if start else None
    return counts if first is None else counts + first


def _no_runs(search: Search) -> Counts:
    return counted(search)


def _one_run(search: Search) -> Counts:
    return counted(search, model_runs=span(1))


def _members(search: Search) -> Counts | None:
    members = search.settings["members"]
    planned = [counts_of(name, search.of(name)) for name in ([members] if isinstance(members, str) else members)]
    if any(counts is None for counts in planned):
        return None
    first, *rest = (counts for counts in planned if counts is not None)
    for counts in rest:
        first = first + counts
    return first


# --- edges cut one after the other ----------------------------------------------------------------------------------------


def behind(graph: ComputationGraph) -> Float[np.ndarray, "R"]:
    """How many nodes run again, at most, when the input of a receiver changes: its own and all later ones."""
    per_layer = graph.n_heads + graph.has_mlp
    counts = []
    for receiver in graph.receivers:
        if receiver.kind == "logits":
            counts.append(0)
            continue
        later = (graph.n_layers - 1 - receiver.node.layer) * per_layer
        counts.append(1 + later + (graph.has_mlp and not graph.parallel and receiver.kind != "mlp"))
    return np.array(counts, dtype=float)


def tried_at_most(edges: Float[np.ndarray, "R"], speculation: int | None) -> Float[np.ndarray, "R"]:
    """Candidates tried for each receiver if all its edges are up and every guess is as wrong as can be.

    A try decides one edge at least. Without a fixed speculation rows double only after a try that was right to its end, and
    fall by half after one that was not: with T tried, d decided and r rows, T + 2 r' <= 3 d + 2 r in both cases.
    """
    each = 3 * edges + 2 * MOST_ROWS if speculation is None else edges * min(speculation, MOST_ROWS)
    return np.where(edges > 0, np.minimum(edges * (edges + 1) / 2, each), 0)


ALIVE = "how many nodes stay alive as edges go, and how often a guess is wrong"


def _acdc(search: Search) -> Counts:
    graph, settings = search.graph, search.settings
    ranked = settings["prune_first"] is not None or settings["threshold"] == AUTO or settings["order"] == "attribution"
    first = counts_of(settings["ranking"], search.of(settings["ranking"])) if ranked else None
    nodes, speculation = behind(graph), settings["speculation"]
    edges, n_edges = graph.n_upstream.astype(float), graph.n_edges
    proposed = min(n_edges, settings["prune_first"] or n_edges)
    if proposed < n_edges:  # attribution says which: any receiver may have them
        many = float(tried_at_most(np.array([float(proposed)]), speculation)[0])
        spread_out = 3 * proposed + 2 * MOST_ROWS * min(proposed, graph.n_receivers)
        most = min(many if speculation else proposed * (proposed + 1) / 2, spread_out if speculation is None else many)
        most_nodes, least = most * nodes.max(), 1
        usual = proposed * float((edges * nodes).sum() / n_edges)
    else:
        each = tried_at_most(edges, speculation)
        most, most_nodes, least = float(each.sum()), float((each * nodes).sum()), int(edges[-1])
        usual = float((edges * nodes).sum())
    ends = 0 if settings["keep"] is None else 2 + (proposed < n_edges)
    starts = len(graph.groups) + ends
    counts = counted(
        search,
        model_runs=search.ready,
        circuit_runs=span(starts),
        candidates=(least + ends, most + ends),
        node_evaluations=(0.0, most_nodes + starts * search.n_nodes),
        usual=search.ready[0] + starts / 2 + usual * search.changing / search.n_nodes,
        why=ALIVE,
    )
    return counts if first is None else counts + first


def _exact(search: Search) -> Counts:
    nodes = float((search.graph.n_upstream * behind(search.graph)).sum())
    order = np.arange(search.graph.n_receivers)[::-1]
    per_edge = np.repeat((behind(search.graph) + 1)[order], search.graph.n_upstream[order])
    return counted(
        search,
        model_runs=search.ready,
        circuit_runs=span(1),
        candidates=span(search.graph.n_edges),
        node_evaluations=(0.0, nodes + search.n_nodes),
        usual=search.ready[0] + 1 + nodes * search.changing / search.n_nodes,
        why="at how many tokens a change is seen",
        units=per_edge,
    )


def _bisect(search: Search) -> Counts:
    graph, settings = search.graph, search.settings
    first = counts_of(settings["ranking"], search.of(settings["ranking"]))
    n = min(graph.n_edges, settings["prune_first"] or graph.n_edges)
    ends = 0 if settings["keep"] is None else 2 + (n < graph.n_edges)
    tests = 2 * n  # the start, and every node of the halving tree
    edges = graph.n_upstream.astype(float)
    a_walk = (
        float(tried_at_most(edges, None).sum()) if n == graph.n_edges else 3 * n + 2 * MOST_ROWS * min(n, graph.n_receivers)
    )
    most = tests + (n + 1) * a_walk
    kept = max(1.0, n / 20)  # of the usual: a twentieth stays
    usual = (
        kept * np.log2(max(2.0, n / kept)) + 2 * kept * float((edges * behind(graph)).sum() / graph.n_edges) / search.n_nodes
    )
    counts = counted(
        search,
        model_runs=search.ready,
        circuit_runs=(3.0 + ends, float(tests + n + 1 + ends)),
        candidates=(2.0 + ends, most + ends),
        node_evaluations=(0.0, most * behind(graph).max() + (tests + n + 1 + ends) * search.n_nodes),
        usual=search.ready[0] + usual * search.changing,
        why="how many edges matter, k of N: about k log2(N/k) tests, then walks over those kept until one cuts nothing",
    )
    return counts if first is None else counts + first


def _refine(search: Search) -> Counts | None:
    """The least is a start that nothing changes; how often the search goes on from something better has no bound."""
    graph, settings = search.graph, search.settings
    ranking = settings["start"] if settings["start"] in RANKINGS else settings["ranking"]
    first = counts_of(ranking, search.of(ranking))
    sized = settings["edges"] is not None
    n = max(settings["edges"] or 1, math.ceil(settings["fraction"] * graph.n_edges))
    ends, edges, endless = 1 + (sized or settings["keep"] is not None), graph.n_upstream.astype(float), float("inf")
    # of the usual: two rounds over a tenth of the edges around the circuit, each with its tests, then a round for every group
    a_round = graph.n_edges / 10 * float((edges * behind(graph)).sum() / graph.n_edges) / search.n_nodes
    n_groups = settings["swaps"] or settings["edges"] if sized else 2 * (1 + math.floor(math.log2(settings["widest"])))
    counts = counted(
        search,
        model_runs=search.ready,
        circuit_runs=(1.0 + ends, endless),
        candidates=(1.0 + ends, endless),
        node_evaluations=(0.0, endless),
        usual=search.ready[0] + (2 * n + (2 + n_groups) * a_round) * search.changing,
        why="how often edges that are put back make the circuit better: each time the search goes on, and no bound is known",
    )
    return counts if first is None else counts + first


# --- heads ----------------------------------------------------------------------------------------------------------------


def _head_ablation(search: Search) -> Counts:
    graph, settings = search.graph, search.settings
    per_layer, heads = graph.n_heads + graph.has_mlp, graph.n_heads * graph.n_layers
    ends, verified = 2 * (settings["keep"] is not None), settings["verify"] > 0
    behind_layer = np.arange(graph.n_layers, 0, -1) * per_layer
    order = behind_layer if settings["order"] == "ascending" else behind_layer[::-1]
    tries = float(graph.n_heads * behind_layer.sum())
    least = tries + (1 + ends + verified) * search.n_nodes
    # verified: each head once cut there; while a layer fails, each of its cut heads is restored, cut again, and one restored
    restored = float((graph.n_heads + graph.n_heads * (graph.n_heads + 1) + 2 * graph.n_heads) * behind_layer.sum())
    most = least + (restored if verified else 0.0)
    ready = search.ready[1] + verified * (1 + search.ablation.method.runs_per_example)
    return counted(
        search,
        model_runs=(search.ready[0] + ready - search.ready[1], ready) if ready < float("inf") else search.ready,
        candidates=span(heads),
        node_evaluations=(least, most),
        usual=search.ready[0] + least / search.n_nodes,
        why="which heads the verification restores" if verified else "",
        units=np.repeat(order, graph.n_heads).astype(float) if settings["order"] != "random" else None,
    )


def _path_patching(search: Search) -> Counts:
    graph, settings = search.graph, search.settings
    plan = read_plan(settings["plan"], settings["top"], settings["threshold"], settings["by"])
    heads, fixed = graph.n_layers * graph.n_heads, len(plan.rounds)
    rounds = fixed
    if plan.auto:
        rounds = min(sum(3**depth for depth in range(settings["max_depth"])), 1 + 3 * heads)
    per_round = search.n_nodes + graph.n_layers + heads * (search.n_nodes + graph.n_layers)
    usual = heads * (graph.n_layers * graph.has_mlp / 2) / search.n_nodes + 1
    return counted(
        search,
        model_runs=search.ready,
        circuit_runs=(0.0 if not plan.auto else float(search.n_chunks), float(rounds * search.n_chunks)),
        candidates=(float(heads) if plan.auto else 0.0, float(rounds * heads)),
        node_evaluations=(0.0, float(rounds * per_round)),
        usual=search.ready[0] + usual * search.changing * (fixed if not plan.auto else min(rounds, 13)),
        why="how many groups are found, each with a round for q, k and v, and which receivers they are"
        if plan.auto
        else "which receivers the groups are",
    )


UNABLATED = ("information_flow", "from_file", "random")
"""Searches that ablate nothing."""
COUNTERS: dict[str, Callable[[Search], Counts | None]] = {
    "acdc": _acdc,
    "bisect": _bisect,
    "refine": _refine,
    "exact": _exact,
    "head_ablation": _head_ablation,
    "path_patching": _path_patching,
    "eap": _at_full,
    "atp": _at_full,
    "hisp": _at_full,
    "eap_ig": _between,
    "clean_corrupted": _between,
    "ceap": _stretches,
    "eap_gp": _along_gradient,
    "eap_ig_activations": _between_activations,
    "edge_pruning": _masks,
    "subnetwork_probing": _masks,
    "soft_topk": _masks,
    "information_flow": _one_run,
    "ensemble": _members,
    "from_file": _no_runs,
    "random": _no_runs,
}
