"""Positions: at which spans of a prompt does a circuit need its edges?

1. The tokens of every prompt fall into spans, by the roles of the task (`tasks/spans.py`). A unit is an edge at a span.
2. Attribution scores of all units on the search examples.
3. An exact search over units, of the run's circuit or of the whole graph (`search.py`), that keeps as much of the gap between
   the full model and the empty circuit as the rule says.
4. On both splits: what it found, the run's circuit, circuits of the same size by attribution, positioned and plain, the model
   without it, and random circuits. A plain circuit has its edges at all spans; its size is counted in the units that an answer
   can see.
5. The same circuits on other checkpoints.

Source: Haklay et al. 2025, "Position-aware Automatic Circuit Discovery" (https://arxiv.org/abs/2502.04577).

Shape letters: P spans, R receivers, S senders, B examples.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.checks import EDGES, N_RANDOM, Real, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.rules import AUTO, KeepRule
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.identity import identity_of
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, takes
from circuitdisc.positioned.attribution import RANKINGS, ascending, unit_scores
from circuitdisc.positioned.circuit import Mask, PositionedCircuit, check_size, live_units
from circuitdisc.positioned.search import (
    OTHER_HEADS,
    OTHER_SPANS,
    PositionedRuns,
    largest,
    plain_of_size,
    random_positioned,
    search_units,
)
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result, Row
from circuitdisc.runs import Memo
from circuitdisc.scoring.faithfulness import normalised, why_undefined
from circuitdisc.scoring.judging import ByMetric, check_graph, judging
from circuitdisc.scoring.work import plain_forwards
from circuitdisc.stats import interval, partition_of, plain
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.spans import Spans
from circuitdisc.wording import percent

Start = Literal["circuit", "graph"]
SLACK = 0.02
"""Of the gap: how much farther from the full model than the run's circuit `keep=auto` lets the search go."""
POSITIONED, OWN, EVERYWHERE = "positioned", "run's circuit", "its edges at all spans"
BY_UNIT, PLAIN_UNITS, PLAIN_EDGES = "best units", "best edges, as many units", "best edges, as many edges"


@dataclass(frozen=True, repr=False)
class JudgedSize(Result):
    """A circuit and its faithfulness.

    Args:
        name: which: `positioned`, the `run's circuit`, ...
        n_units, n_edges: its size, without what no answer can see.
        faithfulness: on held-out examples, with its interval; None where it is undefined.
        searched: the same on the search examples.
        nearer: how much nearer the full model `positioned` is than this one, of the gap between full model and empty circuit.
    """

    name: str
    n_units: int
    n_edges: int
    faithfulness: float | None
    low: float | None
    high: float | None
    searched: float | None
    searched_low: float | None
    searched_high: float | None
    nearer: float | None
    nearer_low: float | None
    nearer_high: float | None


@dataclass(frozen=True, repr=False)
class OnCheckpoint(Result):
    """The positioned and the run's circuit on the held-out examples of another checkpoint."""

    checkpoint: str
    n: int
    positioned: float | None
    low: float | None
    high: float | None
    plain: float | None
    plain_low: float | None
    plain_high: float | None
    nearer: float | None
    nearer_low: float | None
    nearer_high: float | None


@dataclass(frozen=True, repr=False)
class Positions(Result):
    """At which spans a circuit needs its edges.

    Args:
        graph, spans: of the circuit.
        edges: name of each edge that is kept -> its spans.
        circuits: what was found, and what it is compared with.
        rest: faithfulness of the model without the units, with its interval.
        random: faithfulness of random circuits, by kind.
        traded: how much nearer the full model the best units are than the best edges of as many units; both by attribution.
        checkpoints: the same circuits elsewhere.
        start: what was tried: the run's `circuit`, or the `graph`.
        n_tried, n_possible: units that were tried; that an answer can see in the whole graph.
        keep: the share of the gap that the search had to keep.
        n_tests: circuits that the search measured.
        n, n_search: held-out and search examples.
        forwards: plain forward passes of a prompt: `attribution`, `search`, `judgement`, and what the `own search` took, if
            that is known.
    """

    FORMAT = "circuitdisc.positions"
    WHERE = "not a result of positions"

    graph: ComputationGraph
    spans: Spans
    edges: Mapping[str, tuple[str, ...]]
    circuits: tuple[JudgedSize, ...]
    rest: float | None
    rest_low: float | None
    rest_high: float | None
    random: Mapping[str, tuple[float | None, ...]]
    traded: float | None
    traded_low: float | None
    traded_high: float | None
    checkpoints: tuple[OnCheckpoint, ...]
    start: Start
    n_tried: int
    n_possible: int
    ranking: str
    keep: float
    n_tests: int
    n: int
    n_search: int
    metric: str
    ablation: str
    confidence: float
    method: str
    forwards: Mapping[str, float | None]
    seconds: float

    @property
    def circuit(self) -> PositionedCircuit:
        """What was found."""
        return PositionedCircuit.from_edges(self.graph, self.spans, self.edges)

    def named(self, name: str) -> JudgedSize:
        """The circuit with this name."""
        return next(each for each in self.circuits if each.name == name)

    def table(self) -> list[Row]:
        """A line for each circuit."""
        return [asdict(each) for each in self.circuits]


class Positioning(Drawing, ByMetric, total=False):
    """What is searched on search examples and judged on both splits."""


@bounded(n_random=N_RANDOM, prune_first=EDGES, keep=Real(0, 1, open_low=True, open_high=True, words=(AUTO,)))
@takes(Positioning)
def positions(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    roles: Sequence[str] | None = None,
    start: Start = "circuit",
    keep: float | str = AUTO,
    ranking: str = "eap_ig",
    prune_first: int | None = 2000,
    n_random: int = 20,
    others: Mapping[str, tuple[Model, Task]] | None = None,
    search: Cost | None = None,
    journal: str | Path | None = None,
    **options: Unpack[Positioning],
) -> Positions:
    """Search the spans at which edges are needed, and compare what is found with circuits that have no positions.

    Args:
        circuit: the run's own.
        roles: positions that are spans of their own, with the tokens between them; None: all roles of the task, and `end`.
        start: `circuit` tries the units of the run's circuit, `graph` those of the whole graph.
        keep: the share of the gap between full model and empty circuit that is kept on the search examples; `auto`: as near to
            the full model as the run's circuit (and, of the `graph`, as what is tried), but for 2 % of the gap.
        ranking: `eap_ig` or `eap`: the attribution that orders the tests, and proposes units.
        prune_first: of the graph, so many units are tried, those with the largest scores; None: all.
        n_random: random circuits of each kind.
        others: other checkpoints of the model, each with its task, by name.
        search: what the search of the circuit has cost, to be named beside.
        journal: a file for what is computed; with it a killed call goes on where it was.

    Raises:
        GraphMismatch: the circuit belongs to another architecture, or graph and spans are too large.
        BadSetting: a split is empty, the rule cannot be kept, or model, metric, ablation or budget do not allow it.
        UnknownName: a name is not known.
        BadRun: the journal belongs to another computation.
    """
    started, given = time.perf_counter(), dict[str, Any](options)
    check_choice("start", start, get_args(Start))
    check_choice("ranking", ranking, RANKINGS)
    check_graph(model, circuit)
    if not task.train or not task.heldout:
        raise BadSetting("positions are searched on search examples and judged on held-out ones: give the task both")
    setup, graph = judging(model, task, circuit.provenance, {**given, "split": "heldout"}), model.graph
    spans = Spans.of((*task.train, *task.heldout), roles, model.backend.causal)
    check_size(graph, spans)
    settings = {"roles": spans.roles, "start": start, "keep": keep, "ranking": ranking, "prune_first": prune_first}
    settings |= {"n_random": n_random, "seed": given["seed"], "ablation": setup.ablation.to_dict(), "metric": setup.metric.name}
    identity = identity_of(model, {"train examples": task.train, "held-out examples": task.heldout}, settings, circuit)
    scores, cost = unit_scores(
        model, task, spans, setup.ablation, setup.metric, ranking=ranking, memory=setup.memory, progress=setup.progress
    )
    forwards: dict[str, float | None] = {"attribution": plain_forwards(cost, graph) * len(task.train)}
    every = np.repeat(graph.edge_mask[None], len(spans), 0)
    possible, own = live_units(graph, spans, every), PositionedCircuit.from_circuit(circuit, spans).prune().mask
    order = ascending(scores)
    order = order[possible.flat[order]]
    proposed = largest(scores, order, len(order) if prune_first is None else prune_first)
    tried = own if start == "circuit" else live_units(graph, spans, proposed)
    with closing(Memo(journal, identity)) as memo:
        runs = PositionedRuns(setup.patching(), spans, setup.metric, memo)
        ready = runs.hold(task.train)
        full, empty, of_own, of_tried = (runs.mean(ready, mask) for mask in (possible, np.zeros_like(every), own, tried))
        rule, n_before = _rule(keep, full, empty, of_own, of_tried, start), runs.n_tests
        with progress_bar(int(tried.sum()), f"positions on {model.name}", "unit", setup.progress) as bar:
            mask = search_units(tried, order, lambda mask: runs.mean(ready, mask), graph, spans, rule, bar)
        n_tests = runs.n_tests - n_before
        forwards["search"] = runs.spent(len(task.train))
        n = int(mask.sum())
        masks = {
            POSITIONED: mask,
            OWN: own,
            EVERYWHERE: live_units(graph, spans, np.repeat(np.logical_or.reduce(mask)[None], len(spans), 0)),
            BY_UNIT: live_units(graph, spans, largest(scores, order, n)),
            PLAIN_UNITS: plain_of_size(graph, spans, scores, n, units=True),
            PLAIN_EDGES: plain_of_size(graph, spans, scores, int(mask.any(0).sum()), units=False),
        }
        beside = {"full": possible, "empty": np.zeros_like(every), "rest": live_units(graph, spans, possible & ~mask)}
        drawn = dict(random_positioned(mask, graph, spans, n_random, np.random.default_rng(given["seed"])))
        judged = _judged(runs, task, masks, {**beside, **drawn}, setup.progress)
        forwards["judgement"] = runs.spent(len(task.heldout))
        elsewhere = [
            _carried(name, *there, PositionedCircuit(graph, spans, mask), own, setup, given, memo)
            for name, there in (others or {}).items()
        ]
    forwards["own search"] = None if search is None else plain_forwards(search, graph) * len(task.train)
    figures = _OnSplit(task.heldout, judged["heldout"], given)
    seen = _OnSplit(task.train, judged["train"], given)
    rest, traded = figures.faithfulness("rest"), figures.nearer(BY_UNIT, PLAIN_UNITS)
    return Positions(
        graph,
        spans,
        {name: tuple(at) for name, at in PositionedCircuit(graph, spans, mask).edge_spans().items()},
        tuple(
            JudgedSize(
                name,
                int(each.sum()),
                int(each.any(0).sum()),
                *figures.faithfulness(name),
                *seen.faithfulness(name),
                *((None, None, None) if name == POSITIONED else figures.nearer(POSITIONED, name)),
            )
            for name, each in masks.items()
        ),
        *rest,
        {
            kind: tuple(figures.faithfulness(name)[0] for name in drawn if name.startswith(kind))
            for kind in (OTHER_HEADS, OTHER_SPANS)
        },
        *traded,
        tuple(elsewhere),
        start,
        int(tried.sum()),
        int(possible.sum()),
        ranking,
        rule.keep,
        n_tests,
        len(task.heldout),
        len(task.train),
        setup.metric.name,
        setup.ablation.label,
        given["confidence"],
        figures.method,
        forwards,
        time.perf_counter() - started,
    )


def _rule(keep: float | str, full: float, empty: float, own: float, tried: float, start: Start) -> KeepRule:
    """When a cut may stay.

    Args:
        full, empty, own, tried: mean metric of the full model, the empty circuit, the run's circuit and what is tried.

    Raises:
        BadSetting: what is tried does not keep the share.
    """
    rule = KeepRule(1.0, full, empty)  # refuses ends that are the same
    off = max(abs(1 - rule.share(value)) for value in ((own,) if start == "circuit" else (own, tried)))
    if keep == AUTO and off + SLACK >= 1:  # no nearer than the empty circuit
        raise BadSetting(
            f"keep=auto: the run's circuit has {percent(rule.share(own))} of the gap between full model and empty circuit on "
            "the search examples, and no better circuit can be asked for: give a number, or take a better run"
        )
    rule = replace(rule, keep=1 - off - SLACK if keep == AUTO else float(keep))
    if not rule.passes(full, tried):
        what = "the run's circuit has" if start == "circuit" else "the units that attribution proposed have"
        remedy = "lower keep=, or take start=graph" if start == "circuit" else "raise prune_first=, or lower keep="
        raise BadSetting(
            f"keep={rule.keep:.3g}: {what} {percent(rule.share(tried))} of the gap in the metric between full model and empty "
            f"circuit before anything is cut: {remedy}"
        )
    return rule


def _judged(
    runs: PositionedRuns, task: Task, masks: Mapping[str, Mask], beside: Mapping[str, Mask], progress: bool
) -> dict[str, dict[str, Float[np.ndarray, "B"]]]:
    """Metric values by split and circuit; on the search examples of those that are no controls."""
    wanted = {"heldout": {**masks, **beside}, "train": {**masks, "full": beside["full"], "empty": beside["empty"]}}
    total = sum(len(some) * runs.patching.n_chunks(task.split(split)) for split, some in wanted.items())
    with progress_bar(total, "positions: judgement", "circuit", progress) as bar:
        return {split: runs.values(split, task.split(split), some, bar.update) for split, some in wanted.items()}


class _OnSplit:
    """Faithfulness with intervals, from values example by example."""

    def __init__(
        self, examples: Sequence[Example], values: Mapping[str, Float[np.ndarray, "B"]], given: Mapping[str, Any]
    ) -> None:
        self.values, self.over = values, partition_of(examples)
        self.how = {"groups": self.over, "confidence": given["confidence"], "seed": given["seed"]}
        self.method = ""

    def faithfulness(self, name: str) -> tuple[float | None, float | None, float | None]:
        return self._figure(normalised, "full", name, "empty")

    def nearer(self, name: str, other: str) -> tuple[float | None, float | None, float | None]:
        """How much nearer the full model the first is than the second."""
        return self._figure(_nearer, "full", name, other, "empty")

    def _figure(self, figure: Any, *names: str) -> tuple[float | None, float | None, float | None]:
        samples = [self.values[name] for name in names]
        if why_undefined(float(self.values["full"].mean()), float(self.values["empty"].mean())):
            return None, None, None
        ends = interval(samples, figure, **self.how)
        self.method = self.method or ends.method
        return plain(float(figure(np.stack([sample.mean() for sample in samples])))), *ends.ends


def _nearer(means: Float[np.ndarray, "4 *W"]) -> Float[np.ndarray, "*W"]:
    full, first, second, empty = means
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((np.abs(full - second) - np.abs(full - first)) / np.abs(full - empty))


def _carried(
    name: str, model: Model, task: Task, circuit: PositionedCircuit, own: Mask, setup: Any, given: Mapping[str, Any], memo: Memo
) -> OnCheckpoint:
    """Both circuits on another checkpoint; the ablation learns from its own search examples."""
    check_graph(model, circuit.flat())
    memo.bind(name, identity_of(model, {"train examples": task.train, "held-out examples": task.heldout}, {}))
    patching = Patching(model, setup.ablation, task.train, memory=setup.memory)
    runs = PositionedRuns(patching, circuit.spans, setup.metric, memo)
    full = np.repeat(model.graph.edge_mask[None], len(circuit.spans), 0)
    masks = {"full": full, "empty": np.zeros_like(full), POSITIONED: circuit.mask, OWN: own}
    figures = _OnSplit(task.heldout, runs.values(name, task.heldout, masks, lambda _: None), given)
    pair = (*figures.faithfulness(POSITIONED), *figures.faithfulness(OWN), *figures.nearer(POSITIONED, OWN))
    return OnCheckpoint(name, len(task.heldout), *pair)
