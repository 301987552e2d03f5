"""Mixtures: does one circuit hide several mechanisms?

1. Attribution scores example by example, with the gradient at the clean run (`eap`): of every edge, or, where edges are too
   many, of every sender (all edges out of it added up).
2. The search examples in as many clusters as their scores form, with one as an answer (`clusters.py`). Held-out examples belong
   to the cluster whose centre their own scores are nearest to.
3. A circuit for each cluster, by the run's own algorithm and settings, and for random splits of the search examples of the same
   sizes.
4. Each circuit on the held-out examples of each cluster. With d = |1 - faithfulness|, the advantage is the mean over clusters
   of d of the others' circuits minus d of its own. Random splits, whose held-out examples are split at random, too, say what it
   is by chance.

Source: "one circuit for a task mixes mechanisms" (https://arxiv.org/abs/2605.09129).

Shape letters: B examples, K clusters, C circuits, X scores.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from typing_extensions import Unpack

from circuitdisc.certainty.backups import Certain
from circuitdisc.certainty.clusters import FEWEST, ClusterCount, Clusters, clusters_of
from circuitdisc.certainty.cost import prompts_run
from circuitdisc.checks import FRACTION, Whole, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.discovery import discover
from circuitdisc.discovery.registry import search_identity
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.by_example import edges_by_example, on_examples, senders_by_example
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.measuring import Measurement
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadSetting, BadTask, CircuitdiscWarning
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result, Row
from circuitdisc.runs import Memo
from circuitdisc.scoring.faithfulness import normalised
from circuitdisc.scoring.judging import judging
from circuitdisc.scoring.stability import jaccard
from circuitdisc.stats import interval, mean_of_pairs, partition_of, plain
from circuitdisc.tasks.base import Example, Task

By = Literal["auto", "edge", "sender"]
MOST_SCORES = 20_000_000
"""Scores of edges of all examples; above it `auto` takes senders."""
SHOWN = 3
"""Prompts of each cluster."""


@dataclass(frozen=True, repr=False)
class CellOfCluster(Result):
    """A circuit on the held-out examples of a cluster.

    Args:
        circuit: of which cluster, from 1; 0 is the run's own.
        cluster: whose examples, from 1.
        faithfulness: None where it is undefined.
        n: examples.
    """

    circuit: int
    cluster: int
    faithfulness: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, repr=False)
class Mixtures(Result):
    """The clusters of a task's examples, and circuits of them.

    Args:
        counts: numbers of clusters that were tried.
        sizes, heldout_sizes: search and held-out examples of each cluster.
        examples: of each cluster the prompts nearest to its centre.
        groups: of each cluster its search examples by their group, where the task has any.
        by: `edge` or `sender`: what the scores are of; `scored_by` the metric.
        edges: of the run's circuit, then of each cluster's.
        cells: faithfulness of each circuit on each cluster.
        advantage: how much nearer 1 a cluster's own circuit is than the others', and the same of random splits.
        p: share of random splits, with this one among them, whose advantage is as large; None with one cluster.
        shared: mean Jaccard index of the clusters' circuits, and the mean of the same of random splits.
        n, n_search: held-out and search examples.
        forwards: plain forward passes of a prompt: of `scores`, `circuits`, `judgement`, and the `own search`, if known.
    """

    FORMAT = "circuitdisc.mixtures"
    WHERE = "not a result of mixtures"

    counts: tuple[ClusterCount, ...]
    sizes: tuple[int, ...]
    heldout_sizes: tuple[int, ...]
    examples: tuple[tuple[str, ...], ...]
    groups: tuple[Mapping[str, int], ...]
    by: str
    scored_by: str
    strength: float
    algorithm: str
    edges: tuple[int, ...]
    cells: tuple[CellOfCluster, ...]
    advantage: float | None
    random: tuple[float, ...]
    p: float | None
    shared: float | None
    random_shared: float | None
    n: int
    n_search: int
    metric: str
    ablation: str
    confidence: float
    method: str
    forwards: Mapping[str, float | None]
    seconds: float

    @property
    def k(self) -> int:
        """Clusters."""
        return len(self.sizes)

    @property
    def separate(self) -> bool:
        """Whether the clusters' own circuits are better on them than the others', beyond chance."""
        return self.p is not None and self.p <= 1 - self.confidence + 1e-9 and (self.advantage or 0.0) > 0

    def table(self) -> list[Row]:
        """A line for each circuit on each cluster; with one cluster a line for each number of clusters that was tried."""
        return [asdict(row) for row in self.cells or self.counts]


@bounded(most=Whole(2, 20), n_splits=Whole(1, 10_000), n_null=Whole(19, 100_000), strength=FRACTION)
@takes(Certain)
def mixtures(
    model: Model,
    task: Task,
    circuit: Circuit,
    algorithm: str = "eap_ig",
    *,
    by: By = "auto",
    most: int = 4,
    strength: float = 0.8,
    n_null: int = 199,
    n_splits: int = 19,
    settings: Mapping[str, Any] | None = None,
    search: Cost | None = None,
    journal: str | Path | None = None,
    **options: Unpack[Certain],
) -> Mixtures:
    """Cluster a task's examples by their attribution scores, and compare the circuits of the clusters.

    Args:
        circuit: the run's own, found on all examples.
        algorithm: that finds a circuit for each cluster.
        by: what is scored: `edge`, `sender`, or `auto`: edges while there are at most 20 million scores.
        most: clusters that are tried.
        strength: the least prediction strength of more than one cluster.
        n_null: draws from one normal distribution, beside which clusters are tested.
        n_splits: random splits of the search examples, each with circuits of its own.
        settings: the algorithm's own.
        confidence: coverage of each interval; one minus it is the level of both tests: of clusters, and of their circuits.
        search: what the search of the circuit has cost, to be named beside.
        journal: a file for what is computed; with it a killed call goes on where it was.

    Raises:
        GraphMismatch: the circuit belongs to another architecture.
        BadTask: the circuit is empty, so that there is nothing to split.
        BadSetting: there are too few examples, or the model, the ablation or the budget allows no attribution.
        UnknownName: a name is not known.
        BadRun: the journal belongs to another computation.
        CircuitdiscError: as `discover`.
    """
    started, given, own = time.perf_counter(), dict[str, Any](options), dict(settings or {})
    check_choice("by", by, get_args(By))
    if not (circuit.heads() if circuit.granularity == "head" else circuit.n_edges):
        raise BadTask("the circuit is empty: there is nothing to split into the circuits of several mechanisms")
    if len(task.train) < 2 * FEWEST or not task.heldout:
        raise BadSetting(
            f"mixtures takes {2 * FEWEST} search examples at least and some held-out ones: the task has {len(task.train)} and "
            f"{len(task.heldout)}"
        )
    if 1 - given["confidence"] < 1 / (1 + n_null) - 1e-9:
        enough = math.ceil(1 / (1 - given["confidence"]) - 1e-6) - 1
        raise BadSetting(f"n_null={n_null} draws cannot tell clusters from one: n_null={enough} can, and more are better")
    setup = judging(model, task, circuit.provenance, {**given, "split": "heldout"})
    seed, confidence = given["seed"], given["confidence"]
    ablation, metric = setup.ablation, setup.metric
    if by == "auto":
        by = "edge" if len(task.train) * model.graph.n_edges <= MOST_SCORES else "sender"
    found_with = search_identity(model, task, algorithm, ablation, metric, seed, own)
    asked = {"by": by, "most": most, "strength": strength, "n_null": n_null, "n_splits": n_splits, "confidence": confidence}
    identity = replace(found_with, settings={**found_with.settings, **asked, "circuit": circuit.edge_names()})
    with closing(Memo(journal, identity)) as memo:
        scored_by = score_metric(metric, task)
        forwards: dict[str, float | None] = {"scores": 0.0, "circuits": 0.0}
        generator = np.random.default_rng(seed)
        scores, heldout = scores_of(setup, scored_by, by, forwards)
        clusters = clusters_of(scores, most, n_null, strength, 1 - confidence, generator)
        nearest = clusters.nearest(heldout)
        k = len(clusters.centres)
        draws = [(generator.permutation(clusters.labels), generator.permutation(nearest)) for _ in range(n_splits * (k > 1))]
        searches = _Searches(model, task, algorithm, own, given, ablation, metric, memo)
        with progress_bar((1 + len(draws)) * k * (k > 1), f"mixtures of {task.name}", "circuit", given["progress"]) as bar:
            splits = [
                searches.circuits(f"split {number}", labels, bar.update)
                for number, (labels, _) in enumerate([(clusters.labels, nearest), *draws] if k > 1 else [])
            ]
    forwards["circuits"] = searches.forwards
    about: dict[str, Any] = {
        "counts": clusters.counts,
        "sizes": tuple(np.bincount(clusters.labels, minlength=k).tolist()),
        "heldout_sizes": tuple(np.bincount(nearest, minlength=k).tolist()),
        "examples": _typical(task.train, scores, clusters),
        "groups": _groups(task.train, clusters.labels),
        "by": by,
        "scored_by": scored_by.name,
        "strength": strength,
        "algorithm": algorithm,
        "n": len(task.heldout),
        "n_search": len(task.train),
        "metric": metric.name,
        "ablation": ablation.label,
        "confidence": confidence,
    }
    judged = _judged(setup, circuit, splits, [nearest, *(drawn for _, drawn in draws)], forwards)
    forwards["own search"] = None if search is None else prompts_run(search, model.graph, len(task.train))
    return Mixtures(**about, **judged, forwards=forwards, seconds=time.perf_counter() - started)


# --- scores -------------------------------------------------------------------------------------------------------------------


def score_metric(metric: Metric, task: Task) -> Metric:
    """The metric that is followed: the circuit's own, if it has a gradient at the full model."""
    if metric.differentiable and not metric.zero_at_full:
        return metric
    return get_metric("logit_diff" if task.has_wrong else "log_prob")


def scores_of(
    setup: Measurement, metric: Metric, by: By, forwards: dict[str, float | None]
) -> tuple[Float[np.ndarray, "B X"], Float[np.ndarray, "B2 X"]]:
    """Scores of the search and of the held-out examples; the ablation learns from the search examples alone."""
    assert setup.task is not None, "a task has both splits"
    task, read = setup.task, edges_by_example if by == "edge" else senders_by_example
    attribution = Attribution(
        setup.model,
        setup.ablation,
        task.train,
        metric,
        gradient=Gradient(at_full=True),
        memory=setup.memory,
        name="mixtures",
        progress=setup.progress,
    )
    other = on_examples(attribution, task.heldout)
    scores = read(attribution), read(other)
    graph = setup.model.graph
    spent = prompts_run(attribution.cost, graph, len(task.train)) + prompts_run(other.cost, graph, len(task.heldout))
    forwards["scores"] = spent
    return scores


def _typical(examples: Sequence[Example], scores: Float[np.ndarray, "B X"], clusters: Clusters) -> tuple[tuple[str, ...], ...]:
    """Of each cluster the prompts nearest to its centre."""
    near = clusters.distances(scores)
    shown = []
    for place in range(len(clusters.centres)):
        own = np.flatnonzero(clusters.labels == place)
        chosen = [examples[index] for index in own[np.argsort(near[own, place], kind="stable")][:SHOWN]]
        shown.append(tuple(example.text or " ".join(map(str, example.clean)) for example in chosen))
    return tuple(shown)


def _groups(examples: Sequence[Example], labels: Int[np.ndarray, "B"]) -> tuple[dict[str, int], ...]:
    """Of each cluster its examples by group."""
    names = [
        [e.group for e, label in zip(examples, labels, strict=True) if label == place] for place in range(labels.max() + 1)
    ]
    return tuple({name: own.count(name) for name in sorted(set(own)) if name} for own in names)


# --- circuits -----------------------------------------------------------------------------------------------------------------


class _Searches:
    """The run's own search on parts of its examples, unit by unit, and what that has cost."""

    def __init__(
        self,
        model: Model,
        task: Task,
        algorithm: str,
        own: Mapping[str, Any],
        given: Mapping[str, Any],
        ablation: Any,
        metric: Metric,
        memo: Memo,
    ) -> None:
        self.model, self.task, self.memo = model, task, memo
        self.asked = {"algorithm": algorithm, "ablation": ablation, "metric": metric, "seed": given["seed"], **own}
        self.asked |= {"memory": given["memory"], "allow_chance": True}  # whether the model does the task was asked of all
        self.forwards = 0.0

    def circuits(self, name: str, labels: Int[np.ndarray, "B"], on_step: Any) -> list[Circuit]:
        """A circuit for each part of the search examples."""
        circuits = []
        for place in range(labels.max() + 1):
            part = tuple(example for example, label in zip(self.task.train, labels, strict=True) if label == place)
            unit = self.memo.get(f"{name} {place}", lambda part=part: self._search(part))
            self.forwards += unit["forwards"]
            circuits.append(Circuit.from_dict(unit["circuit"]))
            on_step(1)
        return circuits

    def _search(self, part: tuple[Example, ...]) -> dict[str, Any]:
        with warnings.catch_warnings():  # what there is to know was said of the whole split
            warnings.simplefilter("ignore", CircuitdiscWarning)
            discovery = discover(self.model, replace(self.task, train=part), **self.asked)
        forwards = prompts_run(discovery.cost, self.model.graph, len(part))
        return {"circuit": discovery.circuit.to_dict(), "forwards": forwards}


def _judged(
    setup: Measurement,
    circuit: Circuit,
    splits: Sequence[Sequence[Circuit]],
    parts: Sequence[Int[np.ndarray, "B"]],
    forwards: dict[str, float | None],
) -> dict[str, Any]:
    """The fields that rest on held-out values: the clusters' circuits, which stand first, and those of random splits.

    Args:
        parts: for each split the part that each held-out example belongs to.
    """
    if not splits:
        nothing = dict.fromkeys(("advantage", "p", "shared", "random_shared"))
        return {"edges": (circuit.n_edges,), "cells": (), "random": (), "method": "", **nothing}
    assert setup.task is not None, "a task has both splits"
    patching = setup.patching()
    empty = Circuit.from_heads(circuit.graph, []) if circuit.granularity == "head" else Circuit.empty(circuit.graph)
    masks = {"full": circuit.graph.edge_mask, "empty": empty.mask, "0": circuit.mask}
    masks |= {f"{s} {place}": each.mask for s, split in enumerate(splits) for place, each in enumerate(split)}
    values = patching.evaluate(setup.examples, masks, [setup.metric])
    value = {name: measured[setup.metric.name].double().cpu().numpy() for name, measured in values.items()}
    forwards["judgement"] = prompts_run(patching.cost, circuit.graph, len(setup.examples))
    cells, method = [], ""
    for row, name in enumerate(["0", *(f"0 {place}" for place in range(len(splits[0])))]):
        for place in range(len(splits[0])):
            own = np.flatnonzero(parts[0] == place)
            if not len(own):
                cells.append(CellOfCluster(row, place + 1, None, None, None, 0))
                continue
            three = tuple(value[each][own] for each in ("full", name, "empty"))
            over = partition_of([setup.examples[index] for index in own])
            ends = interval(three, normalised, groups=over, confidence=setup.confidence, seed=setup.seed)
            method = method or ends.method
            share = plain(float(normalised(np.array([each.mean() for each in three]))))
            cells.append(CellOfCluster(row, place + 1, share, *ends.ends, len(own)))
    advantages = [_advantage(value, str(s), part, len(splits[0])) for s, part in enumerate(parts)]
    alike = [mean_of_pairs(jaccard(sets, sets)) for sets in (_edge_sets(split) for split in splits)]
    as_large = sum(other >= advantages[0] for other in advantages)
    return {
        "edges": (circuit.n_edges, *(each.n_edges for each in splits[0])),
        "cells": tuple(cells),
        "advantage": advantages[0],
        "random": tuple(advantages[1:]),
        "p": as_large / len(advantages),
        "shared": alike[0],
        "random_shared": float(np.mean(alike[1:])),
        "method": method,
    }


def _advantage(value: Mapping[str, Float[np.ndarray, "B"]], split: str, parts: Int[np.ndarray, "B"], k: int) -> float:
    """Mean over parts of |1 - faithfulness| of the others' circuits minus that of its own, where it is defined."""
    gains = []
    for place in range(k):
        own = parts == place
        if not own.any():
            continue
        full, nothing = value["full"][own].mean(), value["empty"][own].mean()
        if full == nothing:
            continue
        apart = [abs(1 - (value[f"{split} {c}"][own].mean() - nothing) / (full - nothing)) for c in range(k)]
        gains.append(np.mean([apart[c] for c in range(k) if c != place]) - apart[place])
    return float(np.mean(gains)) if gains else 0.0


def _edge_sets(circuits: Sequence[Circuit]) -> np.ndarray:
    return np.stack([circuit.mask.ravel() for circuit in circuits])
