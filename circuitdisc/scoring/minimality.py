"""Minimality: is every part of the circuit needed for something?

With m the mean of the metric over a split, M the full model, C the circuit and v one of its parts:

    change(v, K)  |m(C \\ (K + v)) - m(C \\ K)|
    v passes      if some K within C has change(v, K) >= 1 % of |m(M)|

A part may look idle because another one does the same; K takes that other one out. For each v the K with the largest change
is taken, on the train split, from: nothing; random sets without v, each part with probability 1/2; classes of heads, less v
itself; and a greedy set grown for v alone. The change is then measured on the split asked for.

Source: Wang et al. 2022, "Interpretability in the Wild", section 4 (https://arxiv.org/abs/2211.00593).
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.checks import (
    N_RANDOM,
    THRESHOLD,
    Whole,
    bounded,
)
from circuitdisc.circuit import Circuit
from circuitdisc.engine.part_removal import PartRemoval
from circuitdisc.engine.parts import PartKind, part_kind, parts_of
from circuitdisc.errors import BadSetting
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import work_bar
from circuitdisc.results import Result, Row
from circuitdisc.scoring.judging import JudgingBy
from circuitdisc.scoring.kind import ScoreCall, ScoreKind
from circuitdisc.scoring.removals import Names, Subject, class_sets, clearly_larger, grow, n_tried, random_sets, subject
from circuitdisc.scoring.work import EDGES, PARTS, CircuitRuns, Works, defaults_of
from circuitdisc.stats import interval, partition_of, plain
from circuitdisc.tasks.base import Task


@dataclass(frozen=True)
class Need:
    """How much one part is needed.

    Args:
        part: v.
        kind: where K comes from: `empty`, `random 3`, a class's name, or `greedy`.
        removed: the set K.
        before, after: m(C \\ K) and m(C \\ (K + v)).
        change: how far they lie apart.
        low, high: its interval over examples; None for fewer than two examples.
        share: the change as a fraction of |m(M)|.
        passes: the share reaches the threshold.
    """

    part: str
    kind: str
    removed: Names
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    share: float
    passes: bool


@dataclass(frozen=True, repr=False)
class Minimality(Result):
    """How minimal a circuit is.

    Args:
        needs: one for each part.
        full: m(M).
        threshold: the fraction of |m(M)| that a part must change.
        n: examples.
        by: what the parts are.
        cost: node evaluations, runs and seconds.
        method: how the intervals were made, and over what.
    """

    KEYS = ("*", "n_passed", "share_passed")

    needs: tuple[Need, ...]
    full: float
    threshold: float
    by: PartKind
    n: int
    split: str
    ablation: str
    metric: str
    confidence: float
    cost: Mapping[str, float]
    method: str = ""

    @property
    def n_passed(self) -> int:
        return sum(need.passes for need in self.needs)

    @property
    def share_passed(self) -> float:
        """Share of the parts that pass."""
        return self.n_passed / len(self.needs)

    def table(self) -> list[Row]:
        """A line for each part, the least needed first."""
        return [
            {
                self.by: need.part,
                "K": need.kind,
                "size of K": len(need.removed),
                "change": need.change,
                "low": need.low,
                "high": need.high,
                "share": need.share,
                "passes": need.passes,
            }
            for need in sorted(self.needs, key=lambda need: need.change)
        ]


@bounded(
    threshold=THRESHOLD,
    n_random=N_RANDOM,
    greedy_size=Whole(0, 100_000),
    greedy_width=Whole(1, 100_000),
)
@takes(JudgingBy)
def minimality(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    by: str | None = None,
    threshold: float = 0.01,
    n_random: int = 10,
    classes: Mapping[str, Sequence[str]] | None = None,
    greedy_size: int | None = None,
    greedy_width: int = 5,
    **options: Unpack[JudgingBy],
) -> Minimality:
    """Find, for each part of a circuit, a set K in whose absence the part matters most.

    Args:
        by: `head`, `node` (heads and MLPs) or `edge`; None: heads for a head circuit, nodes for any other.
        threshold: the fraction of |m(M)| that a part must change to pass.
        n_random: random sets K, shared by all parts; each serves the parts that it does not hold.
        classes: name -> parts; None takes the groups that the circuit was built with.
        greedy_size: the largest greedy set, grown for each part alone; None: 5, and 0 (none) for edges.
        greedy_width: random candidates at each step.
        seed: of the sets and the bootstrap.
        memory: budget for activations; both splits are held in memory.

    Raises:
        GraphMismatch: the circuit belongs to another architecture, or a class names a part that it does not have.
        BadSetting: the full model's metric is 0, a number is out of its bounds, the circuit or the split is empty, or the
            examples do not fit the memory.
        UnknownName: a name is not known.

    Source: Wang et al. 2022, section 4.
    """
    size = _greedy_size(by) if greedy_size is None else greedy_size
    started = time.perf_counter()
    given: Any = options
    confidence, seed, progress = given["confidence"], given["seed"], given["progress"]
    judged = subject(model, task, circuit, by, options)
    full = float(judged.judge.values(judged.full).mean())
    if judged.metric.zero_at_full or full == 0:
        raise BadSetting(
            f"metric '{judged.metric.name}' is 0 for the full model, and no part can change a fraction of 0: "
            "use another metric, such as logit_diff"
        )
    generator = np.random.default_rng(seed)
    named = class_sets(judged, classes)
    sets = {"empty": (), **{f"random {i + 1}": k for i, k in enumerate(random_sets(judged.parts, n_random, generator))}}
    steps = len(judged.parts) * min(size, len(judged.parts) - 1)
    n_parts, n_searched, share = len(judged.parts), len(task.train), _share(judged.by)
    n_outside = sum(n_parts - len(removed) for removed in sets.values()) + len(named) * n_parts
    a_step = 2 * n_parts * n_tried(n_parts - 1, size, greedy_width) * n_searched * share / max(steps, 1)
    whole = (n_outside * n_searched + n_parts * judged.n) * share + steps * a_step
    with work_bar(whole, "minimality", progress) as bar:
        chosen = _Chosen()
        for name, removed in sets.items():
            chosen.offer(name, removed, *_outside(judged, removed))
            bar.update((n_parts - len(removed)) * n_searched * share)
        for name, removed in named.items():
            chosen.offer(name, removed, *_outside(judged, removed))
            _offer_inside(judged, chosen, name, removed)
            bar.update(n_parts * n_searched * share)
        for part in judged.parts if size else ():
            grown, change = _greedy(judged, part, size, greedy_width, generator, lambda n: bar.update(n * a_step))
            chosen.offer("greedy", grown, (part,), (change,))
        needs, method = _judged(judged, chosen, full, threshold, confidence, seed, lambda n: bar.update(n * judged.n * share))
    judged.patching.cost.seconds = time.perf_counter() - started
    label, cost = judged.patching.ablation.label, dict(vars(judged.patching.cost))
    labels = (judged.by, judged.n, judged.split, label, judged.metric.name, confidence)
    return Minimality(needs, full, float(threshold), *labels, cost, method)


def _greedy_size(by: str | None) -> int:
    return 0 if by == "edge" else 5


def _share(by: PartKind) -> float:
    """Of a run, that taking one part more out takes."""
    return EDGES if by == "edge" else PARTS


DEFAULTS = defaults_of(minimality)


def work_of(call: ScoreCall, by: str | None) -> Works:
    """What minimality runs as it is by default: on the search examples, and, at the end, each part on the others."""
    given, kind = DEFAULTS, part_kind(call.circuit, by)
    n = len(parts_of(call.circuit, kind))
    outside = n + given["n_random"] * n // 2 + len(call.circuit.groups) * n * (kind != "edge")
    searched = outside + 2 * n * n_tried(n - 1, _greedy_size(by), given["greedy_width"])
    return [CircuitRuns(searched, len(call.task.train), _share(kind)), CircuitRuns(n, len(call.task.heldout), _share(kind))]


class _Chosen:
    """For each part, the K with the largest change so far; among equals the first stays."""

    def __init__(self) -> None:
        self.best: dict[str, tuple[float, str, Names]] = {}

    def offer(self, kind: str, removed: Names, parts: Sequence[str], changes: Sequence[float] | np.ndarray) -> None:
        for part, change in zip(parts, changes, strict=True):
            if part not in self.best or clearly_larger(float(change), self.best[part][0]):
                self.best[part] = float(change), kind, removed


def _changes(removal: PartRemoval, circuit: Circuit, removed: Names, parts: Names) -> Float[np.ndarray, "P 2 B"]:
    """Metric values of the circuit without K, before and after each of these parts is taken out, too."""
    after = removal.added_removed(circuit.mask, removed, parts)
    (before,) = removal.sets_removed(circuit.mask, [removed])
    return np.stack([np.broadcast_to(before, after.shape), after], axis=1)


def _mean_changes(removal: PartRemoval, circuit: Circuit, removed: Names, parts: Names) -> Float[np.ndarray, "P"]:
    return np.abs(np.diff(_changes(removal, circuit, removed, parts).mean(-1), axis=1))[:, 0]


def _outside(subject: Subject, removed: Names) -> tuple[Names, Float[np.ndarray, "P"]]:
    """The parts that K does not hold, and how much each changes in its absence."""
    parts = tuple(part for part in subject.parts if part not in set(removed))
    return parts, _mean_changes(subject.search, subject.circuit, removed, parts)


def _offer_inside(subject: Subject, chosen: _Chosen, name: str, members: Names) -> None:
    """A class also serves its own members: K is the rest of the class."""
    for part in members:
        rest = tuple(other for other in members if other != part)
        chosen.offer(name, rest, (part,), _mean_changes(subject.search, subject.circuit, rest, (part,)))


def _greedy(
    subject: Subject, part: str, size: int, width: int, generator: np.random.Generator, on_step: Any
) -> tuple[Names, float]:
    """The set in whose absence this part changes most, grown greedily."""
    mask = subject.circuit.mask

    def changes(grown: Names, candidates: Names) -> Float[np.ndarray, "P"]:
        with_part, without_part = (
            subject.search.added_removed(mask, removed, candidates).mean(1) for removed in (grown, (*grown, part))
        )
        return np.abs(without_part - with_part)

    others = tuple(other for other in subject.parts if other != part)
    return grow(others, changes, size, width, generator, on_step)


def _judged(
    subject: Subject, chosen: _Chosen, full: float, threshold: float, confidence: float, seed: int, on_step: Any
) -> tuple[tuple[Need, ...], str]:
    """Each part's change under its chosen K, on the split that figures are given for; and how their intervals were made."""
    pairs: dict[str, Float[np.ndarray, "2 B"]] = {}
    for removed, parts in _by_set(chosen):
        pairs |= zip(parts, _changes(subject.judge, subject.circuit, removed, parts), strict=True)
        on_step(len(parts))
    values = np.stack([pairs[part] for part in subject.parts])
    over = partition_of(subject.task.split(subject.split))
    ends = interval((values[:, 1] - values[:, 0],), groups=over, confidence=confidence, seed=seed).size()
    needs = []
    for row, part in enumerate(subject.parts):
        before, after = (float(mean) for mean in values[row].mean(-1))
        _, kind, removed = chosen.best[part]
        change, share = abs(after - before), abs(after - before) / abs(full)
        low, high = plain(ends.low[row]), plain(ends.high[row])
        needs.append(Need(part, kind, removed, before, after, change, low, high, share, share >= threshold))
    return tuple(needs), ends.method


def _by_set(chosen: _Chosen) -> Iterator[tuple[Names, Names]]:
    """Each chosen K with the parts that it was chosen for, so that they are measured together."""
    by_set: dict[Names, list[str]] = defaultdict(list)
    for part, (_, _, removed) in chosen.best.items():
        by_set[removed].append(part)
    for removed, parts in by_set.items():
        yield removed, tuple(parts)


SCORE = ScoreKind(
    "minimality",
    "is every part of the circuit needed for something?",
    Minimality,
    lambda call: call.run(minimality),
    always=True,
    work=lambda call: work_of(call, None),
)
