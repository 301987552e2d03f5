"""ACDC on several checkpoints at once: an edge goes only if on none of them the metric falls by the threshold or more.

1. Visit the receivers in reverse topological order, as ACDC does. One mask serves all checkpoints; each has its own baseline.
2. A receiver whose node no longer reaches `logits` loses all its edges, without a run.
3. Otherwise visit the edges into it, one by one: cut the edge in every checkpoint. If the metric stays within the threshold of
   its baseline in all of them, the edge stays cut and the new values are the next baselines; else it is kept.

Exact, though several edges are tried at once: entry i has candidates 0..i cut, and decisions are taken over up to the first
edge that is kept.

Source: Conmy et al. 2023, algorithm 1, with the condition asked of every checkpoint.

Shape letters: R receivers, S senders, K checkpoints.
"""

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice, check_whole
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.acdc import ORDERS, edges_left, in_order
from circuitdisc.discovery.base import Discovery, SearchContext, check_threshold, passes
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.patching.engine import Cost, Patching, Removal
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task

FIRST_ROWS = 16


def joint_acdc(
    models: Sequence[Model],
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    spared: Bool[np.ndarray, "R S"] | None = None,
    threshold: float = 0.01,
    relative: bool = False,
    two_sided: bool = False,
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
    threshold = check_threshold(threshold, relative, metric)
    check_choice("order", order, ORDERS)
    if speculation is not None:
        check_whole("speculation", speculation)
    if ablation.target == "pattern":
        raise BadSetting("acdc cuts edges; an attention pattern is no edge: use ablation.target=output, or head_ablation")
    started = time.perf_counter()
    graph, journal = models[0].graph, context.journal
    patchings = [Patching(model, ablation, task.train, memory=context.memory) for model in models]
    held = [patching.hold(task.train) for patching in patchings]
    mask = edges_left(graph, journal.decisions)
    finished = set(journal.marks)
    decided = sum(decision.get("edges", 1) for decision in journal.decisions)
    n_asked = graph.n_edges - (0 if spared is None else int(spared.sum()))
    bar = progress_bar(n_asked, f"acdc on {' + '.join(model.name for model in models)}", "edge", context.progress, decided)
    for group in reversed(graph.groups):
        name = graph.receivers[group[0]].name
        if name in finished:
            continue
        removals = [
            patching.removal(chunks, mask, metric, first=group[0]) for patching, chunks in zip(patchings, held, strict=True)
        ]
        walk = JointWalk(removals, graph, context, bar, (threshold, relative, two_sided), order, speculation, spared)
        for receiver in reversed(group):
            walk.visit(receiver)
        for removal in removals:
            removal.close()
        mask = removals[0].mask
        journal.mark(name)
    bar.close()
    cost = Cost(seconds=time.perf_counter() - started)
    for patching in patchings:
        cost.add(patching.cost)
    return Discovery(Circuit(graph, mask).prune(), None, journal.decisions, cost)


class JointWalk:
    """Steps 2 and 3 for one receiver after the other.

    Args:
        removals: one a checkpoint, with the same edges cut.
        rule: threshold, relative, two_sided, as `passes` takes them.
        order, speculation, spared: as `joint_acdc` takes them.
    """

    def __init__(
        self,
        removals: Sequence[Removal],
        graph: ComputationGraph,
        context: SearchContext,
        bar: tqdm,
        rule: tuple[float, bool, bool],
        order: str,
        speculation: int | None,
        spared: Bool[np.ndarray, "R S"] | None,
    ) -> None:
        self.removals, self.graph, self.context, self.bar = removals, graph, context, bar
        self.rule, self.order, self.spared = rule, order, spared
        most = min(removal.most_rows for removal in removals)
        self.most = min(most, speculation or most)
        self.rows = min(self.most, speculation or FIRST_ROWS)

    @property
    def mask(self) -> Bool[np.ndarray, "R S"]:
        """The edges left; the same in every checkpoint."""
        return self.removals[0].mask

    def visit(self, receiver: int) -> None:
        """Steps 2 and 3 for one receiver."""
        node = self.graph.receivers[receiver].node
        if node.kind != "logits" and not self.mask[:, self.graph.sender_index[node.name]].any():
            self._drop_dead(receiver)
            return
        candidates = self._candidates(receiver)
        while candidates:
            n_decided = self._try(receiver, candidates[: self.rows])
            candidates = candidates[n_decided:]

    def _drop_dead(self, receiver: int) -> None:
        n_edges = int(self.mask[receiver].sum())
        for removal in self.removals:
            removal.drop([receiver])
        self.context.journal.write(dead=self.graph.receivers[receiver].name, edges=n_edges)
        self.bar.update(n_edges)

    def _candidates(self, receiver: int) -> list[int]:
        asked = self.mask[receiver] if self.spared is None else self.mask[receiver] & ~self.spared[receiver]
        return in_order(asked, self.order, [self.context.seed, receiver])

    def _try(self, receiver: int, senders: list[int]) -> int:
        """Decide these edges up to the first that is kept; returns how many."""
        tried = [removal.try_cuts(receiver, senders) for removal in self.removals]
        baselines, n_cut, n_decided = [removal.value for removal in self.removals], 0, 0
        for sender, values in zip(senders, zip(*tried, strict=True), strict=True):
            kept = not all(passes(before, value, *self.rule) for before, value in zip(baselines, values, strict=True))
            self.context.journal.write(edge=self.graph.edge_name(receiver, sender), kept=kept, metric=list(values))
            n_decided += 1
            if kept:  # the entries behind it have it cut
                break
            baselines, n_cut = list(values), n_cut + 1
        for removal in self.removals:
            removal.accept(list(range(n_cut)))
        self.bar.update(n_decided)
        self.bar.set_postfix(kept=int(self.mask.sum()), refresh=False)
        held = n_cut == len(senders)
        self.rows = min(self.most, 2 * self.rows if held else max(1, (self.rows + n_decided) // 2))
        return n_decided
