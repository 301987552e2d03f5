"""What judging costs, said before it is done; and how many random controls are no more than the search.

A *run* is a circuit on an example. Work is counted in runs: circuits x examples, and where only what a change reaches is
computed, the share of a run that this takes. Seconds are runs times those of the first circuits that were run.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from tqdm import tqdm

from circuitdisc.engine.evaluate import Keep
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task

AUTO, WANTED, LEAST = "auto", 20, 5
SMALL = 1e12
"""Floating-point operations that nobody waits for: under ten seconds on one thread of a CPU."""
FEW_SECONDS = 5.0
READY = 2.0
"""Runs that it takes to make an example ready: the model on the clean and on the corrupted prompt."""
SETS, PARTS, EDGES, DENSE = 0.55, 0.35, 0.15, 2.0
"""Shares of a run of a circuit of some hundred edges, as measured (docs/scores.md): sets of nodes taken out of a circuit and of
the model; nodes taken out of a circuit; edges cut as rows of a batch; a circuit that keeps most edges."""
TIMED = 2  # circuits; the first one that runs also warms up memory


# --- how many random controls ------------------------------------------------------------------------------------------------


def n_controls(model: Model, task: Task, search: Cost | None) -> int:
    """How many random controls `auto` stands for: 20; fewer, but at least 5, where they would cost more than the search.

    Both are counted in plain forward passes of a prompt, and never timed, so that the number is the same on every machine: a
    control is one on each example of both splits, the search what its cost says. Where 20 are small work in any case, and where
    what the search has cost is not known (or it ran nothing), there are 20. Fewer are said as a warning.

    Args:
        search: what the search on the train split has cost.
    """
    examples, graph = (*task.train, *task.heldout), model.graph
    spent = 0.0 if search is None else plain_forwards(search, graph) * len(task.train)
    if not spent or WANTED * forward_operations(graph, sum(map(len, examples))) < SMALL:
        return WANTED
    n = max(LEAST, min(WANTED, int(spent / len(examples) + 1e-6)))  # a sum of parts of the examples may fall short by rounding
    if n < WANTED:
        warnings.warn(
            f"{n} random controls in place of {WANTED}: {WANTED} would cost more than the search ({WANTED * len(examples):,} "
            f"forward passes of a prompt, the search about {spent:,.0f}); n_random={WANTED} has all of them "
            f"(`circuitdisc score RUN scoring.n_random={WANTED}`)",
            CircuitdiscWarning,
            stacklevel=3,
        )
    return n


def plain_forwards(cost: Cost, graph: ComputationGraph) -> float:
    """A cost in plain forward passes over its examples; a backward pass counts as two."""
    return cost.model_runs + 2 * cost.backward_runs + cost.node_evaluations / graph.n_senders


def forward_operations(graph: ComputationGraph, n_tokens: int) -> float:
    """Floating-point operations of a forward pass, about: two for every weight of layers of the usual shape, on every token."""
    assert graph.d_model is not None, "loaded models know their width"
    return 2.0 * (12 if graph.has_mlp else 4) * graph.n_layers * graph.d_model**2 * n_tokens


# --- how long it will take ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CircuitRuns:
    """Circuits that are to be run.

    Args:
        circuits: how many.
        examples: on how many each is run.
        share: of a run that each takes.
    """

    circuits: int
    examples: int
    share: float = 1.0

    @property
    def runs(self) -> float:
        return self.circuits * self.examples * self.share


Works = Sequence[CircuitRuns]


def runs_of(works: Works) -> float:
    """All of it, in runs."""
    return sum(work.runs for work in works)


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What a score takes where nothing is asked for."""
    return {name: one.default for name, one in inspect.signature(function).parameters.items() if one.default is not one.empty}


def counted(bar: "tqdm[Any]", weights: Mapping[str, float]) -> Keep:
    """Counts runs on a bar while circuits are evaluated.

    Args:
        weights: circuit -> share of a run that it takes.
    """

    def keep(unit: str, compute: Callable[[], Any]) -> Any:
        values = compute()
        bar.update(weights[circuit_of(unit)] * n_examples(values))
        return values

    return keep


def circuit_of(unit: str) -> str:
    """The circuit's name in the name of a unit of `evaluate`."""
    return unit.partition(",")[0]


def n_examples(values: Mapping[str, Sequence[float]]) -> int:
    """On how many examples a unit of `evaluate` has values."""
    return len(next(iter(values.values())))


def estimate(parts: Mapping[str, Works | None], pace: float) -> str:
    """What is to be run, and about how long it takes, part by part where there are several.

    Args:
        parts: name -> its work; None: it does not say.
        pace: seconds of a run.
    """
    each = [
        f"{name}: " + ("it does not say how long" if works is None else _in_words(works, runs_of(works) * pace))
        for name, works in parts.items()
    ]
    whole = sum(runs_of(works) for works in parts.values() if works is not None) * pace
    return each[0] if len(each) == 1 else f"{in_time(whole)} in all; " + "; ".join(each)


def tell(parts: Mapping[str, Works | None], pace: float) -> None:
    """Say the estimate on stderr, if it comes to more than a few seconds."""
    if sum(runs_of(works) for works in parts.values() if works is not None) * pace > FEW_SECONDS:
        tqdm.write(f"circuitdisc: note: {estimate(parts, pace)}", file=sys.stderr)


def in_time(seconds: float) -> str:
    """`about 50 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


def _in_words(works: Works, seconds: float) -> str:
    circuits, sizes = sum(work.circuits for work in works), sorted({work.examples for work in works})
    return f"{circuits:,} circuits on {' or '.join(f'{size:,}' for size in sizes)} examples, {in_time(seconds)}"


class Pace:
    """Seconds that a circuit takes on an example, from the first that are run.

    Args:
        wanted: how many are timed; the fastest counts.
        on_known: called once with it.
    """

    def __init__(self, wanted: int, on_known: Callable[[float], object]) -> None:
        self._left, self._fastest, self._on_known = min(wanted, TIMED), float("inf"), on_known

    def timed(self, compute: Callable[[], Any]) -> Any:
        """The values of a unit of `evaluate`."""
        started = perf_counter()
        values = compute()
        if self._left:
            self._left -= 1
            self._fastest = min(self._fastest, (perf_counter() - started) / n_examples(values))
            if not self._left:
                self._on_known(self._fastest)
        return values
