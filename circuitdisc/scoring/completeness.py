"""Completeness: does the circuit hold all that the model uses, so that both break alike when parts of it are taken out?

With m the mean of the metric over a split, M the full model, C the circuit and K a set of its parts:

    gap(K)      |m(C \\ K) - m(M \\ K)|; taking a node out cuts all its edges, outgoing and incoming
    complement  (m(M \\ C) - m(empty)) / (m(M) - m(empty)): what of the task is left without the circuit

1. K is empty: the circuit's plain difference from the model.
2. K is random, each part with probability 1/2; `mean` is the mean gap of these.
3. K is a class of heads.
4. K is greedy: grown on the train split, one part at a time, each time by the best of a few random candidates; the best of
   several starts is judged on the split asked for.
5. The same random K for random circuits (`circuitdisc/controls.py`): what gaps a circuit has by chance.

Source: Wang et al. 2022, "Interpretability in the Wild", section 4 (https://arxiv.org/abs/2211.00593).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from typing_extensions import Unpack

from circuitdisc.checks import N_RANDOM, Whole, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.engine.parts import PartKind, part_kind, parts_of, without
from circuitdisc.models.model import Model
from circuitdisc.options import Option, takes
from circuitdisc.progress import work_bar
from circuitdisc.results import Result, Row
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.faithfulness import normalised, why_undefined
from circuitdisc.scoring.judging import JudgingBy
from circuitdisc.scoring.kind import ScoreCall, ScoreKind
from circuitdisc.scoring.removals import Names, Subject, class_sets, grow, n_tried, random_sets, subject
from circuitdisc.scoring.work import EDGES, SETS, CircuitRuns, Works, defaults_of, runs_of
from circuitdisc.stats import interval, partition_of, plain
from circuitdisc.tasks.base import Task


@dataclass(frozen=True)
class Gap:
    """What taking one set out does to the circuit and to the model.

    Args:
        kind: `empty`, `random`, `class` or `greedy`.
        name: `random 3`, or the class's own name.
        removed: the set K.
        circuit, full: m(C \\ K) and m(M \\ K).
        value: the gap between them.
        low, high: its interval over examples; None for fewer than two examples.
    """

    kind: str
    name: str
    removed: Names
    circuit: float
    full: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Chance:
    """Gaps of one random circuit, over random K alone."""

    mean: float
    worst: float


@dataclass(frozen=True, repr=False)
class Completeness(Result):
    """How complete a circuit is.

    Args:
        gaps: one for each set K.
        mean: mean gap of the random K; None without any.
        mean_low, mean_high: its interval.
        complement: faithfulness of the model without the circuit.
        controls: the gaps of random circuits.
        n: examples.
        by: what the parts are.
        parts: all of them.
        cost: node evaluations, runs and seconds.
        method: how the intervals were made, and over what.
        matched: what the random circuits have in common with the circuit; or why there are none.
    """

    KEYS = ("*", "worst")

    gaps: tuple[Gap, ...]
    mean: float | None
    mean_low: float | None
    mean_high: float | None
    complement: Score
    controls: tuple[Chance, ...]
    by: PartKind
    parts: Names
    n: int
    split: str
    ablation: str
    metric: str
    confidence: float
    cost: Mapping[str, float]
    method: str = ""
    matched: str = ""

    @property
    def worst(self) -> Gap:
        """The set with the largest gap. Its interval is that of this one set, chosen afterwards as the largest of all."""
        return max(self.gaps, key=lambda gap: gap.value)

    def table(self) -> list[Row]:
        """A line for each set K, the largest gap first."""
        return [
            {
                "K": gap.name,
                "size": len(gap.removed),
                "circuit without K": gap.circuit,
                "model without K": gap.full,
                "gap": gap.value,
                "low": gap.low,
                "high": gap.high,
            }
            for gap in sorted(self.gaps, key=lambda gap: -gap.value)
        ]


class Greedily(JudgingBy, total=False):
    """How greedy sets are grown."""

    greedy_size: Annotated[int, Option(10, "the largest greedy set; 0 leaves greedy sets out.", Whole(0, 100_000))]
    greedy_width: Annotated[int, Option(10, "random candidates at each step.", Whole(1, 100_000))]
    greedy_starts: Annotated[int, Option(3, "how often a greedy set is grown.", Whole(1, 10_000))]


@bounded(n_random=N_RANDOM, n_controls=N_RANDOM)
@takes(Greedily)
def completeness(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    by: str | None = None,
    n_random: int = 20,
    classes: Mapping[str, Sequence[str]] | None = None,
    n_controls: int = 5,
    **options: Unpack[Greedily],
) -> Completeness:
    """Take sets of parts out of a circuit and out of the model, and compare.

    Args:
        by: `head`, `node` (heads and MLPs) or `edge`; None: heads for a head circuit, nodes for any other.
        n_random: random sets K.
        classes: name -> parts; None takes the groups that the circuit was built with.
        n_controls: random circuits matched with this one; fewer where there are no more.
        seed: of the sets, the random circuits and the bootstrap.
        memory: budget for activations; both splits are held in memory.

    Raises:
        GraphMismatch: the circuit belongs to another architecture, or a class names a part that it does not have.
        BadSetting: a number is out of its bounds, the circuit or the split is empty, or the examples do not fit the memory.
        UnknownName: a name is not known.

    Source: Wang et al. 2022, section 4.
    """
    started = time.perf_counter()
    given: Any = options
    confidence, seed, progress = given["confidence"], given["seed"], given["progress"]
    greedy_size, width, starts = (given[f"greedy_{name}"] for name in ("size", "width", "starts"))
    judged = subject(model, task, circuit, by, options)
    named = class_sets(judged, classes)
    generator = np.random.default_rng(seed)
    steps = starts * min(greedy_size, len(judged.parts))
    drawn = random_circuits(circuit, n_controls if n_random else 0, generator)
    n_sets = (1 + n_random + len(named) + bool(steps)) + len(drawn) * n_random
    works = _works(judged.by, n_sets, judged.n, starts * n_tried(len(judged.parts), greedy_size, width), len(task.train))
    a_step = runs_of(works[1:]) / steps if steps else 0.0
    with work_bar(runs_of(works), "completeness", progress) as bar:
        sets = [("empty", "nothing", ())]
        sets += [("random", f"random {index + 1}", k) for index, k in enumerate(random_sets(judged.parts, n_random, generator))]
        sets += [("class", name, members) for name, members in named.items()]
        if steps:
            sets.append(
                ("greedy", "greedy", _greedy(judged, greedy_size, width, starts, generator, lambda n: bar.update(n * a_step)))
            )
        pairs = _pairs(judged, circuit, [k for _, _, k in sets], bar.update)
        controls = tuple(_control(judged, other, n_random, generator, bar.update) for other in drawn.circuits)
        left = _complement(judged, confidence, seed)
    gaps, mean, method = _gaps(judged, sets, pairs, confidence, seed)
    judged.patching.cost.seconds = time.perf_counter() - started
    label, cost = judged.patching.ablation.label, dict(vars(judged.patching.cost))
    labels = (judged.by, judged.parts, judged.n, judged.split, label, judged.metric.name, confidence)
    return Completeness(gaps, *mean, left, controls, *labels, cost, method, drawn.words)


def _works(by: PartKind, n_sets: int, n_judged: int, n_grown: int, n_searched: int) -> Works:
    """What is run: sets taken out of a circuit and of the model to judge them, and those that greedy search tries."""
    share = EDGES if by == "edge" else SETS
    return [CircuitRuns(2 * n_sets, n_judged, share), CircuitRuns(2 * n_grown, n_searched, share)]


DEFAULTS = defaults_of(completeness)


def _work(call: ScoreCall) -> Works:
    given, kind = DEFAULTS, part_kind(call.circuit, None)
    n_parts = len(parts_of(call.circuit, kind))
    n_sets = 2 + len(call.circuit.groups) + given["n_random"] * (1 + given["n_controls"])
    tried = given["greedy_starts"] * n_tried(n_parts, given["greedy_size"], given["greedy_width"])
    return _works(kind, n_sets, len(call.task.heldout), tried, len(call.task.train))


def _pairs(subject: Subject, circuit: Circuit, sets: Sequence[Names], on_step: Any) -> Float[np.ndarray, "K 2 B"]:
    """Metric values of the circuit and of the model without each K."""
    values, share = [], EDGES if subject.by == "edge" else SETS
    for mask in (circuit.mask, subject.full):
        values.append(subject.judge.sets_removed(mask, sets))
        on_step(len(sets) * subject.n * share)
    return np.stack(values, axis=1)


def _greedy(subject: Subject, size: int, width: int, starts: int, generator: np.random.Generator, on_step: Any) -> Names:
    def gaps(grown: Names, candidates: Names) -> Float[np.ndarray, "P"]:
        circuit, full = (
            subject.search.added_removed(mask, grown, candidates).mean(1) for mask in (subject.circuit.mask, subject.full)
        )
        return np.abs(circuit - full)

    grown_sets = [grow(subject.parts, gaps, size, width, generator, on_step) for _ in range(starts)]
    return max(grown_sets, key=lambda pair: pair[1])[0]


def _gaps(
    subject: Subject, sets: list[tuple[str, str, Names]], pairs: Float[np.ndarray, "K 2 B"], confidence: float, seed: int
) -> tuple[tuple[Gap, ...], tuple[float | None, float | None, float | None], str]:
    """The gap of each set, and the mean gap of the random ones, with intervals; and how these were made."""
    means, over = pairs.mean(-1), partition_of(subject.task.split(subject.split))
    apart = pairs[:, 0] - pairs[:, 1]
    ends = interval((apart,), groups=over, confidence=confidence, seed=seed).size()
    gaps = tuple(
        Gap(kind, name, removed, float(c), float(m), float(abs(c - m)), plain(ends.low[row]), plain(ends.high[row]))
        for row, ((kind, name, removed), (c, m)) in enumerate(zip(sets, means, strict=True))
    )
    random = [row for row, gap in enumerate(gaps) if gap.kind == "random"]
    if not random:
        return gaps, (None, None, None), ends.method
    mean = interval(tuple(apart[random]), _mean_size, groups=over, confidence=confidence, seed=seed)
    return gaps, (float(np.mean([gaps[row].value for row in random])), *mean.ends), ends.method


def _mean_size(means: Float[np.ndarray, "K *W"]) -> Float[np.ndarray, "*W"]:
    return np.abs(means).mean(0)


def _control(subject: Subject, circuit: Circuit, n_random: int, generator: np.random.Generator, on_step: Any) -> Chance:
    """Random K taken out of a random circuit."""
    pairs = _pairs(subject, circuit, list(random_sets(parts_of(circuit, subject.by), n_random, generator)), on_step)
    gaps = np.abs(np.diff(pairs.mean(-1), axis=1))
    return Chance(float(gaps.mean()), float(gaps.max()))


def _complement(subject: Subject, confidence: float, seed: int) -> Score:
    """Faithfulness of everything but the circuit: the other heads of a head circuit, the other edges of any other."""
    graph, circuit = subject.circuit.graph, subject.circuit
    whole_heads = circuit.granularity == "head"
    empty = (Circuit.from_heads(graph, []) if whole_heads else Circuit.empty(graph)).mask
    others: Bool[np.ndarray, "R S"] = without(graph, subject.full, circuit.heads()) if whole_heads else (~circuit).mask
    values = np.stack([subject.judge.values(mask) for mask in (subject.full, others, empty)])
    full, rest, nothing = values.mean(-1)
    labels = ("complement", subject.split, subject.patching.ablation.label, subject.metric.name, subject.n)
    if why := why_undefined(full, nothing):
        return Score(*labels, None, confidence=confidence, note=why)
    over = partition_of(subject.task.split(subject.split))
    ends = interval(tuple(values), normalised, groups=over, confidence=confidence, seed=seed)
    value = float(normalised(np.array([full, rest, nothing])))
    return Score(*labels, value, *ends.ends, confidence, method=ends.method)


SCORE = ScoreKind(
    "completeness",
    "do circuit and model break alike when parts are taken out?",
    Completeness,
    lambda call: call.run(completeness),
    always=True,
    work=_work,
)
