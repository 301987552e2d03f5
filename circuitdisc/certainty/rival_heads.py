"""The search of rivals for circuits of heads, and what two such circuits are compared by.

`head_ablation`: from all heads, used heads are tried to be ablated first, those that most earlier circuits use before all
others, layer by layer in random order; then the run's own walk goes on with what is left. Every ablation has passed the run's
rule against the baseline of its layer. Where fewer heads are left than the run has, half the threshold is taken, then a
quarter. A run's verification (`verify=`) is not repeated.

`hisp`, `path_patching`: each head's score is multiplied by a factor once for each earlier circuit that uses it, and as many
heads as the run has are taken, the largest first. Scores are the run's: of `path_patching` the largest change in any round;
rounds that would follow from other heads are not run.

Shape letters: L layers, H heads of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.head_ablation import layers_in_order, split_to_verify
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.discovery.rules import Deciding, KeepRule, Rule, check_rule
from circuitdisc.engine.head_removal import HeadRemoval
from circuitdisc.engine.head_run import head_circuit
from circuitdisc.engine.memory import COPIES_TO_PREPARE
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task

BY_HEADS = ("head_ablation", "hisp", "path_patching")


def size_of(circuit: Circuit) -> int:
    """How large a circuit is, in what was decided: heads or edges."""
    return len(circuit.heads()) if circuit.granularity == "head" else circuit.n_edges


def jaccard_of(a: Circuit, b: Circuit) -> float:
    """Shared over all of the two, of what was decided."""
    if a.granularity != "head":
        return a.jaccard(b)
    ours, theirs = set(a.heads()), set(b.heads())
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def like(circuit: Circuit, edges: Sequence[str]) -> Circuit:
    """The circuit of these edges, of heads if the other is."""
    of_edges = Circuit.from_edges(circuit.graph, edges)
    return Circuit.from_heads(circuit.graph, of_edges.heads()) if circuit.granularity == "head" else of_edges


def head_uses(graph: ComputationGraph, uses: Int[np.ndarray, "R S"]) -> Int[np.ndarray, "L H"]:
    """How many earlier head circuits keep each head: each of them has its edge into `logits`."""
    return uses[-1, [graph.sender_index[name] for name in graph.heads]].reshape(graph.n_layers, graph.n_heads)


@dataclass
class ByHeadScores:
    """Scores of used heads count less.

    Args:
        size: heads of a proposal.
        scores: of all heads, none below 0. [L, H]
        factors: what scores of used heads are multiplied by, one after the other.
    """

    graph: ComputationGraph
    size: int
    scores: Float[np.ndarray, "L H"]
    factors: Sequence[float]
    cost: Cost

    def proposals(self, uses: Int[np.ndarray, "R S"], attempt: int) -> list[tuple[float, Circuit]]:
        used, names = head_uses(self.graph, uses).ravel(), list(self.graph.heads)
        made = []
        for factor in self.factors:
            order = np.lexsort((used, -self.scores.ravel() * np.power(factor, used)))  # of equal ones the less used
            made.append((factor, Circuit.from_heads(self.graph, [names[place] for place in sorted(order[: self.size])])))
        return made


def by_head_scores(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    algorithm: str,
    known: Mapping[str, Any],
    size: int,
    factors: Sequence[float],
) -> ByHeadScores:
    """The scores that the algorithm gives again.

    Args:
        known: the algorithm's settings, all of them.
    """
    graph = model.graph
    scored = get_algorithm(algorithm).function(model, task, ablation, context, **known)
    assert scored.node_scores is not None, "what ranks heads has scores of nodes"
    scores = scored.node_scores[[graph.sender_index[name] for name in graph.heads]].reshape(graph.n_layers, graph.n_heads)
    sizes = np.maximum(-scores, 0) if known.get("by") == "signed" else np.abs(scores)
    return ByHeadScores(graph, size, np.nan_to_num(sizes), factors, scored.cost)


@dataclass
class ByHeadCuts:
    """Used heads are tried first.

    Args:
        settings: of `head_ablation`, all of them.
        size: heads of the run's circuit.
        thresholds: what the threshold is multiplied by, one after the other, until the circuit is as large.
    """

    model: Model
    task: Task
    ablation: Ablation
    context: SearchContext
    settings: Mapping[str, Any]
    size: int
    thresholds: Sequence[float]
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        given, self.metric, graph = self.settings, get_metric(self.context.metric), self.model.graph
        self.patching = Patching(self.model, self.ablation, self.task.train, memory=self.context.memory)
        self.cost, self.every = self.patching.cost, np.ones((graph.n_layers, graph.n_heads), dtype=bool)
        search_on, _ = split_to_verify(self.task.train, given["verify"])
        self.chunks = self.patching.hold_share(search_on, COPIES_TO_PREPARE)
        self.rule: Deciding = check_rule(given["threshold"], given["relative"], given["two_sided"], self.metric)
        if given["keep"] is not None:
            full, empty = (self._removal(kept).value for kept in (self.every, ~self.every))
            self.rule = KeepRule(given["keep"], full, empty)

    def proposals(self, uses: Int[np.ndarray, "R S"], attempt: int) -> list[tuple[float, Circuit]]:
        used, made = head_uses(self.model.graph, uses), list[tuple[float, Circuit]]()
        for factor in self.thresholds if isinstance(self.rule, Rule) else (1.0,):
            rule = self.rule
            lower = rule._replace(threshold=factor * rule.threshold) if isinstance(rule, Rule) else rule
            made.append((factor, self._search(used, lower, self.context.seed + attempt)))
            if size_of(made[-1][1]) >= self.size:
                break
        return made

    def _removal(self, kept: Bool[np.ndarray, "L H"]) -> HeadRemoval:
        return HeadRemoval(self.patching, self.chunks, self.metric, kept)

    def _search(self, used: Int[np.ndarray, "L H"], rule: Deciding, seed: int) -> Circuit:
        removal, n_layers = self._removal(self.every), self.model.graph.n_layers
        for level in np.unique(used[used > 0])[::-1]:
            self._walk(removal, rule, used >= level, layers_in_order(n_layers, "random", seed))
        self._walk(removal, rule, self.every, layers_in_order(n_layers, self.settings["order"], self.context.seed))
        return head_circuit(self.model.graph, removal.kept)

    @staticmethod
    def _walk(removal: HeadRemoval, rule: Deciding, asked: Bool[np.ndarray, "L H"], layers: Sequence[int]) -> None:
        """Try to ablate the heads that are asked for, layer by layer, as `head_ablation` does."""
        for layer in layers:
            baseline = removal.value
            for head in np.flatnonzero(asked[layer] & removal.kept[layer]).tolist():
                if rule.passes(baseline, removal.try_ablating(layer, head)):
                    removal.set_head(layer, head, keep=False)
