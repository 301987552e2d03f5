"""What the best neurons are worth: the task with the top k neurons masked, and with all others masked, beside random neurons.

1. `mask`: the first k neurons of an order are ablated at every token, and the model runs.
2. `keep`: all other neurons of the layers looked at are ablated instead.
3. Controls: for each k random neurons, as many in each layer, drawn without replacement.

Source: Yu & Ananiadou 2024, "Interpreting Arithmetic Mechanism in Large Language Models through Comparative Neuron Analysis"
(EMNLP).

Shape letters: L layers, M neurons of a layer, K sizes, B examples, R random draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from typing_extensions import TypedDict, Unpack

from circuitdisc.checks import N_RANDOM, Whole, bounded
from circuitdisc.controls import different_sets
from circuitdisc.engine.measuring import Measurement, Measuring, examples_of, mean_intervals
from circuitdisc.engine.neuron_run import NeuronRuns, n_neurons
from circuitdisc.errors import BadSetting
from circuitdisc.heads.base import as_list, neuron_index
from circuitdisc.heads.neurons.neurons import checked_layers
from circuitdisc.models.model import Model
from circuitdisc.options import Option, takes
from circuitdisc.results import Result, Row, plain_rows
from circuitdisc.stats import Partition, share_interval
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import beside, need_choice

DOINGS = ("mask", "keep")


@dataclass(frozen=True, repr=False)
class NeuronTable(Result):
    """Metric and accuracy when neurons are masked.

    Args:
        sizes: how many neurons are masked (or kept). Length K.
        full: metric name -> the full model's values. [B]
        values: metric name -> `mask` or `keep` -> values with the top neurons. [K, B]
        random: metric name -> `mask` or `keep` -> means with random neurons. [K, R]
        layers: whose neurons `keep` ablates but for the kept ones.
        n_neurons: neurons in each layer.
    """

    KEYS = ("rows", "layers", "n_neurons", "metric", "ablation", "n", "split", "confidence")

    sizes: tuple[int, ...]
    full: dict[str, Float[np.ndarray, "B"]]
    values: dict[str, dict[str, Float[np.ndarray, "K B"]]]
    random: dict[str, dict[str, Float[np.ndarray, "K R"]]]
    layers: tuple[int, ...]
    n_neurons: int
    metric: str
    ablation: str
    split: str
    confidence: float
    over: Partition | None = None

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.full[self.metric])

    @property
    def rows(self) -> list[Row]:
        """The lines of `table`, under the name that a file has for them."""
        return self.table()

    def table(self) -> list[Row]:
        """A line for the full model, then for every size masked and kept."""
        rows: list[Row] = [{"neurons": "full model", "k": 0, **self._cells(self.full[self.metric], None, "metric")}]
        rows[0] |= self._cells(self.full["accuracy"], None, "accuracy")
        for doing in DOINGS:
            for k, size in enumerate(self.sizes):
                row: Row = {"neurons": f"{doing} top k", "k": size}
                for name, title in ((self.metric, "metric"), ("accuracy", "accuracy")):
                    row |= self._cells(self.values[name][doing][k], self.random[name][doing][k], title)
                rows.append(row)
        return plain_rows(rows)

    def _cells(self, values: Float[np.ndarray, "B"], random: Float[np.ndarray, "R"] | None, title: str) -> Row:
        low, high = self._interval(values, title)
        cells: Row = {title: float(values.mean()), f"{title} low": low, f"{title} high": high}
        drawn = [] if random is None else random[~np.isnan(random)].tolist()
        cells[f"{title}, random"] = float(np.median(drawn)) if drawn else None
        cells[f"{title}, random low"] = min(drawn) if drawn else None
        cells[f"{title}, random high"] = max(drawn) if drawn else None
        return cells

    def _interval(self, values: Float[np.ndarray, "B"], title: str) -> tuple[float, float]:
        if title == "accuracy":
            ends = share_interval(values, groups=self.over, confidence=self.confidence)
            return float(ends.low), float(ends.high)
        low, high = mean_intervals(values, self.over, self.confidence)
        return float(low), float(high)


SIZES = (10, 50, 100, 200)


class MaskedSets(TypedDict, total=False):
    """Which sets of neurons are masked."""

    sizes: Annotated[Sequence[int], Option(SIZES, "how many neurons are masked, and kept.", Whole(1, 10_000_000, many=True))]
    n_random: Annotated[int, Option(5, "random draws of neurons for each size.", N_RANDOM)]


class Masking(Measuring, MaskedSets, total=False):
    """The same, measured on a split."""


@bounded(layers=Whole(0, 100_000, many=True))
@takes(Masking)
def neuron_table(
    model: Model,
    task: Task,
    order: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    **options: Unpack[Masking],
) -> NeuronTable:
    """Mask the top k neurons, or all but the top k, and measure metric and accuracy.

    Args:
        order: neurons (`m3.n17`), most important first, as `NeuronImportance.order` gives them.
        layers: `keep` ablates all other neurons of these layers; None: of all layers.
        ablation: what a masked neuron carries: `zero` or `mean` over the clean prompts of the train split.
        split: `train` or `heldout`; use another split than the one that the order comes from.
        seed: of the random draws.

    Raises:
        GraphMismatch: the order names a neuron that the model lacks.
        BadSetting: it names one twice, fewer than the largest size, or one outside the layers; or a number is out of its
            bounds.
        UnknownName: metric, ablation or split is not known.
    """
    need_choice(model, "the neuron table")
    given: Any = options
    n_random = given["n_random"]
    setup = Measurement.of_task(model, task, options)
    n_layers, width = model.graph.n_layers, n_neurons(model)
    chosen = checked_layers(layers, n_layers)
    places = _places(order, n_layers, width, chosen)
    sizes = tuple(sorted(set(as_list("sizes", given["sizes"]))))
    if not sizes or sizes[-1] > len(places):
        raise BadSetting(f"sizes={list(sizes)}: give at least one size, none above the {len(places)} neurons of the order")
    inside = np.zeros((n_layers, width), dtype=bool)
    inside[list(chosen)] = True
    masks = _masks(places, sizes, inside, n_random, np.random.default_rng(setup.seed))
    patching = setup.patching()
    runs = NeuronRuns(patching, examples_of(task, "train"))
    metrics = beside(model, setup.metric, "accuracy")
    with setup.bar(len(masks) * patching.n_chunks(setup.examples), "neuron table", "run") as bar:
        by_set = runs.evaluate(setup.examples, masks, metrics, bar.update)
    values = {
        name: {m: readings.double().cpu().numpy() for m, readings in by_metric.items()} for name, by_metric in by_set.items()
    }

    def tops(name: str, doing: str) -> np.ndarray:
        return np.stack([values[f"{doing} {size}"][name] for size in sizes])

    def randoms(name: str, doing: str) -> np.ndarray:
        drawn = [[f"{doing} {size} random {r}" for r in range(n_random)] for size in sizes]
        rows = [[values[label][name].mean() if label in values else np.nan for label in of_size] for of_size in drawn]
        return np.array(rows).reshape(len(sizes), n_random)

    names = [metric.name for metric in metrics]
    return NeuronTable(
        sizes=sizes,
        full={name: values["full"][name] for name in names},
        values={name: {doing: tops(name, doing) for doing in DOINGS} for name in names},
        random={name: {doing: randoms(name, doing) for doing in DOINGS} for name in names},
        layers=chosen,
        n_neurons=width,
        **setup.about(),
    )


def _places(order: Sequence[str], n_layers: int, width: int, layers: Sequence[int]) -> list[tuple[int, int]]:
    """Layer and index of the neurons of an order."""
    places = [neuron_index(name, n_layers, width) for name in order]
    if len(set(places)) < len(places):
        raise BadSetting("the order names a neuron twice: each can be masked once")
    outside = [name for name, (layer, _) in zip(order, places, strict=True) if layer not in layers]
    if outside:
        raise BadSetting(f"the order names {outside[0]}, which lies outside layers={list(layers)}")
    return places


def _masks(
    places: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    inside: Bool[np.ndarray, "L M"],
    n_random: int,
    generator: np.random.Generator,
) -> dict[str, Bool[np.ndarray, "L M"]]:
    """Name -> True at the neurons to ablate."""
    masks = {"full": np.zeros_like(inside)}
    for size in sizes:
        top = np.zeros_like(inside)
        top[tuple(np.array(places[:size]).T)] = True
        masks[f"mask {size}"], masks[f"keep {size}"] = top, inside & ~top
        for r, drawn in enumerate(_as_many_in_each_layer(top, n_random, generator)):
            masks[f"mask {size} random {r}"], masks[f"keep {size} random {r}"] = drawn, inside & ~drawn
    return masks


def _as_many_in_each_layer(
    top: Bool[np.ndarray, "L M"], n: int, generator: np.random.Generator
) -> list[Bool[np.ndarray, "L M"]]:
    """Other neurons, as many in each layer, no draw twice; fewer than n draws where there are no more."""
    own = tuple(tuple(np.flatnonzero(layer).tolist()) for layer in top)
    sets = []
    for choice in different_sets([top.shape[1]] * len(top), top.sum(1).tolist(), n, generator, {own}):
        drawn = np.zeros_like(top)
        for layer, neurons in enumerate(choice):
            drawn[layer, list(neurons)] = True
        sets.append(drawn)
    return sets
