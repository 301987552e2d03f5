"""The smallest circuit that keeps a share of what the full model does: the size is then a result.

1. Set a quarter of the training examples apart: neither scored on nor held out. Score all edges on the rest.
2. Between no edge and all of them, halve for the smallest number n of best edges whose circuit keeps the share on the examples
   set apart: log2 of the number of edges runs of a circuit. With m the metric, the share is (m - empty) / (full - empty).
3. Repair what hangs in the air: drop the edges out of nodes that no path from an embedding reaches; if the share is lost,
   connect each such node by its best path instead, whose worst edge is best. If both lose it, the circuit stays as it was.
4. Draw the examples set apart again, 2,000 times: the interval holds the sizes that would have been chosen, of those that were
   run. It says nothing of scores on other examples.

The share need not rise with every edge: n edges keep it and n - 1 do not, and there may be a smaller number that does.

Source: Cho, CVPR 2026 (a binary search of the cut-off for a wanted retention, then repair of connectivity).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import Selection, connected
from circuitdisc.engine.part_removal import PartRemoval
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.stats import FEWEST, partition_of, resampled_means
from circuitdisc.tasks.base import Example, Task
from circuitdisc.wording import percent

ONE_IN = 4
SIZING = ("edges", "fraction", "grow", "by", "target")
CONFIDENCE = 0.95


def discover_to_target(
    function: Callable[..., Discovery],
    known: dict[str, Any],
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    **settings: Any,
) -> Discovery:
    """Score all edges by an algorithm, and choose as few of them as keep the target.

    Args:
        function: the algorithm.
        known: its settings with their defaults.

    Raises:
        BadSetting: a setting cannot stand beside `target`, the examples are too few, the algorithm ranks no edges, or there is
            nothing to keep a share of.
    """
    asked = {name: {**known, **settings}[name] for name in SIZING if name in known}
    if settings.get("threshold") is not None:
        raise BadSetting("threshold= and target= both say how large the circuit is: give one of them")
    if settings.get("sign_consistent") is not None:
        raise BadSetting("target= ranks all edges, and sign_consistent= sets some aside: give edges= or fraction= beside it")
    selection = Selection(**asked)
    target = asked["target"]
    rest, apart = set_apart(task)
    own = {name: value for name, value in settings.items() if name != "target"}
    discovery = function(model, rest, ablation, context, **own)
    if discovery.edge_scores is None:
        raise BadSetting(f"target={target:g} chooses among ranked edges, and these are not: give a file with scores")
    patching = Patching(model, ablation, rest.train, memory=context.memory)
    run = PartRemoval(patching, apart, get_metric(context.metric), "edge")
    sized = smallest(model.graph, discovery.edge_scores, replace(selection, target=None), target, run.values)
    low, high = sized.interval(apart)
    for size, value in sized.values.items():  # in the order in which they were run
        context.journal.write(size=size, metric=float(value.mean()), share=sized.share(value))
    context.journal.write(
        target=target, size=sized.n, low=low, high=high, edges=sized.circuit.n_edges, share=sized.reached, repair=sized.repair
    )
    discovery.cost.add(patching.cost)
    n = len(apart)
    note = (
        f"target={target:g}: the {sized.n:,} best edges of {model.graph.n_edges:,} ({percent(CONFIDENCE)} interval {low:,} to "
        f"{high:,}) keep {percent(target)} of the gap in {run.metric.name} between full model and empty circuit, and one edge "
        f"fewer do not. The size was chosen on {n} of the {len(task.train)} training examples, set apart: no edge was scored "
        f"on them, and they are not held out. {WORDS[sized.repair]} The circuit has {sized.circuit.n_edges:,} edges and keeps "
        f"{percent(sized.reached)} of the gap there."
    )
    units = discovery.units
    if units is not None:  # other samples of the examples give other edges, of the size that was chosen
        units = replace(units, selection=replace(selection, edges=sized.n, target=None), repair=sized.repair)
    trace = context.journal.decisions
    return replace(discovery, circuit=sized.circuit, trace=trace, notes=(*discovery.notes, note), units=units)


WORDS = {
    "none": "Every edge lies on a path from an embedding to the logits.",
    "dropped": "Edges that lie on no path from an embedding to the logits were dropped.",
    "connected": "Nodes that no path from an embedding reached were connected by their best-scored path.",
    "failed": "Some nodes are reached by no path from an embedding: without their edges, or connected, the share was lost.",
}


def set_apart(task: Task) -> tuple[Task, tuple[Example, ...]]:
    """The task without every fourth of its training examples, and these, of every group alike; always the same ones.

    Copies of an example stay together.

    Raises:
        BadSetting: there are too few.
    """
    different = list(dict.fromkeys(task.train))
    shuffled = [different[place] for place in np.random.default_rng(0).permutation(len(different))]
    taken = set(sorted(shuffled, key=lambda example: example.group)[ONE_IN - 1 :: ONE_IN])
    if len(taken) < FEWEST:
        raise BadSetting(
            f"target= sets one in {ONE_IN} training examples apart: {len(taken)} of {len(different)} different ones, and "
            f"it needs {FEWEST}, so take at least {ONE_IN * FEWEST} (task.n=), or give edges="
        )
    rest = tuple(example for example in task.train if example not in taken)
    return replace(task, train=rest), tuple(example for example in task.train if example in taken)


@dataclass(frozen=True)
class Sized:
    """The smallest circuit that keeps a share, and what it took to find it.

    Args:
        n: how many best edges it is made of.
        circuit: of these, repaired.
        values: metric values, example by example, of every number of best edges that was run, none and all among them.
        reached: the share that the circuit keeps.
        repair: what was done: a key of `WORDS`.
    """

    n: int
    circuit: Circuit
    target: float
    values: dict[int, Float[np.ndarray, "B"]]
    reached: float
    repair: str

    def share(self, values: Float[np.ndarray, "B"]) -> float:
        """How much of the gap a circuit keeps."""
        return _share(values, self.values[0], self.values[max(self.values)])

    def interval(self, examples: tuple[Example, ...]) -> tuple[int, int]:
        """Where the sizes lie that examples drawn again would have chosen, among those that were run."""
        sizes = np.array(sorted(self.values))
        means = resampled_means(np.stack([self.values[size] for size in sizes]), partition_of(examples))
        with np.errstate(divide="ignore", invalid="ignore"):
            keeps = (means - means[0]) / (means[-1] - means[0]) >= self.target
        keeps[-1] = True  # also where a draw has no gap
        chosen = sizes[keeps.argmax(axis=0)]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(chosen, [tail, 1 - tail], method="inverted_cdf")
        return int(low), int(high)


def smallest(
    graph: ComputationGraph,
    scores: Float[np.ndarray, "R S"],
    selection: Selection,
    target: float,
    values_of: Callable[[Bool[np.ndarray, "R S"]], Float[np.ndarray, "B"]],
) -> Sized:
    """Steps 2 and 3: the smallest number of best edges that keeps the target, by halving.

    Args:
        selection: how edges are chosen by scores.
        values_of: metric values of a circuit, example by example.

    Raises:
        BadSetting: full model and empty circuit do the same.
    """

    def best(n: int) -> Circuit:
        return replace(selection, edges=n).circuit(graph, scores)

    full, empty = values_of(graph.edge_mask), values_of(np.zeros_like(graph.edge_mask))
    gap = abs(full.mean() - empty.mean())
    if not gap > 1e-6 * max(abs(full.mean()), abs(empty.mean()), 1e-12):
        raise BadSetting(
            f"target={target:g} cannot be reached by any size: on the examples set apart the metric of the full model "
            f"({full.mean():.4g}) and of the empty circuit ({empty.mean():.4g}) are the same: use another ablation, or edges="
        )
    values = {0: empty, graph.n_edges: full}
    low, high = 0, graph.n_edges
    while high - low > 1:
        middle = (low + high) // 2
        values[middle] = values_of(best(middle).mask)
        low, high = (low, middle) if _share(values[middle], empty, full) >= target else (middle, high)
    circuit, reached, repair = best(high), _share(values[high], empty, full), "none"
    loose = circuit.prune(unreached=True)
    if loose != circuit:
        repair = "failed"
        for name, repaired in (("dropped", loose), ("connected", connected(circuit, scores, selection.by))):
            share = _share(values_of(repaired.mask), empty, full)
            if share >= target:
                circuit, reached, repair = repaired, share, name
                break
    return Sized(high, circuit, target, values, reached, repair)


def _share(values: Float[np.ndarray, "B"], empty: Float[np.ndarray, "B"], full: Float[np.ndarray, "B"]) -> float:
    return float((values.mean() - empty.mean()) / (full.mean() - empty.mean()))
