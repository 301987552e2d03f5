"""Rivals: are there other circuits that are as good?

1. Search again, with the edges (of a head circuit the heads) of all earlier circuits avoided (`rival_search.py`,
   `rival_heads.py`), on the run's train split. Of what the
   search proposes, leave out what is larger than the run's circuit or like an earlier one, unless nothing else is there; then
   take the first whose distance from the full model is at most `margin` larger than the run's, else the nearest to it.
2. Repeat, `n` times in all; every circuit counts as an earlier one from then on.
3. Judge all of them on held-out examples, beside the run's circuit and random circuits of its size and layers. The figure is

       nearer(C) = |1 - faithfulness(run)| - |1 - faithfulness(C)|

   paired example by example: negative where C is farther from the full model than the run's circuit.

A circuit is a rival that is *as good* if its interval of `nearer` lies above -margin as a whole, its Jaccard index with every
earlier such circuit is at most `most_alike`, and it has at most a tenth more edges than the run's. It is *worse* if the
interval lies below -margin, else *undecided*. That there are no others does not follow: a search finds some.

Source: circuits of one task that share few edges, found by a search that avoids edges used before (arXiv 2605.12671).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from typing_extensions import TypedDict, Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.certainty.forwards import Spending
from circuitdisc.certainty.rival_heads import jaccard_of, like, size_of
from circuitdisc.certainty.rival_search import Avoiding, avoiding, uses_of
from circuitdisc.checks import N_RANDOM, SHARE, Real, Whole
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import search_identity
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import BadTask
from circuitdisc.identity import hash_circuit
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, Option, takes
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result, Row
from circuitdisc.runs import Memo
from circuitdisc.scoring.base import Score, judging_ablation
from circuitdisc.scoring.faithfulness import Means, normalised, why_undefined
from circuitdisc.scoring.judging import ByMetric, check_graph, check_split
from circuitdisc.scoring.overlap import overlap
from circuitdisc.scoring.score import masks_of
from circuitdisc.scoring.work import plain_forwards
from circuitdisc.stats import Partition, interval, partition_of, plain
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import metric_for

AS_GOOD, UNDECIDED, WORSE, LARGER, ALIKE = "as good", "undecided", "worse", "larger", "alike"
LARGER_BY = 0.1
"""As a share of its edges, by how much a rival may be larger than the run's circuit."""


@dataclass(frozen=True, repr=False)
class Rival(Result):
    """A circuit that avoids earlier ones.

    Args:
        standing: `as good`, `undecided`, `worse`; `larger` than the run's circuit; `alike` to it or an earlier one as good.
        factor: what scores of used edges were multiplied by; of a search by cuts what its threshold was.
        n_edges: its edges.
        n_shared: edges (of head circuits heads) that the run's circuit has, too.
        jaccard, chance: the Jaccard index of these; that of a random circuit with as many of them in each layer.
        nearest: its largest Jaccard index with the run's circuit or an earlier one that is as good.
        faithfulness, low, high: on held-out examples.
        nearer, nearer_low, nearer_high: by how much it is nearer to the full model than the run's circuit.
    """

    name: str
    standing: str
    factor: float
    n_edges: int
    n_shared: int
    jaccard: float
    chance: float
    nearest: float
    faithfulness: float | None
    low: float | None
    high: float | None
    nearer: float | None
    nearer_low: float | None
    nearer_high: float | None
    edges: tuple[str, ...]
    heads: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Rivals(Result):
    """Other circuits of a run's task, and what they have in common.

    Args:
        own: faithfulness of the run's circuit on held-out examples, with those of random circuits.
        rivals: a try each, in order.
        n_edges, n_heads: of the run's circuit.
        core_edges, core_heads: in the run's circuit and in all that are as good.
        optional_edges, optional_heads: in some of these and not in all.
        likeness, likeness_random: mean Jaccard index of the edges over pairs of these; of as many random circuits.
        random_as_good: how many of the random circuits pass the rule for a rival.
        margin, most_alike: of the rule.
        forwards: forward passes of a prompt: of the tries, of judging, and of the run's own search (None: not known).
        cost: of the tries and of judging.
        by: `edge` or `head`: what is avoided, and of what sizes and Jaccard indices are.
    """

    own: Score
    rivals: tuple[Rival, ...]
    n_edges: int
    n_heads: int
    core_edges: tuple[str, ...]
    core_heads: tuple[str, ...]
    optional_edges: tuple[str, ...]
    optional_heads: tuple[str, ...]
    likeness: float | None
    likeness_random: float | None
    random_as_good: int
    margin: float
    most_alike: float
    algorithm: str
    forwards: Mapping[str, float | None]
    cost: Mapping[str, Mapping[str, float]]
    by: str

    @property
    def as_good(self) -> tuple[Rival, ...]:
        """The rivals that are as good."""
        return tuple(rival for rival in self.rivals if rival.standing == AS_GOOD)

    @property
    def standings(self) -> Counter[str]:
        """How many tries ended as what."""
        return Counter(rival.standing for rival in self.rivals)

    def table(self) -> list[Row]:
        """A line for the run's circuit, a line a try."""
        own = {"circuit": "the run's", "standing": "", "edges": self.n_edges, "faithfulness": self.own.value}
        rows = [own | {"low": self.own.low, "high": self.own.high, "n": self.own.n}]
        for rival in self.rivals:
            row = {"circuit": rival.name, "standing": rival.standing, "edges": rival.n_edges}
            row |= {"faithfulness": rival.faithfulness, "low": rival.low, "high": rival.high, "n": self.own.n}
            row |= {"nearer": rival.nearer, "nearer low": rival.nearer_low, "nearer high": rival.nearer_high}
            row |= {"shared": rival.n_shared, "Jaccard": rival.jaccard, "chance": rival.chance, "factor": rival.factor}
            rows.append(row)
        return rows


class Rivalling(TypedDict, total=False):
    """When a circuit is a rival that is as good."""

    margin: Annotated[
        float, Option(0.05, "by how much it may be farther from the full model than the run's circuit.", Real(0, 10))
    ]
    most_alike: Annotated[
        float, Option(0.9, "the largest Jaccard index of its edges with those of an earlier circuit that is as good.", SHARE)
    ]


class RivalOptions(Drawing, ByMetric, Rivalling, total=False):
    """How rivals are searched and judged."""

    n: Annotated[int, Option(5, "tries.", Whole(1, 1_000))]
    n_random: Annotated[int, Option(20, "random circuits matched with the run's; fewer where there are no more.", N_RANDOM)]
    edge_scores: Annotated[Any, Option(None, "those that chose the circuit; None: the algorithm gives them again. [R, S]")]
    search: Annotated[Cost | None, Option(None, "what the run's own search has cost; None: not known.")]
    journal: Annotated[
        str | Path | None,
        Option(None, "a file for the tries as they end; called again with it, a killed call goes on. `n` may grow."),
    ]
    settings: Annotated[Mapping[str, Any] | None, Option(None, "of the algorithm, as the run has them.")]


@takes(RivalOptions)
def rivals(model: Model, task: Task, circuit: Circuit, algorithm: str, **options: Unpack[RivalOptions]) -> Rivals:
    """Search circuits that avoid the edges of a run's circuit and of each other, and judge them on held-out examples.

    Args:
        circuit: that of the run.
        algorithm: that found it.
        seed: of the search, the random circuits and the bootstrap.

    Raises:
        BadSetting: the algorithm has no such search, or a number is out of its bounds.
        BadTask: the circuit is empty or the full model does no more than the empty circuit, so that nothing can be as good.
        BadRun: the journal was begun with other weights, examples, settings or another circuit.
    """
    given: Any = options
    check_graph(model, circuit)
    check_split(task, "heldout")
    if not size_of(circuit):
        raise BadTask(f"the circuit is empty: no {circuit.granularity} of it can be avoided")
    ablation = judging_ablation(given["ablation"], circuit.provenance)
    metric = metric_for(model, task, given["metric"], circuit.provenance.metric)
    seed, settings = given["seed"], dict(given["settings"] or {})
    context = SearchContext(metric, given["memory"], seed)
    search = avoiding(model, task, circuit, algorithm, ablation, context, settings, given["edge_scores"])
    trial = _Trying(model, task, circuit, ablation, metric, search, given)
    identity = search_identity(model, task, algorithm, ablation, metric, seed, settings)
    bound = {"circuit": hash_circuit(circuit), "margin": given["margin"]}
    units = Memo(given["journal"], replace(identity, settings={**identity.settings, **bound}))
    tries: list[dict[str, Any]] = []
    with closing(units), progress_bar(given["n"] + 1, f"rivals by {algorithm}", "try", given["progress"]) as bar:
        for index in range(given["n"]):
            earlier = [circuit, *(like(circuit, each["edges"]) for each in tries)]
            tries.append(units.get(f"try {index + 1}", partial(trial.search_again, earlier, index + 1)))
            bar.update()
        judged = _judged(model, task, circuit, tries, ablation, metric, given)
        bar.update()
    spent = {"tries": _sum([each["cost"] for each in tries]), "judgement": judged.cost}
    own = None if given["search"] is None else plain_forwards(given["search"], model.graph) * len(task.train)
    forwards = {"tries": plain_forwards(Cost(**spent["tries"]), model.graph) * len(task.train)}
    return judged.result(algorithm, given, {**forwards, "judgement": judged.forwards, "own search": own}, spent)


# --- the tries ------------------------------------------------------------------------------------------------------------


@dataclass
class _Trying:
    """Steps 1 and 2."""

    model: Model
    task: Task
    circuit: Circuit
    ablation: Ablation
    metric: Metric
    search: Avoiding
    given: Mapping[str, Any]

    def search_again(self, earlier: Sequence[Circuit], attempt: int) -> dict[str, Any]:
        """A try as plain data: its edges, factor and cost."""
        started, before = perf_counter(), vars(self.search.cost).copy() if attempt > 1 else {}
        proposals = self.search.proposals(uses_of(earlier), attempt)
        cost = {name: value - before.get(name, 0) for name, value in vars(self.search.cost).items()}
        small = [each for each in proposals if _fits(each[1], self.circuit)] or proposals
        other = [
            each for each in small if max(jaccard_of(each[1], known) for known in earlier) <= self.given["most_alike"]
        ] or small
        if len(other) > 1:
            patching = Patching(self.model, self.ablation, self.task.train, memory=self.given["memory"])
            other = [self._best(patching, other)]
            cost = _sum([cost, vars(patching.cost)])
        factor, chosen = other[0]
        return {"edges": chosen.edge_names(), "factor": factor, "cost": {**cost, "seconds": perf_counter() - started}}

    def _best(self, patching: Patching, proposals: Sequence[tuple[float, Circuit]]) -> tuple[float, Circuit]:
        """The first of the proposals that is near enough on the train split, else the nearest."""
        masks = masks_of(self.circuit, random_circuits(self.circuit, 0, np.random.default_rng(0)))
        masks |= {str(index): proposal.mask for index, (_, proposal) in enumerate(proposals)}
        values = _values(patching, self.task, "train", masks, self.metric)
        means = {name: row.mean() for name, row in values.items()}
        three = [means["full"], means["circuit"], means["empty"]]
        nearer = [float(_nearer(np.array([*three, means[str(index)]]))) for index in range(len(proposals))]
        near = [index for index, value in enumerate(nearer) if value >= -self.given["margin"]]
        return proposals[near[0] if near else int(np.argmax(nearer))]


def _fits(rival: Circuit, circuit: Circuit) -> bool:
    """Whether a rival is not much larger than the run's circuit."""
    return size_of(rival) <= (1 + LARGER_BY) * size_of(circuit)


def _values(
    patching: Patching, task: Task, split: str, masks: Mapping[str, Bool[np.ndarray, "R S"]], metric: Metric
) -> dict[str, Float[np.ndarray, "B"]]:
    values = patching.evaluate(task.split(split), masks, [metric])
    return {name: by_metric[metric.name].double().cpu().numpy() for name, by_metric in values.items()}


def _nearer(means: Float[np.ndarray, "4 *W"]) -> Float[np.ndarray, "*W"]:
    """From the means of the full model, the run's circuit, the empty circuit and another circuit."""
    full, own, empty, other = means
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.abs(full - own) - np.abs(full - other)) / np.abs(full - empty)


# --- the judgement --------------------------------------------------------------------------------------------------------


@dataclass
class _Judged:
    """Step 3: every circuit's figures, and what the rule says of them."""

    circuit: Circuit
    own: Score
    rivals: tuple[Rival, ...]
    circuits: Sequence[Circuit]
    random: Sequence[Circuit]
    random_as_good: int
    cost: Mapping[str, float]
    forwards: float

    def result(
        self, algorithm: str, given: Mapping[str, Any], forwards: Mapping[str, float | None], cost: Mapping[str, Any]
    ) -> Rivals:
        graph, good = self.circuit.graph, [self.circuit]
        good += [circuit for circuit, rival in zip(self.circuits, self.rivals, strict=True) if rival.standing == AS_GOOD]
        core, every = good[0], good[0]
        for circuit in good[1:]:
            core, every = core & circuit, every | circuit
        heads = [set(circuit.heads()) for circuit in good]
        always, ever = set.intersection(*heads), set.union(*heads)
        names = list(graph.heads)
        return Rivals(
            self.own,
            self.rivals,
            self.circuit.n_edges,
            len(self.circuit.heads()),
            tuple(core.edge_names()),
            tuple(name for name in names if name in always),
            tuple((every - core).edge_names()),
            tuple(name for name in names if name in ever - always),
            _mean_likeness(good),
            _mean_likeness(self.random[: len(good)]) if len(good) > 1 else None,
            self.random_as_good,
            given["margin"],
            given["most_alike"],
            algorithm,
            forwards,
            cost,
            self.circuit.granularity,
        )


def _mean_likeness(circuits: Sequence[Circuit]) -> float | None:
    """Mean Jaccard index over pairs; None for fewer than two circuits."""
    return float(np.mean([jaccard_of(*pair) for pair in combinations(circuits, 2)])) if len(circuits) > 1 else None


def _judged(
    model: Model,
    task: Task,
    circuit: Circuit,
    tries: Sequence[Mapping[str, Any]],
    ablation: Ablation,
    metric: Metric,
    given: Mapping[str, Any],
) -> _Judged:
    started = perf_counter()
    circuits = [like(circuit, each["edges"]) for each in tries]
    controls = random_circuits(circuit, given["n_random"], np.random.default_rng(given["seed"]))
    masks = masks_of(circuit, controls) | {f"try {index}": other.mask for index, other in enumerate(circuits)}
    patching = Patching(model, ablation, task.train, memory=given["memory"])
    spending = Spending(patching, task)
    values = _values(patching, task, "heldout", masks, metric)
    forwards = spending.on(len(task.heldout))
    three = [values[name] for name in ("full", "circuit", "empty")]
    if why := why_undefined(float(three[0].mean()), float(three[2].mean())):
        raise BadTask(f"no circuit can be as good as another here: {why}")
    figures = _Figures(three, partition_of(task.heldout), given["confidence"], given["seed"])
    names = [name for name in masks if name.startswith("random")]
    good = sum(figures.standing(figures.nearer(values[name]), given["margin"]) == AS_GOOD for name in names)
    value, low, high = figures.faithfulness(three[1])
    own = Score(
        "faithfulness", "heldout", ablation.label, metric.name, len(task.heldout), value, low, high, given["confidence"],
        tuple(figures.faithfulness(values[name])[0] for name in names), matched=controls.words,
    )  # fmt: skip
    rivals: list[Rival] = []
    earlier = [circuit]
    for index, (other, each) in enumerate(zip(circuits, tries, strict=True)):
        shared = overlap(circuit, other, mix=True)[f"{circuit.granularity}s"]
        nearest = max(jaccard_of(other, known) for known in earlier)
        nearer = figures.nearer(values[f"try {index}"])
        standing = figures.standing(nearer, given["margin"])
        standing = standing if _fits(other, circuit) else LARGER
        standing = ALIKE if nearest > given["most_alike"] else standing
        earlier += [other] * (standing == AS_GOOD)
        about = (f"try {index + 1}", standing, each["factor"], other.n_edges)
        alike = (shared.n_shared, shared.jaccard, _by_chance(shared), nearest)
        does = figures.faithfulness(values[f"try {index}"])
        rivals.append(Rival(*about, *alike, *does, *nearer, tuple(each["edges"]), tuple(other.heads())))
    patching.cost.seconds = perf_counter() - started
    spent = dict(vars(patching.cost))
    return _Judged(circuit, own, tuple(rivals), circuits, controls.circuits, good, spent, forwards)


Ends = tuple[float | None, float | None, float | None]
"""A value and the ends of its interval."""


@dataclass(frozen=True)
class _Figures:
    """Figures of circuits on the same examples.

    Args:
        three: values of the full model, the run's circuit and the empty circuit.
    """

    three: Sequence[Float[np.ndarray, "B"]]
    over: Partition
    confidence: float
    seed: int

    def faithfulness(self, values: Float[np.ndarray, "B"]) -> Ends:
        return self._of([self.three[0], values, self.three[2]], normalised)

    def nearer(self, values: Float[np.ndarray, "B"]) -> Ends:
        return self._of([*self.three, values], _nearer)

    def _of(self, samples: Sequence[Float[np.ndarray, "B"]], figure: Any) -> Ends:
        means: Means = np.stack([sample.mean() for sample in samples])
        ends = interval(samples, figure, groups=self.over, confidence=self.confidence, seed=self.seed)
        return plain(float(figure(means))), *ends.ends

    def standing(self, nearer: Ends, margin: float) -> str:
        """What the rule says of an interval; without one nothing is decided."""
        _, low, high = nearer
        if low is None or high is None:
            return UNDECIDED
        return AS_GOOD if low >= -margin else WORSE if high < -margin else UNDECIDED


def _by_chance(shared: Any) -> float:
    """The Jaccard index if as many edges were shared as random circuits with as many in each layer share in the mean."""
    expected = shared.n_shared if shared.matched is None else shared.matched.expected
    union = shared.n_a + shared.n_b - expected
    return expected / union if union else 1.0


def _sum(costs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    total = Cost()
    for cost in costs:
        total.add(Cost(**cost))  # pyright: ignore[reportArgumentType] - counts may be floats
    return dict(vars(total))
