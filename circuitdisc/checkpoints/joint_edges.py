"""ACDC on several checkpoints at once: an edge goes only if on none of them the metric falls by the threshold or more.

1. Visit the receivers in reverse topological order, as ACDC does. One mask serves all checkpoints; each has its own baseline.
2. A receiver whose node no longer reaches `logits` loses all its edges, without a run.
3. Otherwise visit the edges into it, one by one: cut the edge in every checkpoint. If the metric stays within the threshold of
   its baseline in all of them, the edge stays cut and the new values are the next baselines; else it is kept.

Exact, as `acdc` is, whose walk this is (`discovery/acdc.py`).

Source: Conmy et al. 2023, algorithm 1, with the condition asked of every checkpoint.

Shape letters: R receivers, S senders, K checkpoints.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.acdc import ORDERS_WITHOUT_SCORES, Walk, check_order, walk_back
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.rules import Rule, check_rule
from circuitdisc.discovery.time_left import TimeLeft
from circuitdisc.engine.patching import Cost, Patching, Removal
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.progress import finish, time_bar
from circuitdisc.tasks.base import Task

Values = tuple[float, ...]


def joint_acdc(
    models: Sequence[Model],
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    spared: Bool[np.ndarray, "R S"] | None = None,
    threshold: float = 0.01,
    relative: bool = False,
    two_sided: bool | None = None,
    order: str = "descending",
    speculation: int | None = None,
) -> Discovery:
    """Cut every edge that no checkpoint misses.

    Args:
        spared: edges that are kept without being asked about.
        threshold, relative, two_sided, order, speculation: as `acdc` takes them; a relative threshold is a fraction of each
            checkpoint's own metric.
    """
    metric = get_metric(context.metric)
    rule = check_rule(threshold, relative, two_sided, metric)
    check_order(ablation, order, ORDERS_WITHOUT_SCORES)
    graph = models[0].graph
    patchings = [Patching(model, ablation, task.train, memory=context.memory) for model in models]
    kept = [patching.hold_share(task.train) for patching in patchings]
    clock = TimeLeft(graph)
    with time_bar(f"acdc on {' + '.join(model.name for model in models)}", context.progress) as bar:

        def begin(mask: Bool[np.ndarray, "R S"], first: int) -> JointWalk:
            removals = [
                patching.removal(chunks, mask, metric, first=first) for patching, chunks in zip(patchings, kept, strict=True)
            ]
            return JointWalk(Together(removals), graph, context, bar, rule, order, speculation, spared, clock)

        mask = walk_back(graph, context.journal, begin, graph.edge_mask)
        finish(bar)
    cost = Cost()
    for patching in patchings:
        cost.add(patching.cost)
    return Discovery(Circuit(graph, mask).prune(), None, context.journal.decisions, cost, notes=(rule.note(metric),))


class Together:
    """Removals of several checkpoints with the same edges cut; a value is a tuple, one of each."""

    def __init__(self, removals: Sequence[Removal]) -> None:
        self.removals = removals

    def most_rows(self, receiver: int) -> int:
        return min(removal.most_rows(receiver) for removal in self.removals)

    @property
    def mask(self) -> Bool[np.ndarray, "R S"]:
        return self.removals[0].mask

    @property
    def value(self) -> Values:
        return tuple(removal.value for removal in self.removals)

    def try_cuts(self, receiver: int, senders: list[int], spared: Sequence[bool] | None = None) -> list[Values]:
        return list(zip(*(removal.try_cuts(receiver, senders, spared) for removal in self.removals), strict=True))

    def accept(self, cuts: list[int]) -> None:
        for removal in self.removals:
            removal.accept(cuts)

    def drop(self, receivers: list[int]) -> None:
        for removal in self.removals:
            removal.drop(receivers)

    def close(self) -> None:
        for removal in self.removals:
            removal.close()


class JointWalk(Walk):
    """ACDC's walk, with the condition asked of every checkpoint.

    Args:
        spared: edges that are kept without being asked about.
    """

    def __init__(
        self,
        removal: Together,
        graph: ComputationGraph,
        context: SearchContext,
        bar: tqdm,
        rule: Rule,
        order: str,
        speculation: int | None,
        spared: Bool[np.ndarray, "R S"] | None,
        clock: TimeLeft,
    ) -> None:
        super().__init__(removal, graph, context, bar, rule, order, speculation, clock=clock)
        self.spared = spared

    def _asked(self, receiver: int) -> Bool[np.ndarray, "S"]:
        left = self.removal.mask[receiver]
        return left if self.spared is None else left & ~self.spared[receiver]

    def _passes(self, before: Values, value: Values) -> bool:
        return all(self.rule.passes(old, other) for old, other in zip(before, value, strict=True))
