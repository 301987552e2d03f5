"""Faithfulness over circuit size, and the areas under it: CPR and CMD.

With f(x) the faithfulness of the circuit of a share x of the graph's edges (normalised, see `faithfulness.py`):

    CPR        area under f(x): circuit performance ratio; higher keeps more of the metric, without bound
    CMD        area under |1 - f(x)|: circuit-model distance; 0 is best
    overshoot  max f - 1: a circuit that beats the model wins CPR without being faithful; then CMD is the one to trust

The areas are sums of trapezoids between the shares asked for (by default MIB's ten, from .001 to 1), over the share itself,
not its logarithm. What lies left of the smallest share is not counted, so that f = 1 everywhere has a CPR of .999, and the step
from .5 to 1 is half of all. The axis is the share asked for, as in MIB; a circuit may have fewer edges where pruning left out
those that lead nowhere, and its true size stands beside it.

Source: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark", section 3 (https://arxiv.org/abs/2504.13151).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import numpy as np
from jaxtyping import Float
from scipy import integrate
from typing_extensions import Unpack

from circuitdisc.checks import (
    N_RANDOM,
    Real,
    bounded,
    check_choice,
)
from circuitdisc.circuit import Circuit, live_receivers
from circuitdisc.controls import random_places, relabelled
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.selection import By, Grow, Selection
from circuitdisc.engine.part_removal import check_finite
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import work_bar
from circuitdisc.results import Result, Row
from circuitdisc.scoring.base import Score, check_one_ablation
from circuitdisc.scoring.faithfulness import normalised, why_undefined
from circuitdisc.scoring.judging import JudgingBy, check_graph, check_split, judging
from circuitdisc.scoring.kind import ScoreCall, ScoreKind
from circuitdisc.scoring.work import DENSE, CircuitRuns, Works, counted, defaults_of
from circuitdisc.stats import Partition, interval, plain
from circuitdisc.tasks.base import Task

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Point:
    """One circuit of the curve.

    Args:
        share: of the graph's edges that was asked for.
        edges: how many the circuit has.
        mean: m(C).
        faithfulness: f; None where it is undefined.
        low, high: its interval over examples.
        controls: f of the random circuits.
    """

    share: float
    edges: int
    mean: float
    faithfulness: float | None
    low: float | None
    high: float | None
    controls: tuple[float | None, ...]


@dataclass(frozen=True, repr=False)
class Curve(Result):
    """A curve and the areas under it.

    Args:
        points: smallest first.
        cpr, cmd, overshoot: with their intervals, and those of random circuits as controls.
        full, empty: m(M) and m(empty).
        graph_edges: edges of the graph.
        n: examples.
        cost: node evaluations, runs and seconds.
    """

    points: tuple[Point, ...]
    cpr: Score
    cmd: Score
    overshoot: Score
    full: float
    empty: float
    graph_edges: int
    n: int
    split: str
    ablation: str
    metric: str
    confidence: float
    cost: Mapping[str, float]

    def table(self) -> list[Row]:
        """A line for each size, with the mean of the random circuits beside it."""
        return [
            {
                "share": point.share,
                "edges": point.edges,
                "faithfulness": point.faithfulness,
                "low": point.low,
                "high": point.high,
                "random": _mean(point.controls),
            }
            for point in self.points
        ]


@bounded(shares=Real(0, 1, open_low=True, many=True), n_random=N_RANDOM)
@takes(JudgingBy)
def curve(
    model: Model,
    task: Task,
    source: Discovery | Callable[[int], Circuit],
    *,
    shares: Sequence[float] = MIB_SHARES,
    grow: Grow = "top_k",
    by: By = "absolute",
    n_random: int = 3,
    mix: bool = False,
    **options: Unpack[JudgingBy],
) -> Curve:
    """Faithfulness of circuits of growing size.

    Args:
        source: what an algorithm found, with a score for every edge; or a function from a number of edges to a circuit.
        shares: of the graph's edges, growing; the number of edges is rounded up.
        grow: `top_k` or `greedy`: how a circuit is chosen from scores, those of the random controls included.
        by: `absolute` or `signed`, as for `grow`.
        n_random: control curves. Each is chosen in the same way from random scores of the edges; for head circuits, the heads
            of each layer change places at random. The circuit of all edges is the whole model on every curve.
        mix: also draw a curve through circuits that were found under different ablations.
        ablation: what cut edges carry; None takes what the source's circuit was found with.
        metric: None takes what the source's circuit was found with.
        seed: of the controls and the bootstrap.

    Raises:
        BadSetting: the source scored no edges, the shares do not grow within 0..1, the split is empty, the function's circuits
            are of different kinds, or were found under different ablations without `mix`, or the metric is not finite.
        GraphMismatch: the circuits belong to another architecture.
        UnknownName: a name is not known.

    Source: Mueller et al. 2025.
    """
    started = time.perf_counter()
    given: Any = options
    check_split(task, given["split"])
    shares = _check_shares(shares)
    check_choice("grow", grow, get_args(Grow))
    check_choice("by", by, get_args(By))
    circuits = _circuits(model.graph, source, shares, grow, by)
    for circuit in circuits:
        check_graph(model, circuit)
    check_one_ablation((circuit.provenance for circuit in circuits), mix)
    whole_heads = _whole_heads(circuits)
    provenance = source.circuit.provenance if isinstance(source, Discovery) else circuits[-1].provenance
    setup = judging(model, task, provenance, options)
    measure, label, generator = setup.metric, setup.ablation.label, np.random.default_rng(setup.seed)
    empty = Circuit.from_heads(model.graph, []) if whole_heads else Circuit.empty(model.graph)
    curves = [circuits] + [_control(model.graph, circuits, shares, grow, by, whole_heads, generator) for _ in range(n_random)]
    masks = {"full": model.graph.edge_mask, "empty": empty.mask}
    masks |= {f"{row}.{at}": each.mask for row, line in enumerate(curves) for at, each in enumerate(line)}
    patching, examples = setup.patching(), setup.examples
    # a circuit costs by the receivers that it must run; the first also waits until the examples are ready
    weights = {name: 1.0 + live_receivers(model.graph, mask).sum() for name, mask in masks.items()}
    weights["full"] = model.graph.n_receivers / DENSE
    with work_bar(sum(weights.values()) * len(examples), "curve", setup.progress) as bar:
        found = patching.evaluate(examples, masks, [measure], keep=counted(bar, weights))
    values = {name: check_finite(one[measure.name].double().cpu().numpy(), measure) for name, one in found.items()}
    full, nothing = values.pop("full"), values.pop("empty")
    values_CXB = np.stack(list(values.values())).reshape(len(curves), len(shares), len(full))
    patching.cost.seconds = time.perf_counter() - started
    labels = (setup.split, label, measure.name, len(full))
    drawn = setup.over, setup.confidence, setup.seed
    points, areas = _figures(circuits, shares, values_CXB, full, nothing, labels, *drawn)
    ends = float(full.mean()), float(nothing.mean())
    cost = dict(vars(patching.cost))
    about = setup.split, label, measure.name, setup.confidence
    return Curve(points, *areas, *ends, model.graph.n_edges, len(full), *about, cost)


def area(shares: Sequence[float], heights: Float[np.ndarray, "X *W"]) -> Float[np.ndarray, "*W"]:
    """Area under a curve by trapezoids over the share."""
    return np.asarray(integrate.trapezoid(heights, np.asarray(shares), axis=0))


def _check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    if isinstance(shares, str) or not isinstance(shares, Sequence) or len(shares) < 2:
        raise BadSetting(f"shares={shares!r} cannot be used: give at least two shares of the edges, such as (.01, .1, 1)")
    checked = tuple(map(float, shares))
    if checked[0] <= 0 or any(a >= b for a, b in pairwise(checked)):
        raise BadSetting(f"shares={tuple(shares)} must grow from above 0 to at most 1")
    return checked


def n_edges(graph: ComputationGraph, share: float) -> int:
    """A share of the graph's edges, rounded up."""
    return math.ceil(share * graph.n_edges - 1e-9)


def _circuits(
    graph: ComputationGraph, source: Discovery | Callable[[int], Circuit], shares: Sequence[float], grow: Grow, by: By
) -> list[Circuit]:
    sizes = [n_edges(graph, share) for share in shares]
    if isinstance(source, Discovery):
        sizes = [n_edges(source.circuit.graph, share) for share in shares]
        return [source.top_k(size, by) if grow == "top_k" else source.greedy(size, by) for size in sizes]
    if not callable(source):
        raise BadSetting(
            f"a source of type {type(source).__name__} has no circuits of all sizes: "
            "give a Discovery, or a function of a number of edges"
        )
    circuits = [source(size) for size in sizes]
    for size, circuit in zip(sizes, circuits, strict=True):
        if not isinstance(circuit, Circuit):
            raise BadSetting(f"the function gave a {type(circuit).__name__} for {size} edges: it must give a Circuit")
    return circuits


def _whole_heads(circuits: Sequence[Circuit]) -> bool:
    kinds = {circuit.granularity for circuit in circuits}
    if len(kinds) > 1:
        raise BadSetting("the curve mixes head circuits and edge circuits, which are measured against different empty circuits")
    return kinds == {"head"}


def _control(
    graph: ComputationGraph,
    circuits: Sequence[Circuit],
    shares: Sequence[float],
    grow: Grow,
    by: By,
    whole_heads: bool,
    generator: np.random.Generator,
) -> list[Circuit]:
    """A random curve: the same choice from random scores; random heads for head circuits."""
    if whole_heads:
        places = random_places(graph, generator)
        return [relabelled(circuit, places) for circuit in circuits]
    scores = np.where(graph.edge_mask, generator.standard_normal(graph.edge_mask.shape), np.nan)
    return [Selection(n_edges(graph, share), grow=grow, by=by).circuit(graph, scores) for share in shares]


def _figures(
    circuits: Sequence[Circuit],
    shares: Sequence[float],
    values: Float[np.ndarray, "C X B"],
    full: Float[np.ndarray, "B"],
    empty: Float[np.ndarray, "B"],
    labels: tuple[str, str, str, int],
    over: Partition,
    confidence: float,
    seed: int,
) -> tuple[tuple[Point, ...], tuple[Score, Score, Score]]:
    """Points and areas, with intervals, from the values of the curve (row 0) and its controls."""
    heads = circuits[0].granularity == "head"
    matched = (
        "the same circuits between other heads of each layer" if heads else "curves chosen in the same way from random scores"
    )
    why = why_undefined(full.mean(), empty.mean())
    means_CX = values.mean(-1)
    f_CX = normalised(np.stack([np.full_like(means_CX, full.mean()), means_CX, np.full_like(means_CX, empty.mean())]))
    ends_X = interval((full, values[0], empty), normalised, groups=over, confidence=confidence, seed=seed)
    points = tuple(
        Point(
            share,
            circuits[at].n_edges,
            float(values[0, at].mean()),
            None if why else plain(f_CX[0, at]),
            None if why else plain(ends_X.low[at]),
            None if why else plain(ends_X.high[at]),
            () if why else tuple(plain(f) for f in f_CX[1:, at]),
        )
        for at, share in enumerate(shares)
    )

    def score(name: str, of: Callable[[Float[np.ndarray, "X *W"]], Float[np.ndarray, "*W"]]) -> Score:
        if why:
            return Score(name, *labels, None, confidence=confidence, note=why)

        def figure(means: Float[np.ndarray, "V *W"]) -> Float[np.ndarray, "*W"]:
            full, empty = (np.broadcast_to(mean, means[2:].shape) for mean in means[:2])
            return of(normalised(np.stack([full, means[2:], empty])))

        ends = interval((full, empty, *values[0]), figure, groups=over, confidence=confidence, seed=seed)
        if name == "cmd" or (name == "overshoot" and shares[-1] == 1):  # the whole graph is at f = 1
            ends = ends.within(0.0)
        controls = tuple(plain(float(of(f_X))) for f_X in f_CX[1:])
        value = plain(float(of(f_CX[0])))
        return Score(name, *labels, value, *ends.ends, confidence, controls, method=ends.method, matched=matched)

    areas = (
        score("cpr", lambda f: area(shares, f)),
        score("cmd", lambda f: area(shares, np.abs(1 - f))),
        score("overshoot", lambda f: f.max(axis=0) - 1),
    )
    return points, areas


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _lacking(call: ScoreCall) -> str | None:
    if call.ranked is not None:
        return None
    algorithm = call.circuit.provenance.algorithm or "its algorithm"
    return f"{algorithm} gives no score for every edge, so that there are no circuits of other sizes"


def _compute(call: ScoreCall) -> Curve:
    assert call.ranked is not None, "see _lacking"
    return curve(call.model, call.task, call.ranked, **call.options)


DEFAULTS = defaults_of(curve)


def _work(call: ScoreCall) -> Works:
    given = DEFAULTS
    return [CircuitRuns(2 + len(given["shares"]) * (1 + given["n_random"]), len(call.task.heldout))]


SCORE = ScoreKind(
    "curve",
    "faithfulness of circuits of all sizes, and the areas under it",
    Curve,
    _compute,
    _lacking,
    always=True,
    work=_work,
)
