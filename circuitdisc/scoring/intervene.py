"""`intervene`: change a few heads, and see what that does to a task; beside it, the same change to other heads."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitdisc.checks import CONFIDENCE, N_RANDOM, SEED, bounded
from circuitdisc.engine.interventions import Intervention, check_interventions, evaluate_interventions
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result
from circuitdisc.stats import interval, partition_of
from circuitdisc.tasks.base import SPLITS, Task
from circuitdisc.tasks.measured import metric_for

_TRIES = 50  # draws for each control that is wanted, before it is taken that there are no more


@dataclass(frozen=True, repr=False)
class Effect(Result):
    """What interventions do to one metric.

    Args:
        interventions: what was done, to all heads at once.
        metric, split, n: measured on which examples, and how many.
        before, after: mean of the metric without and with the interventions.
        low, high: interval of `difference`, examples drawn in pairs; None for a single example.
        confidence: coverage of that interval.
        method: how it was made, and over what.
        controls: the difference when other heads of the same layers are changed in the same way, one for each draw.
    """

    KEYS = ("*", "difference", "p_value")

    interventions: tuple[Intervention, ...]
    metric: str
    split: str
    n: int
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    controls: tuple[float, ...] = ()
    method: str = ""

    @property
    def difference(self) -> float:
        """after - before."""
        return self.after - self.before

    @property
    def p_value(self) -> float | None:
        """Share of choices of heads, this one among them, that move the metric at least as far; None without controls."""
        if not self.controls:
            return None
        as_far = sum(abs(control) >= abs(self.difference) for control in self.controls)
        return (1 + as_far) / (1 + len(self.controls))


def intervene(
    model: Model, task: Task, interventions: Sequence[Intervention], *, metric: str | Metric | None = None, **settings: Any
) -> Effect:
    """Change some heads, all at once, and measure the task before and after.

    Args:
        metric: None takes the task's.
        **settings: as of `effects`: `split`, `n_random`, `confidence`, `seed`, `memory`, `progress`.

    Raises:
        UnknownName: a head, a role or the metric is not known.
        BadSetting: the model runs by hooks, nothing is to be changed, or a number is out of its bounds.

    Source: Merullo et al. 2024.
    """
    return effects(model, task, interventions, metrics=[metric or task.metric], **settings)[0]


@bounded(n_random=N_RANDOM, confidence=CONFIDENCE, seed=SEED)
def effects(
    model: Model,
    task: Task,
    interventions: Sequence[Intervention],
    *,
    metrics: Sequence[str | Metric],
    split: str = "heldout",
    n_random: int = 20,
    confidence: float = 0.95,
    seed: int = 0,
    memory: str | int = "4GiB",
    progress: bool = False,
) -> tuple[Effect, ...]:
    """As `intervene`, on several metrics from the same runs.

    Args:
        metrics: their names.
        split: `train` or `heldout`.
        n_random: how often other heads are drawn; fewer where the layers have no more choices.
        confidence: coverage of the intervals.
        seed: of the draws and the bootstrap.
        memory: budget for activations.
    """
    measures = list({chosen.name: chosen for chosen in (metric_for(model, task, name) for name in metrics)}.values())
    if not interventions:
        raise BadSetting('no head is to be changed: give at least one, for example Intervention("a3.h1", scale=0)')
    if split not in SPLITS or not task.split(split):
        raise BadSetting(f"split={split!r} has no examples: take one of {', '.join(s for s in SPLITS if task.split(s))}")
    check_interventions(model, interventions)
    examples = task.split(split)
    drawn = random_heads(model.graph, interventions, n_random, np.random.default_rng(seed))
    controls = {f"random{index}": changed for index, changed in enumerate(drawn)}
    sets = {"before": (), "after": tuple(interventions), **controls}
    with progress_bar(len(sets) * len(examples), "intervene", "prompt", progress) as bar:
        values = evaluate_interventions(model, examples, sets, measures, memory=memory, on_progress=bar.update)
    effects = []
    for measure in measures:
        arrays = {name: by_metric[measure.name].double().cpu().numpy() for name, by_metric in values.items()}
        moved = arrays["after"] - arrays["before"]
        ends = interval((moved,), groups=partition_of(examples), confidence=confidence, seed=seed)
        effects.append(
            Effect(
                tuple(interventions),
                measure.name,
                split,
                len(examples),
                float(arrays["before"].mean()),
                float(arrays["after"].mean()),
                *ends.ends,
                confidence,
                tuple(float(arrays[name].mean() - arrays["before"].mean()) for name in controls),
                ends.method,
            )
        )
    return tuple(effects)


def random_heads(
    graph: ComputationGraph, interventions: Sequence[Intervention], n: int, generator: np.random.Generator
) -> list[tuple[Intervention, ...]]:
    """The same changes made to other heads: each head is replaced by one of its layer, no two by the same.

    The draws differ from each other and from the interventions themselves; where a layer has few heads, there are fewer than n.
    """
    seen, sets = {frozenset(interventions)}, []
    for _ in range(_TRIES * n):
        if len(sets) == n:
            break
        drawn = tuple(_redrawn(graph, interventions, generator))
        if frozenset(drawn) not in seen:
            seen.add(frozenset(drawn))
            sets.append(drawn)
    return sets


def _redrawn(
    graph: ComputationGraph, interventions: Sequence[Intervention], generator: np.random.Generator
) -> Iterator[Intervention]:
    places, in_layer = graph.heads, defaultdict(list)
    for head in dict.fromkeys(intervention.head for intervention in interventions):
        in_layer[places[head][0]].append(head)
    other = {
        head: f"a{layer}.h{number}"
        for layer, heads in in_layer.items()
        for head, number in zip(heads, generator.choice(graph.n_heads, len(heads), replace=False), strict=True)
    }
    return (replace(intervention, head=other[intervention.head]) for intervention in interventions)
