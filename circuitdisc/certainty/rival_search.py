"""The search of a run again, with the edges that earlier circuits use avoided: what gives a rival.

Scored algorithms: the scores stay what they are (they are the full model's, and know of no circuit).

1. Multiply the score of an edge by `factor` once for each earlier circuit that uses it.
2. Choose a circuit by the run's own rule (`top_k` or `greedy`, by size or by sign), no larger than the run's.
3. Do so for each of `FACTORS`: with 0 used edges come last, with 1/2 only those go that had a near equal.

acdc and bisect: the rule stays what it is, used edges are only tried first.

1. Start from all edges (with `prune_first` from as many unused proposals, and the used ones), nothing ablated.
2. Try to cut used edges, one by one from `logits` backwards, those that most earlier circuits use first; the senders of a
   receiver in random order.
3. Go on as the run did on what is left: acdc by its walk; bisect by groups of the smallest scores, then by walks until one
   cuts nothing.
4. Cutting against the grain drifts: where a circuit comes out smaller than the run's, do it again with half the threshold, and
   with a quarter.

Every cut has passed the run's rule against the value before it, so that such a rival is as exact as the run's circuit. Where no
other circuit does the task, the used edges are needed, and the same circuit comes out again.

Searches that decide heads: `rival_heads.py`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitdisc.ablation import Ablation
from circuitdisc.certainty.rival_heads import BY_HEADS, ByHeadCuts, by_head_scores, size_of
from circuitdisc.circuit import Circuit, live_receivers
from circuitdisc.discovery.acdc import BY_ATTRIBUTION, Walk
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.bisect import cut_groups
from circuitdisc.discovery.ranking import ascending, edge_ranking
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.discovery.rules import AUTO, Deciding, Rule, rule_of
from circuitdisc.discovery.selection import Selection
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task

FACTORS = (0.0, 0.1, 0.25, 0.5, 0.75)
"""What the score of a used edge is multiplied by, the strongest first."""

THRESHOLDS = (1.0, 0.5, 0.25)
"""What the threshold of a search by cuts is multiplied by, until the circuit is as large as the run's."""

DECIDING = ("acdc", "bisect")
CUTTING = (*DECIDING, "head_ablation")
"""Searches by cuts, whose threshold is lowered."""

Uses = Int[np.ndarray, "R S"]
"""How many earlier circuits use each edge."""


class Avoiding(Protocol):
    """A search that avoids edges."""

    cost: Cost

    def proposals(self, uses: Uses, attempt: int) -> list[tuple[float, Circuit]]:
        """Circuits to choose from, that which avoids or cuts most first, each with the factor that gave it."""
        ...


def avoiding(
    model: Model,
    task: Task,
    circuit: Circuit,
    algorithm: str,
    ablation: Ablation,
    context: SearchContext,
    settings: Mapping[str, Any],
    edge_scores: Float[np.ndarray, "R S"] | None,
) -> Avoiding:
    """The search of a run that avoids edges.

    Args:
        circuit: that of the run.
        settings: the algorithm's own.
        edge_scores: those that chose the run's circuit; None: the algorithm gives them.

    Raises:
        BadSetting: there is no such search for this algorithm.
    """
    known = {**get_algorithm(algorithm).settings, **settings}
    if circuit.granularity == "head" and algorithm in BY_HEADS:
        if algorithm in CUTTING:
            return ByHeadCuts(model, task, ablation, context, known, size_of(circuit), THRESHOLDS)
        return by_head_scores(model, task, ablation, context, algorithm, known, size_of(circuit), FACTORS)
    scored = "grow" in known and algorithm != "refine"  # which chooses its start alone by scores
    if circuit.granularity != "edge" or not (algorithm in DECIDING or scored):
        raise BadSetting(
            f"rivals are searched edge by edge or head by head, and '{algorithm}' chooses otherwise: take a run of "
            f"{', '.join((*DECIDING, *BY_HEADS))}, or of an algorithm that scores every edge (eap_ig, exact, ...)"
        )
    if algorithm in DECIDING:
        return ByCuts(model, task, ablation, context, algorithm, known, circuit.n_edges)
    cost = Cost()
    if edge_scores is None:
        scored = get_algorithm(algorithm).function(model, task, ablation, context, **settings)
        edge_scores, cost = scored.edge_scores, scored.cost
    assert edge_scores is not None, "what grows a circuit has scored edges"
    return ByScores(circuit.n_edges, edge_scores, known, Circuit.full(model.graph), cost)


@dataclass
class ByScores:
    """Scores of used edges count less.

    Args:
        size: edges that a proposal has at most.
        scores: of all edges. [R, S]
        settings: the algorithm's, with `grow` and maybe `by`.
    """

    size: int
    scores: Float[np.ndarray, "R S"]
    settings: Mapping[str, Any]
    whole: Circuit
    cost: Cost

    def proposals(self, uses: Uses, attempt: int) -> list[tuple[float, Circuit]]:
        weights = [(factor, np.power(factor, uses)) for factor in FACTORS]  # 0 to the power of 0 is 1
        return [(factor, self._largest(self.scores * weight)) for factor, weight in weights]

    def _largest(self, scores: Float[np.ndarray, "R S"]) -> Circuit:
        """The circuit of most edges that is no larger than `size` once edges that lead nowhere are gone.

        More are asked for until the circuit would be too large: the choices are nested in each other, and so are their live
        parts.
        """
        chosen = {name: self.settings[name] for name in ("grow", "by") if name in self.settings}
        low, high, graph = self.size, self.whole.n_edges, self.whole.graph
        best = Selection(edges=max(1, low), **chosen).circuit(graph, scores)
        while low < high:
            middle = (low + high + 1) // 2
            circuit = Selection(edges=middle, **chosen).circuit(graph, scores)
            if circuit.n_edges <= self.size:
                low, best = middle, circuit
            else:
                high = middle - 1
        return best


@dataclass
class ByCuts:
    """Used edges are tried first.

    Args:
        settings: the algorithm's, all of them.
        size: edges of the run's circuit.
    """

    model: Model
    task: Task
    ablation: Ablation
    context: SearchContext
    algorithm: str
    settings: Mapping[str, Any]
    size: int
    cost: Cost = field(default_factory=Cost)

    @cached_property
    def _patching(self) -> tuple[Patching, list[Chunk]]:
        patching = Patching(self.model, self.ablation, self.task.train, memory=self.context.memory)
        patching.cost.add(self.cost)
        self.cost = patching.cost  # what is counted from now on
        return patching, patching.hold_share(self.task.train)

    @cached_property
    def _scores(self) -> Float[np.ndarray, "R S"] | None:
        given = self.settings
        needed = given["prune_first"] is not None or given["threshold"] == AUTO or given.get("order") == BY_ATTRIBUTION
        if not (needed or self.algorithm == "bisect"):
            return None
        scores, cost = edge_ranking(given["ranking"], self.model, self.task, self.ablation, self.context)
        self.cost.add(cost)
        return scores

    def proposals(self, uses: Uses, attempt: int) -> list[tuple[float, Circuit]]:
        graph, metric, scores = self.model.graph, get_metric(self.context.metric), self._scores
        patching, chunks = self._patching
        start = graph.edge_mask
        if self.settings["prune_first"] is not None and scores is not None:
            unused = Selection(edges=min(self.settings["prune_first"], graph.n_edges)).circuit(graph, scores * (uses == 0))
            start = Circuit(graph, unused.mask | (uses > 0)).prune().mask
        rule = rule_of(self.settings, metric, scores, lambda: patching.ends(chunks, metric, start))
        made: list[tuple[float, Circuit]] = []
        for factor in THRESHOLDS if isinstance(rule, Rule) else (1.0,):
            lower = rule._replace(threshold=factor * rule.threshold) if isinstance(rule, Rule) else rule
            made.append((factor, self._search(start, uses, lower, attempt)))
            if made[-1][1].n_edges >= self.size:
                break
        return made

    def _search(self, start: Bool[np.ndarray, "R S"], uses: Uses, rule: Deciding, attempt: int) -> Circuit:
        """Steps 2 and 3."""
        graph, metric, scores, mask = self.model.graph, get_metric(self.context.metric), self._scores, start
        patching, chunks = self._patching
        for level in np.unique(uses[uses > 0])[::-1]:
            mask = self._walk(mask, rule, uses >= level, "random", attempt)
        if self.algorithm == "acdc":
            return Circuit(graph, self._walk(mask, rule, graph.edge_mask, self.settings["order"])).prune()
        assert scores is not None, "bisect ranks edges"
        with progress_bar(int(mask.sum()), "groups", "edge", False) as bar:
            measure = partial(patching.measure, chunks, metric=metric)
            order = ascending(graph, scores)
            mask, _ = cut_groups(mask, measure(mask), order, measure, graph, rule, Journal(), deque(), bar)
        before = -1
        while before != mask.sum():
            before, mask = mask.sum(), self._walk(mask, rule, graph.edge_mask, "descending")
        return Circuit(graph, mask).prune()

    def _walk(
        self,
        mask: Bool[np.ndarray, "R S"],
        rule: Deciding,
        asked: Bool[np.ndarray, "R S"],
        order: str,
        attempt: int = 0,
    ) -> Bool[np.ndarray, "R S"]:
        """The edges that are left when those that are asked for were tried, from `logits` backwards."""
        patching, chunks = self._patching
        graph, metric = self.model.graph, get_metric(self.context.metric)
        context = SearchContext(metric, self.context.memory, self.context.seed + attempt)
        with progress_bar(int(asked.sum()), "walk", "edge", False) as bar:
            for group in reversed(graph.groups):
                if not (mask & asked)[list(group)].any():
                    continue
                removal = patching.removal(chunks, mask, metric, first=group[0])
                walk = _Among(removal, graph, context, bar, rule, order, self.settings.get("speculation"), self._scores)
                walk.asked = asked
                for receiver in reversed(group):
                    walk.visit(receiver)
                walk.end(group[0])
                mask = removal.mask
        return mask & live_receivers(graph, mask)[:, None]


class _Among(Walk):
    """A walk that asks for some edges alone.

    Args:
        asked: which.
    """

    asked: Bool[np.ndarray, "R S"]

    def _asked(self, receiver: int) -> Bool[np.ndarray, "S"]:
        return self.removal.mask[receiver] & self.asked[receiver]


def uses_of(circuits: Sequence[Circuit]) -> Uses:
    """How many of the circuits use each edge."""
    return np.array([circuit.mask for circuit in circuits], dtype=np.int64).sum(0)
