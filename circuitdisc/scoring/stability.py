"""Stability: would other examples of the same task have given the same circuit?

1. Draw the examples of the train split again, with replacement, as many as there are.
2. Find the circuit on them by the same algorithm with the same settings.
3. Repeat, and compare all pairs of circuits: mean Jaccard index of their edges, and of their heads; and count how often each
   edge and head was found.

The interval is the jackknife's over circuits: it says how far the mean would move with other draws of the same examples, and
shrinks as more are drawn. It says nothing of other examples than those of the train split.

Sources: Efron & Tibshirani 1993, "An Introduction to the Bootstrap"; Arvesen 1969, "Jackknifing U-Statistics".
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.checks import CONFIDENCE, SEED, Whole, bounded, check_whole
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.discovery import discover
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.registry import search_identity
from circuitdisc.errors import BadSetting, BadTask, CircuitdiscWarning
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result, Row
from circuitdisc.runs import Memo
from circuitdisc.stats import jackknife_interval, mean_of_pairs
from circuitdisc.tasks.base import Task

STABLE = 0.8
_OF_DISCOVER = ("ablation", "metric", "memory", "allow_chance")


@dataclass(frozen=True, repr=False)
class Likeness(Result):
    """How alike the circuits are in one kind of thing. C circuits, N things.

    Args:
        kind: `edges` or `heads`.
        names: of all of the graph's.
        shares: share of the circuits that have each. [N]
        pairs: Jaccard index of every two circuits; 1 for two that have none. [C, C]
        with_whole: Jaccard index of each circuit with that of the whole train split. [C]
        low, high: jackknife interval of `mean`; None for two circuits.
    """

    kind: str
    names: tuple[str, ...]
    shares: Float[np.ndarray, "N"]
    pairs: Float[np.ndarray, "C C"]
    with_whole: Float[np.ndarray, "C"]
    low: float | None
    high: float | None

    @property
    def mean(self) -> float:
        """Mean Jaccard index over the pairs of different draws."""
        return mean_of_pairs(self.pairs)

    def table(self) -> list[Row]:
        """A line for each that was found at all, the most frequent first."""
        order = np.argsort(-self.shares, kind="stable")
        return [{"name": self.names[i], "share": float(self.shares[i])} for i in order if self.shares[i] > 0]


@dataclass(frozen=True, repr=False)
class Stability(Result):
    """Circuits found on bootstrap samples of the train split.

    Args:
        edges, heads: how alike they are.
        circuits: what was found on each sample.
        whole: what was found on the train split itself.
        n: bootstrap samples.
        n_examples: examples in each.
        confidence: coverage of the intervals.
        settings: the algorithm and how it was called.
    """

    FORMAT = "circuitdisc.stability"
    KEYS = ("table", "shares", "sizes", "n", "n_examples", "confidence", "settings")

    edges: Likeness
    heads: Likeness
    circuits: tuple[Circuit, ...]
    whole: Circuit
    n: int
    n_examples: int
    confidence: float
    settings: Mapping[str, Any]

    def table(self) -> list[Row]:
        """A line for edges, a line for heads."""
        return [
            {
                "of": likeness.kind,
                "Jaccard": likeness.mean,
                "low": likeness.low,
                "high": likeness.high,
                "stable": likeness.mean > STABLE,
                "with whole": float(likeness.with_whole.mean()),
                "ever found": int((likeness.shares > 0).sum()),
                "always found": int((likeness.shares == 1).sum()),
                "n": self.n,
            }
            for likeness in (self.edges, self.heads)
        ]

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """`edges` and `heads` -> name -> share of the circuits that have it; what none has is left out."""
        return {likeness.kind: {row["name"]: row["share"] for row in likeness.table()} for likeness in (self.edges, self.heads)}

    @property
    def sizes(self) -> list[int]:
        """Edges of each circuit."""
        return [circuit.n_edges for circuit in self.circuits]


@bounded(n_bootstrap=Whole(2, 100_000), confidence=CONFIDENCE, seed=SEED)
def stability(
    model: Model,
    task: Task,
    algorithm: str = "eap_ig",
    *,
    n_bootstrap: int = 100,
    vary_seed: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> Stability:
    """Find the circuit again on bootstrap samples of the train split.

    Args:
        algorithm: its name; it is run n_bootstrap + 1 times, so take a quick one, or fewer samples.
        n_bootstrap: samples. A hundred are usual.
        vary_seed: give the algorithm a new seed each time, too, so that its own chance is part of what is measured.
        confidence: coverage of the intervals.
        seed: of the draws, and of the algorithm.
        journal: a file for each circuit as it is found. Called again with it, a killed measurement goes on where it was, to the
            same result. A seed or settings that differ are refused; n_bootstrap may grow.
        **settings: as of `discover`: `ablation`, `metric`, `memory`, `allow_chance`, and the algorithm's own.

    Raises:
        BadTask: the train split has fewer than two examples.
        BadSetting: a number is out of its bounds.
        BadRun: the journal was begun with other settings, or cannot be written.
        CircuitdiscError: as `discover`; whether the model does the task is asked once, on the whole split.
    """
    n, generator = len(task.train), np.random.default_rng(seed)
    if n < 2:
        raise BadTask(
            f"the train split of '{task.name}' has {n} examples: a bootstrap needs two at least, and better a hundred"
        )
    samples = [replace(task, train=tuple(task.train[i] for i in generator.integers(n, size=n))) for _ in range(n_bootstrap)]
    seeds = [seed + 1 + index if vary_seed else seed for index in range(n_bootstrap)]
    whole, circuits = search_samples(
        model, task, algorithm, list(zip(samples, seeds, strict=True)), settings, bound_to={"vary_seed": vary_seed},
        seed=seed, journal=journal, words=f"stability of {algorithm}", progress=progress,
        value=lambda discovery: discovery.circuit.to_dict(),
    )  # fmt: skip
    done = {"algorithm": algorithm, "vary_seed": vary_seed, "seed": seed}
    whole = Circuit.from_dict(whole)
    return _stability(whole, [Circuit.from_dict(circuit) for circuit in circuits], n, confidence, done)


def search_samples(
    model: Model,
    task: Task,
    algorithm: str,
    samples: Sequence[tuple[Task, int]],
    settings: Mapping[str, Any],
    *,
    bound_to: Mapping[str, Any],
    seed: int,
    journal: str | Path | None,
    words: str,
    progress: bool,
    value: Callable[[Discovery], Any],
) -> tuple[Any, list[Any]]:
    """Search on the train split and on samples of it; what was killed goes on.

    Args:
        samples: tasks with other train examples, each with the algorithm's seed.
        settings: as of `discover`.
        bound_to: what else the journal belongs to.
        seed: of the search on the whole split.
        words: of the progress bar.
        value: what is kept of a search, plain JSON.

    Returns:
        The value of the whole split, and those of the samples.
    """
    own = {name: value for name, value in settings.items() if name not in _OF_DISCOVER}
    ablation, metric = settings.get("ablation", "mean"), settings.get("metric")
    search = search_identity(model, task, algorithm, ablation, metric, seed, own)
    units = Memo(journal, replace(search, settings={**search.settings, **bound_to}))

    def find(examples: Task, own: int, settings: Mapping[str, Any]) -> Any:
        return value(discover(model, examples, algorithm, seed=own, **settings))

    values: list[Any] = []
    try:
        with progress_bar(len(samples) + 1, words, "circuit", progress) as bar:
            whole = units.get("whole", partial(find, task, seed, settings))
            bar.update()
            of_sample = {**settings, "allow_chance": True}
            computes: dict[str, Callable[[], Any]] = {
                f"sample {index}": partial(find, sample, own_seed, of_sample)
                for index, (sample, own_seed) in enumerate(samples)
            }
            with warnings.catch_warnings():  # what there is to know was said of the whole split, once
                warnings.simplefilter("ignore", CircuitdiscWarning)
                units.spread(computes)
                for name, compute in computes.items():
                    values.append(units.get(name, compute))
                    bar.update()
    finally:
        units.close()
    return whole, values


@bounded(n=Whole(2, 100_000), confidence=CONFIDENCE, seed=SEED)
def stability_of_units(discovery: Discovery, n: int = 50, *, confidence: float = 0.95, seed: int = 0) -> Stability:
    """The same from what a search kept of each unit of its examples (`discover(..., keep_units=True)`): no further run.

    Units (examples, or groups of them) are drawn again with replacement. Where the ablation learns from the examples, what it
    carries stays that of the whole split: `settings` says so as `frozen`, and such circuits vary less than searches anew.

    Args:
        n: bootstrap samples.
        confidence: coverage of the intervals.
        seed: of the draws.

    Raises:
        BadSetting: the search kept nothing of its units, or a number is out of its bounds.
    """
    units = discovery.units
    if units is None:
        why = discovery.no_units or "it was not asked for: discover(..., keep_units=True)"
        raise BadSetting(f"the search kept no scores of its examples: {why}")
    n_units, generator = units.over.n_drawn, np.random.default_rng(seed)
    drawn = [np.bincount(generator.integers(n_units, size=n_units), minlength=n_units) for _ in range(n)]
    circuits = [units.circuit(counts.astype(float)) for counts in drawn]
    about = {"drawn": units.over.drawn, "n_drawn": n_units, "reruns": False, "frozen": units.frozen, "forwards": 0}
    done = {"algorithm": discovery.circuit.provenance.algorithm, "vary_seed": False, "seed": seed, **about}
    return _stability(discovery.circuit, circuits, units.over.n, confidence, done)


def _stability(
    whole: Circuit, circuits: Sequence[Circuit], n_examples: int, confidence: float, done: Mapping[str, Any]
) -> Stability:
    names, sets = edge_sets(whole.graph, [*circuits, whole])
    head_names, head_sets = _heads(whole.graph, [*circuits, whole])
    return Stability(
        likeness("edges", names, sets[:-1], sets[-1], confidence),
        likeness("heads", head_names, head_sets[:-1], head_sets[-1], confidence),
        tuple(circuits),
        whole,
        len(circuits),
        n_examples,
        confidence,
        {**done, **whole.provenance.to_dict()},
    )


def by_chance(circuit: Circuit, n: int = 20, seed: int = 0) -> dict[str, float]:
    """Mean Jaccard index of the edges, and of the heads, of n random circuits matched with this one.

    These (`circuitdisc/controls.py`) are all different, so that it is a little lower than that of independent draws where there
    are few. Empty if there are fewer than two.
    """
    check_whole("n", n, 2)
    drawn = random_circuits(circuit, n, np.random.default_rng(seed)).circuits
    if len(drawn) < 2:
        return {}
    kinds = {"edges": edge_sets(circuit.graph, drawn)[1], "heads": _heads(circuit.graph, drawn)[1]}
    return {kind: mean_of_pairs(jaccard(sets, sets)) for kind, sets in kinds.items()}


def likeness(
    kind: str,
    names: Sequence[str],
    sets: Bool[np.ndarray, "C N"],
    whole: Bool[np.ndarray, "N"],
    confidence: float = 0.95,
) -> Likeness:
    """How alike sets are.

    Args:
        sets: True where a circuit has the thing.
        whole: the same of the circuit of the whole train split.
    """
    pairs = jaccard(sets, sets)
    low, high = jackknife_interval(pairs, confidence)
    return Likeness(kind, tuple(names), sets.mean(0), pairs, jaccard(sets, whole[None])[:, 0], low, high)


def jaccard(first: Bool[np.ndarray, "C N"], second: Bool[np.ndarray, "D N"]) -> Float[np.ndarray, "C D"]:
    """Shared over all of the two, for every pair; 1 for two empty sets."""
    shared = first.astype(np.float64) @ second.astype(np.float64).T
    union = first.sum(1)[:, None] + second.sum(1)[None, :] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def edge_sets(graph: ComputationGraph, circuits: Sequence[Circuit]) -> tuple[list[str], Bool[np.ndarray, "C N"]]:
    """The names of all edges, and which of them each circuit has."""
    names = [graph.edge_name(int(receiver), int(sender)) for receiver, sender in np.argwhere(graph.edge_mask)]
    return names, np.array([circuit.mask[graph.edge_mask] for circuit in circuits])


def _heads(graph: ComputationGraph, circuits: Sequence[Circuit]) -> tuple[list[str], Bool[np.ndarray, "C N"]]:
    names = list(graph.heads)
    kept = [set(circuit.heads()) for circuit in circuits]
    return names, np.array([[name in heads for name in names] for heads in kept], dtype=bool).reshape(len(kept), len(names))
