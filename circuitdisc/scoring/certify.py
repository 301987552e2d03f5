"""Certified edges: which edges stay in a circuit, or out of it, when search examples are deleted.

1. Keep each unit of the search examples (an example; a whole group of them, where there are enough groups) with probability
   1 - delete, independently, and find the circuit on those that are kept, by the run's own search. That of no example is empty.
2. Repeat n times, and count for each edge in how many of the circuits it is.
3. Let p be the probability that the edge is in the circuit of a random subset. Clopper-Pearson bounds low <= p <= high, each at
   level (1 - confidence) / (2 x edges of the graph), hold with the stated confidence for all edges together (Bonferroni).
4. An edge with low > 1/2 is certified in: most subsets have it. With high < 1/2 it is certified out. All others: abstained.

How many deletions a certificate withstands. What is certified is the majority over random subsets, not a single search. Take r
given units R away, and smooth what is left in the same way. A random subset of all units without R is a random subset of the
units that are left, since units are kept independently. With A: "no unit of R is kept", P(A) = delete^r, the new probability
is

    p' = P(edge in the circuit | A) = (p - P(edge in the circuit and not A)) / P(A) >= (low - (1 - delete^r)) / delete^r

so that p' > 1/2 for whichever r units are deleted if low > 1 - delete^r / 2; likewise with 1 - high for edges that stay out.
For r = 0 that is step 4. (Subtracting 1 - delete^r alone, without conditioning, would certify no single deletion at
delete < 1/2.) At delete=.2 one deletion takes low > .9, two take low > .98; a larger `delete` certifies more deletions, of
circuits found on fewer examples. Nothing is said of examples that are added or changed.

Where each unit's part of the scores is kept (`UnitScores`), n searches cost as much as one: a subset's scores are sums of
parts. That is the search itself under ablations that learn nothing from the examples. For others (`mean`, `optimal`) the
ablation's values stay those of all search examples, and the certificate is of the search with these values given; `rerun`
searches anew.

Sources: "Certified Circuits", 2026 (https://arxiv.org/abs/2602.22968), for randomised deletions of examples; Cohen, Rosenfeld &
Kolter 2019, "Certified Adversarial Robustness via Randomized Smoothing" (bounds, abstention); Clopper & Pearson 1934. The
radius by conditioning is derived above.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from circuitdisc.checks import CONFIDENCE, KEEP, SEED, Whole, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.discovery import discover
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.errors import BadTask
from circuitdisc.models.model import Model
from circuitdisc.results import Result, Row
from circuitdisc.scoring.stability import edge_sets, search_samples
from circuitdisc.scoring.work import plain_forwards
from circuitdisc.stats import Partition, partition_of
from circuitdisc.tasks.base import Task

IN, OUT, ABSTAINED = "in", "out", "abstained"
SUMS, RERUNS = 200, 50
"""Subsets, where none is asked for: of sums of scores, and of searches."""
N_RANDOM = 20


@dataclass(frozen=True)
class Bounds:
    """What the counts of some edges say.

    Args:
        shares: of the subsets whose circuit has the edge. [E]
        low, high: bounds of its probability, of all edges together.
        deletions: how many given units may be deleted without a change of the majority; -1: abstained. [E]
    """

    shares: Float[np.ndarray, "E"]
    low: Float[np.ndarray, "E"]
    high: Float[np.ndarray, "E"]
    deletions: Int[np.ndarray, "E"]

    @cached_property
    def labels(self) -> list[str]:
        sides = zip(self.low, self.high, strict=True)
        return [IN if low > 0.5 else OUT if high < 0.5 else ABSTAINED for low, high in sides]


@dataclass(frozen=True, repr=False)
class Certificate(Result):
    """Edges that are certified to stay in a circuit or out of it.

    Args:
        names: of all edges of the graph. [E]
        bounds: of each.
        circuit: of all search examples.
        n: random subsets.
        delete: probability with which a unit is left out of one.
        confidence: that all bounds hold together.
        over: what is deleted: examples, or groups of them.
        reruns: each subset was a search of its own; else sums of one search's scores.
        frozen: what the ablation learns of the examples stayed that of all of them.
        forwards: what it cost, in plain forward passes of a prompt; a backward pass counts as two.
        random: mean share of the edges of random circuits matched with the circuit that are certified in; None without any.
        settings: the algorithm and how it was called.
    """

    FORMAT = "circuitdisc.certificate"
    KEYS = (
        "table", "counts", "never", "n", "n_needed", "n_for_one", "delete", "confidence", "units", "n_units", "n_examples",
        "reruns", "frozen", "forwards", "random", "settings",
    )  # fmt: skip

    names: tuple[str, ...]
    bounds: Bounds
    circuit: Circuit
    n: int
    delete: float
    confidence: float
    over: Partition
    reruns: bool
    frozen: bool
    forwards: float
    random: float | None
    settings: Mapping[str, Any]

    def table(self) -> list[Row]:
        """A line for each edge that is in the circuit or in that of any subset, the most frequent first."""
        kept, shares = self._kept, self.bounds.shares
        order = np.argsort(-shares, kind="stable")
        return [self._row(int(i), bool(kept[i])) for i in order if shares[i] > 0 or kept[i]]

    def _row(self, i: int, kept: bool) -> Row:
        bounds = self.bounds
        ends = {"share": float(bounds.shares[i]), "low": float(bounds.low[i]), "high": float(bounds.high[i])}
        return {"edge": self.names[i], "kept": kept, **ends, "label": bounds.labels[i], "deletions": int(bounds.deletions[i])}

    @property
    def never(self) -> Row:
        """What holds of each edge that is in no subset's circuit, and how many there are."""
        absent = np.flatnonzero(self.bounds.shares == 0)
        row = self._row(int(absent[0]), False) if len(absent) else {}
        return {"edges": len(absent)} | {key: row[key] for key in ("high", "label", "deletions") if row}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Of the circuit's edges and of all others, how many have each label."""
        kept, labels = self._kept, np.array(self.bounds.labels)
        both = {"circuit": labels[kept], "others": labels[~kept]}
        return {of: {label: int((own == label).sum()) for label in (IN, OUT, ABSTAINED)} for of, own in both.items()}

    @property
    def certified(self) -> Circuit:
        """The edges that are certified in."""
        mask = np.zeros_like(self.circuit.graph.edge_mask)
        mask[self.circuit.graph.edge_mask] = [label == IN for label in self.bounds.labels]
        return Circuit(self.circuit.graph, mask)

    @property
    def n_needed(self) -> int:
        """Fewest subsets by which an edge that is in all of their circuits is certified in."""
        return self._n_for(0)

    @property
    def n_for_one(self) -> int:
        """Fewest subsets by which such a certificate withstands one deletion."""
        return self._n_for(1)

    def _n_for(self, deletions: int) -> int:
        level = (1 - self.confidence) / (2 * len(self.names))
        return math.floor(math.log(level) / math.log(1 - self.delete**deletions / 2)) + 1

    @property
    def units(self) -> str:
        return self.over.drawn

    @property
    def n_units(self) -> int:
        return self.over.n_drawn

    @property
    def n_examples(self) -> int:
        return self.over.n

    @property
    def _kept(self) -> Bool[np.ndarray, "E"]:
        return self.circuit.mask[self.circuit.graph.edge_mask]


@bounded(delete=KEEP, n=Whole(1, 1_000_000), confidence=CONFIDENCE, seed=SEED)
def certify(
    model: Model,
    task: Task,
    algorithm: str = "eap_ig",
    *,
    delete: float = 0.2,
    n: int | None = None,
    confidence: float = 0.95,
    rerun: bool = False,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> Certificate:
    """Certify which edges stay in the circuit, or out of it, when examples of the train split are deleted.

    Args:
        algorithm: its name. `eap`, `eap_ig`, `eap_ig_activations`, `clean_corrupted`, `ceap` and `eap_gp` run once; others
            n + 1 times.
        delete: probability with which an example (or group) is left out of a random subset.
        n: subsets; None: 200, or 50 where each is a search.
        confidence: that all bounds hold together.
        rerun: search each subset anew in any case.
        seed: of the subsets, and of the algorithm.
        journal: a file for each search as it is finished; called again with it, a killed call goes on.
        **settings: as of `discover`: `ablation`, `metric`, `memory`, `allow_chance`, and the algorithm's own.

    Raises:
        BadTask: the train split has fewer than two examples.
        BadSetting: a number is out of its bounds.
        BadRun: the journal was begun with other settings, or cannot be written.
        CircuitdiscError: as `discover`.
    """
    over, own = partition_of(task.train), {"seed": seed, "progress": progress, **settings}
    if over.n < 2:
        raise BadTask(f"the train split of '{task.name}' has {over.n} examples: at least two are needed to delete any")
    once = not rerun and get_algorithm(algorithm).by_unit
    discovery = discover(model, task, algorithm, keep_units=True, **own) if once else None
    units = None if discovery is None else discovery.units
    over = over if units is None else units.over  # a search may have set examples apart
    n = n or (RERUNS if units is None else SUMS)
    kept_NG = np.random.default_rng(seed).random((n, over.n_drawn)) >= delete
    if discovery is not None and units is not None:
        circuit, circuits = discovery.circuit, [units.circuit(kept.astype(float)) for kept in kept_NG]
        forwards = plain_forwards(discovery.cost, model.graph) * over.n
    else:
        bound_to = {"certify": True, "delete": delete}
        kept_NB = kept_NG[:, over.of]
        circuit, circuits, forwards = _searches(model, task, algorithm, kept_NB, settings, bound_to, seed, journal, progress)
    names, sets = edge_sets(model.graph, circuits)
    bounds = bounds_of_sets(sets, delete, confidence, over.n_drawn)
    frozen, done = units is not None and units.frozen, {"algorithm": algorithm, "seed": seed, **circuit.provenance.to_dict()}
    found = Certificate(
        tuple(names), bounds, circuit, n, delete, confidence, over, units is None, frozen, forwards, None, done
    )  # fmt: skip
    return replace(found, random=_of_random_circuits(found, seed))


def bounds_of_sets(sets: Bool[np.ndarray, "n E"], delete: float, confidence: float, n_units: int) -> Bounds:
    """The bounds of all edges together, and the deletions that they withstand.

    Args:
        sets: True where a subset's circuit has the edge.
        n_units: units that there are to delete.
    """
    n, n_edges = sets.shape
    hits, level = sets.sum(0), (1 - confidence) / (2 * n_edges)
    counts = np.arange(n + 1)
    with np.errstate(invalid="ignore"):
        low = np.where(counts > 0, stats.beta.ppf(level, counts, n - counts + 1), 0.0)
    low_E, high_E = low[hits], 1 - low[n - hits]
    needed = 1 - delete ** np.arange(n_units + 1) / 2  # for 0, 1, ... deletions
    return Bounds(hits / n, low_E, high_E, np.searchsorted(needed, np.maximum(low_E, 1 - high_E), side="left") - 1)


def _searches(
    model: Model,
    task: Task,
    algorithm: str,
    kept_NB: Bool[np.ndarray, "n B"],
    settings: Mapping[str, Any],
    bound_to: Mapping[str, Any],
    seed: int,
    journal: str | Path | None,
    progress: bool,
) -> tuple[Circuit, list[Circuit], float]:
    """The circuits of all examples and of each subset, by searches; and what these cost in plain forwards."""

    def value(discovery: Discovery) -> dict[str, Any]:
        return {"circuit": discovery.circuit.to_dict(), "forwards": plain_forwards(discovery.cost, model.graph)}

    subsets = [tuple(example for example, kept in zip(task.train, row, strict=True) if kept) for row in kept_NB]
    samples = [(replace(task, train=subset), seed) for subset in subsets if subset]
    whole, values = search_samples(
        model, task, algorithm, samples, settings, bound_to=bound_to, seed=seed, journal=journal,
        words=f"certificate of {algorithm}", progress=progress, value=value,
    )  # fmt: skip
    forwards = sum(
        each["forwards"] * len(examples.train)
        for each, (examples, _) in zip([whole, *values], [(task, seed), *samples], strict=True)
    )
    in_order = iter(values)
    circuits = [Circuit.from_dict(next(in_order)["circuit"]) if subset else Circuit.empty(model.graph) for subset in subsets]
    return Circuit.from_dict(whole["circuit"]), circuits, forwards


def _of_random_circuits(found: Certificate, seed: int) -> float | None:
    """Mean share of edges that are certified in, of random circuits matched with the circuit."""
    drawn = random_circuits(found.circuit, N_RANDOM, np.random.default_rng(seed)).circuits
    certified = found.certified.mask
    shares = [float((circuit.mask & certified).sum() / circuit.n_edges) for circuit in drawn if circuit.n_edges]
    return float(np.mean(shares)) if shares else None
