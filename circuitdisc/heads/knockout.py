"""Knock-out curves: how fast the metric falls when heads are ablated in the order of their effect, beside random orders.

1. `head_effects`: on the train split ablate every head alone; its effect is the change of the metric.
2. `knockout_curve`: on held-out examples ablate the first k heads of that order, for growing k; the same for random orders,
   drawn without replacement. The order is worth as much as its curve lies below the random ones.

Source: Zhang et al. 2024, "Interpreting and Improving Large Language Models in Arithmetic Calculation" (heads knocked out in
the order of their effect against random ones).

Shape letters: L layers, H heads, B examples, K points of the curve, R random orders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from typing_extensions import Unpack

from circuitdisc.checks import N_RANDOM, Whole, bounded, check_whole
from circuitdisc.engine.head_values import head_values
from circuitdisc.engine.measuring import Measurement, Measuring
from circuitdisc.errors import BadSetting, GraphMismatch
from circuitdisc.graph import ComputationGraph
from circuitdisc.heads.base import as_list, head_mask
from circuitdisc.heads.effects import By, HeadEffects, effect_order, head_effects
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.results import Row, ValuesOverExamples, plain_rows
from circuitdisc.stats import Partition
from circuitdisc.tasks.base import Task

POINTS = 17
"""Points of a curve where none are asked for; fewer in a model with fewer heads."""

BAND = (5.0, 50.0, 95.0)
"""Percentiles of the random orders that are shown."""


@dataclass(frozen=True, repr=False)
class KnockoutCurve(ValuesOverExamples):
    """The metric when more and more heads are ablated, in one order and in random ones.

    Args:
        order: all heads (or those given), first ablated first.
        sizes: how many of them are ablated at each point. Length K.
        values: metric of the order, example by example. [K, B]
        low, high: intervals of its mean. [K]
        random: mean metric of every random order. [R, K]
        effects: single-head effects that the order comes from; None if it was given. [L, H]
    """

    KEYS = (
        "order", "sizes", "mean", "low", "high", "random", "area", "random_areas", "effects", "metric", "ablation", "n",
        "split", "confidence",
    )  # fmt: skip

    order: tuple[str, ...]
    sizes: tuple[int, ...]
    values: Float[np.ndarray, "K B"]
    low: Float[np.ndarray, "K"]
    high: Float[np.ndarray, "K"]
    random: Float[np.ndarray, "R K"]
    effects: Float[np.ndarray, "L H"] | None
    n_heads: int
    metric: str
    ablation: str
    split: str
    confidence: float
    over: Partition | None = None

    @property
    def band(self) -> Float[np.ndarray, "3 K"]:
        """5th percentile, median and 95th percentile of the random orders' means; NaN without any."""
        if not len(self.random):
            return np.full((3, len(self.sizes)), np.nan)
        return np.percentile(self.random, BAND, axis=0)

    @property
    def area(self) -> float:
        """Area between the random orders' median and this order's mean, over the share of heads ablated, in units of the
        metric.

        Above 0: the order does more harm than random ones.
        """
        return self._area(self.mean)

    @property
    def random_areas(self) -> Float[np.ndarray, "R"]:
        """The same area for each random order in place of this one: how large it gets by chance."""
        return np.array([self._area(curve) for curve in self.random])

    def _area(self, means: Float[np.ndarray, "K"]) -> float:
        share = np.array(self.sizes) / self.n_heads
        return float(np.trapezoid(self.band[1] - means, share))

    def table(self) -> list[Row]:
        """A line a point."""
        low, middle, high = self.band
        return plain_rows(
            {
                "ablated": self.sizes[k],
                "last": self.order[self.sizes[k] - 1] if self.sizes[k] else "",
                self.metric: self.mean[k],
                "low": self.low[k],
                "high": self.high[k],
                "random median": middle[k],
                "random 5 %": low[k],
                "random 95 %": high[k],
            }
            for k in range(len(self.sizes))
        )


@bounded(steps=Whole(0, 100_000, many=True), n_random=N_RANDOM)
@takes(Measuring)
def knockout_curve(
    model: Model,
    task: Task,
    *,
    effects: HeadEffects | Float[np.ndarray, "L H"] | None = None,
    order: Sequence[str] | None = None,
    by: By = "signed",
    steps: int | Sequence[int] | None = None,
    n_random: int = 20,
    **options: Unpack[Measuring],
) -> KnockoutCurve:
    """Ablate more and more heads in an order, and in random orders, and measure the metric.

    Args:
        effects: what the order comes from, lowest first; None measures `head_effects` on the train split.
        order: names of heads instead, first ablated first; it need not hold all.
        by: `signed`: the heads that the metric misses most first; `absolute`: the largest effects of either sign first.
        steps: how many heads are ablated at each point, as in [0, 1, 2, 5]; or the number of points, evenly spread from no head
            to all; None: 17 points.
        n_random: random orders of all heads, drawn without replacement.
        ablation: what an ablated head carries; means are those of the train split.
        seed: of the random orders and the bootstrap.

    Raises:
        UnknownName: metric, ablation, split or `by` is not known.
        GraphMismatch: the order names a head that the model lacks, or `effects` are of another model.
        BadSetting: both `effects` and `order` are given, or a number is out of its bounds.
    """
    setup = Measurement.of_task(model, task, options)
    graph, names = model.graph, list(model.graph.heads)
    if order is not None:
        if effects is not None:
            raise BadSetting("effects= and order= both say in which order heads are ablated: give one of them")
        chosen, known = _checked_order(graph, order), None
    else:
        sizes_of_points(steps, len(names))  # before an expensive measurement
        known = _effect_means(graph, _train_effects(setup) if effects is None else effects)
        chosen = [names[h] for h in effect_order(known, by)]
    sizes = sizes_of_points(steps, len(chosen))
    generator = np.random.default_rng(setup.seed)
    orders = [chosen, *([names[h] for h in generator.permutation(len(names))] for _ in range(n_random))]
    kept = [_kept(graph, each, size) for each in orders for size in sizes]
    values = _values(setup, kept).reshape(len(orders), len(sizes), -1)
    return KnockoutCurve(
        tuple(chosen),
        sizes,
        values[0],
        *setup.intervals(values[0]),
        random=values[1:].mean(-1),
        effects=known,
        n_heads=len(names),
        **setup.about(),
    )


def _train_effects(setup: Measurement) -> HeadEffects:
    """Every head ablated alone on the train split, under the same ablation and metric."""
    assert setup.task is not None
    same: Any = {name: getattr(setup, name) for name in ("ablation", "metric", "seed", "memory", "progress")}
    return head_effects(setup.model, setup.task, **same)


def _values(setup: Measurement, kept: Sequence[Bool[np.ndarray, "L H"]]) -> Float[np.ndarray, "X B"]:
    """Metric of each head circuit; equal ones are run once."""
    which = {mask.tobytes(): index for index, mask in enumerate(kept)}
    distinct = sorted(set(which.values()))
    patching, metric = setup.patching(), setup.metric
    with setup.bar(len(distinct) * patching.n_chunks(setup.examples), "knock-out curve", "run") as bar:
        values = head_values(patching, setup.examples, [kept[index] for index in distinct], [metric], bar.update)[metric.name]
    return values[[distinct.index(which[mask.tobytes()]) for mask in kept]]


def _kept(graph: ComputationGraph, order: Sequence[str], size: int) -> Bool[np.ndarray, "L H"]:
    return ~head_mask(graph, order[:size])


def sizes_of_points(steps: int | Sequence[int] | None, n: int) -> tuple[int, ...]:
    """How many heads are ablated at each point of a curve over n heads.

    Raises:
        BadSetting: not a number of points or a list of sizes from 0 to n.
    """
    if steps is None or isinstance(steps, int | np.integer):
        points = min(POINTS, n + 1) if steps is None else check_whole("steps", steps, 2, 100_000)
        return tuple(dict.fromkeys(np.linspace(0, n, points).round().astype(int).tolist()))
    if isinstance(steps, str) or not isinstance(steps, Sequence | np.ndarray) or not len(steps):
        raise BadSetting(f"steps={steps!r}: give a number of points, or how many heads to ablate at each, as in [0, 1, 2, 5]")
    sizes = sorted(set(steps))
    if sizes[-1] > n:
        raise BadSetting(f"steps asks for {sizes[-1]} ablated heads; the order holds {n}")
    return tuple(sizes)


def _checked_order(graph: ComputationGraph, order: Sequence[str]) -> list[str]:
    names = [str(name) for name in as_list("order", order)]
    if not names:
        raise BadSetting("order= is empty: name at least one head")
    head_mask(graph, names)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise BadSetting(f"order= names {twice[0]} twice: a head can be ablated once")
    return names


def _effect_means(graph: ComputationGraph, effects: HeadEffects | Float[np.ndarray, "L H"]) -> Float[np.ndarray, "L H"]:
    means = effects.mean if isinstance(effects, HeadEffects) else np.asarray(effects, dtype=np.float64)
    if means.shape != (graph.n_layers, graph.n_heads):
        raise GraphMismatch(f"effects of shape {means.shape} do not fit a model of {graph.describe()}")
    return means
