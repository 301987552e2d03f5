"""Runs of positioned circuits, an exact search over units, and random circuits beside what it finds.

1. Rank the units by the size of an attribution score, smallest first.
2. Cut groups of them as `bisect` cuts groups of edges: a group stays cut while the circuit as it stands keeps what the rule
   asks for, else it is split in two. Units that no answer can see go without a run.
3. Try every unit that is left alone, the smallest score first; repeat until a whole round cuts nothing. No single unit can
   then be cut within the rule.

Shape letters: P spans, R receivers, S senders, B examples, N readings, V vocabulary.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_places, relabelled
from circuitdisc.discovery.bisect import cut_groups
from circuitdisc.discovery.rules import KeepRule
from circuitdisc.engine.chunk import Chunk, n_examples_of
from circuitdisc.engine.evaluate import evaluate, of_residual
from circuitdisc.engine.forward import logits_at
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.engine.positioned_run import PositionedRun
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric
from circuitdisc.positioned.circuit import Mask, live_units
from circuitdisc.runs import Journal, Memo
from circuitdisc.scoring.work import plain_forwards
from circuitdisc.tasks.base import Example
from circuitdisc.tasks.spans import Spans

Ready = Sequence[tuple[Chunk, Int[np.ndarray, "B T"]]]
"""Chunks in memory, with the span of each token."""


TEST = "test "


class PositionedRuns:
    """Metrics of positioned circuits, each kept under a hash of its mask.

    Args:
        spans: of the prompts.
        memo: keeps what is computed.

    Raises:
        BadSetting: the model has no fast components, or the ablation replaces patterns.
    """

    def __init__(self, patching: Patching, spans: Spans, metric: Metric, memo: Memo) -> None:
        if patching.ablation.target == "pattern":
            raise BadSetting("a positioned circuit cuts edges, and a pattern is none: use ablation.target=output")
        self.components = components_of(patching.model, "a positioned circuit")
        self.patching, self.spans, self.metric, self.memo = patching, spans, metric, memo
        self._nodes: dict[str, float] = {}

    def hold(self, examples: Sequence[Example]) -> Ready:
        """Examples made ready for many runs.

        Raises:
            BadSetting: they do not fit the budget.
        """
        return [(chunk, self.spans.of_batch(chunk.batch)) for chunk in self.patching.hold(examples)]

    def mean(self, ready: Ready, mask: Mask) -> float:
        """Mean metric of a circuit over examples in memory."""
        return self._unit(f"{TEST}{digest(mask)}", lambda: self._mean(ready, mask))

    @property
    def n_tests(self) -> int:
        """Circuits whose mean was asked for since `spent`, each counted once."""
        return sum(name.startswith(TEST) for name in self._nodes)

    def _mean(self, ready: Ready, mask: Mask) -> float:
        total = 0.0
        for chunk, spans in ready:
            final = self._run(chunk, mask, spans).residual[chunk.batch.reads][None]
            total += float(of_residual(self.patching.model, chunk, final, self.metric).double().sum())
        return total / n_examples_of([chunk for chunk, _ in ready])

    def values(
        self, name: str, examples: Sequence[Example], masks: Mapping[str, Mask], on_step: Callable[[int], object]
    ) -> dict[str, Float[np.ndarray, "B"]]:
        """Metric values of several circuits, example by example.

        Args:
            name: of the examples.
        """
        by_digest = {digest(mask): mask for mask in masks.values()}
        variants = {key: partial(self._logits, mask=mask) for key, mask in by_digest.items()}

        def keep(unit: str, compute: Callable[[], Any]) -> Any:
            return self._unit(f"{name}, {unit}", compute)

        values = evaluate(self.patching.shares(examples), variants, [self.metric], on_step, keep)
        arrays = {key: of_metric[self.metric.name].double().cpu().numpy() for key, of_metric in values.items()}
        return {name: arrays[digest(mask)] for name, mask in masks.items()}

    def _unit(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is computed, of an earlier start or now, and what it took, counted once."""

        def counted() -> dict[str, Any]:
            before = self.patching.cost.node_evaluations
            value = compute()
            return {"value": value, "nodes": self.patching.cost.node_evaluations - before}

        unit = self.memo.get(name, counted)
        self._nodes[name] = unit["nodes"]
        return unit["value"]

    def spent(self, n: int) -> float:
        """Plain forward passes of a prompt since it was last asked, on n examples."""
        cost = Cost(model_runs=self.patching.cost.model_runs, node_evaluations=sum(self._nodes.values()))
        self.patching.cost, self._nodes = Cost(), {}
        return plain_forwards(cost, self.patching.graph) * n

    @torch.no_grad()
    def _logits(self, chunk: Chunk, mask: Mask) -> Float[Tensor, "N V"]:
        return logits_at(self.components, self._run(chunk, mask, self.spans.of_batch(chunk.batch)).residual, chunk.batch.reads)

    def _run(self, chunk: Chunk, mask: Mask, spans: Int[np.ndarray, "B T"]) -> PositionedRun:
        run = PositionedRun(self.components, self.patching.graph, chunk, mask, spans)
        self.patching.cost.node_evaluations += chunk.weight * run.node_evaluations
        return run


def digest(mask: Mask) -> str:
    """A hash of a mask."""
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:32]


# --- the search -----------------------------------------------------------------------------------------------------------


def search_units(
    start: Mask,
    order: Int[np.ndarray, "n"],
    measure: Callable[[Mask], float],
    graph: ComputationGraph,
    spans: Spans,
    rule: KeepRule,
    bar: "tqdm[Any]",
) -> Mask:
    """The units that are left of some when groups of them, and then single ones, are cut.

    Args:
        start: what is tried; it passes the rule.
        order: flat indices of the units, the least important first.
        measure: the metric of a circuit.
    """
    live = partial(live_units, graph, spans)
    order = order[start.flat[order]]
    mask, value = cut_groups(start, measure(start), order, measure, graph, rule, Journal(), deque(), bar, live)
    again = True
    while again:
        again = False
        bar.reset(int(mask.sum()))
        for unit in order:
            if not mask.flat[unit]:
                continue
            tried = mask.copy()
            tried.flat[unit] = False
            tried = live(tried)
            after = measure(tried)
            bar.update(1)
            if rule.passes(value, after):
                mask, value, again = tried, after, True
    return mask


def largest(scores: Float[np.ndarray, "P R S"], order: Int[np.ndarray, "n"], n: int) -> Mask:
    """The n units with the largest scores, whatever their sign.

    Args:
        order: of the units, the smallest first.
    """
    mask = np.zeros(scores.shape, dtype=bool)
    mask.flat[order[max(0, len(order) - n) :]] = True
    return mask


def plain_of_size(graph: ComputationGraph, spans: Spans, scores: Float[np.ndarray, "P R S"], n: int, units: bool) -> Mask:
    """As many of the best edges, at all spans, as have no more than n units that an answer can see (or edges that lead on).

    Edges are ranked by the size of their sum over spans. What leads nowhere is left out.
    """
    flat = np.abs(scores.sum(0))
    best = np.flatnonzero(graph.edge_mask)[np.argsort(-flat[graph.edge_mask], kind="stable")]

    def of(k: int) -> Mask:
        mask = np.zeros_like(graph.edge_mask)
        mask.flat[best[:k]] = True
        return live_units(graph, spans, np.repeat(mask[None], len(spans), 0))

    def size(mask: Mask) -> int:
        return int(mask.sum() if units else mask.any(0).sum())

    low, high = 0, graph.n_edges  # sizes grow with k, since what leads on goes on leading on
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(of(middle)) <= n else (low, middle - 1)
    return of(low)


# --- random circuits ------------------------------------------------------------------------------------------------------

OTHER_HEADS, OTHER_SPANS = "other heads", "other spans"


def random_positioned(
    mask: Mask, graph: ComputationGraph, spans: Spans, n: int, generator: np.random.Generator
) -> Iterator[tuple[str, Mask]]:
    """Random circuits beside one, n of each kind.

    `other heads`: the heads of each layer change places, at all spans alike. `other spans`: the same edges, each at as many
    spans, drawn among those at which some answer could see it.
    """
    possible = live_units(graph, spans, np.repeat(graph.edge_mask[None], len(spans), 0))
    counts = mask.sum(0)
    for index in range(n):
        places = random_places(graph, generator)
        yield f"{OTHER_HEADS} {index}", np.stack([relabelled(Circuit(graph, at), places).mask for at in mask])
        drawn = np.where(possible, generator.random(mask.shape), np.inf)
        ranks = drawn.argsort(0, kind="stable").argsort(0, kind="stable")
        yield f"{OTHER_SPANS} {index}", possible & (ranks < counts)
