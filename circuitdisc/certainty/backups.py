"""Backups: parts whose effect grows once others are gone, so that ablating one at a time does not show what they do.

With m the mean of the metric, M the full model, a a part and G a part or a set of parts:

    effect of a             m(M) - m(M \\ a)
    effect of a without G   m(M \\ G) - m(M \\ (G and a))
    growth                  the second minus the first

Growth is the same from a's side and from G's: m(M \\ a) + m(M \\ G) - m(M) - m(M \\ (G and a)).

1. On the search examples all pairs are taken out of the model: every two parts of the circuit, and every head outside it with
   all heads of the circuit at once, and, if asked for, with each of them. Every figure is exact, of runs of the model without
   these parts.
2. The few pairs that look most like backups are judged on held-out examples, which had no say in the choice. a and G back each
   other up if three one-sided tests all say so: growth is above the bar, and each has an effect above 0 without the other.
   (A negative head, whose own input goes with G, passes the first of these and not the third.) Tests of means over examples, or
   groups of them, with Holm's correction for the pairs that are judged.
3. As many random pairs are measured beside them, and the gap between circuit and model (`scoring/completeness.py`) for the
   pairs of the circuit with the largest gaps.

Of a pair that back each other up the one with the smaller effect in the full model is called the backup.

Source: "CoAx" (https://arxiv.org/abs/2607.01940): backup heads found by the growth of their effect once others are ablated.

Shape letters: B examples, P pairs or sets.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float
from scipy import stats
from typing_extensions import Unpack

from circuitdisc.certainty.cost import prompts_run
from circuitdisc.certainty.pairs import Outside, Pair, PairRuns, growth, is_inside, pairs_of, sets_of, together
from circuitdisc.checks import N_RANDOM, SHARE, Whole, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.engine.parts import PartKind
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadSetting
from circuitdisc.identity import identity_of
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, takes
from circuitdisc.progress import work_bar
from circuitdisc.results import Result, Row
from circuitdisc.runs import Memo
from circuitdisc.scoring.completeness import Gap
from circuitdisc.scoring.exact_tests import holm
from circuitdisc.scoring.judging import ByMetric
from circuitdisc.scoring.removals import Names, Subject, subject
from circuitdisc.stats import Partition, interval, partition_of, plain, standard_error
from circuitdisc.tasks.base import Task

WORST = 3
"""Gaps of pairs that are judged."""


@dataclass(frozen=True, repr=False)
class JudgedPair(Result):
    """A part and others, each in the full model and without the other; on held-out examples.

    Args:
        part: the part; of a pair that back each other up the backup.
        others: the parts beside it.
        kind: `inside` the circuit, or `outside`: a head outside it, with the circuit's.
        effect: of the part in the full model, with its interval.
        without: of the part once the others are gone, with its interval.
        growth: the second minus the first, with its interval.
        others_effect, others_without: the same of the others, in the full model and once the part is gone.
        searched: growth on the search examples.
        p: of the three tests the largest p value, corrected for the pairs that are judged; None for a random pair.
        backup: whether they back each other up.
    """

    part: str
    others: Names
    kind: str
    effect: float
    effect_low: float | None
    effect_high: float | None
    without: float
    without_low: float | None
    without_high: float | None
    growth: float
    growth_low: float | None
    growth_high: float | None
    others_effect: float
    others_without: float
    searched: float
    p: float | None
    backup: bool


@dataclass(frozen=True, repr=False)
class Backups(Result):
    """Which parts of a circuit, and which heads outside it, back each other up.

    Args:
        pairs: those that were judged, the largest growth first.
        random: random pairs, measured likewise.
        growths: of all pairs on the search examples: `median`, `high` (95th percentile) and `most`.
        gaps: between circuit and model without nothing, and without the pairs of the circuit with the largest gaps on the
            search examples, on held-out ones.
        n_pairs: pairs that were tried.
        by, parts, outside: what the parts are, all of the circuit's, and how heads outside it were tried.
        bar: above which growth has to be: `least` times what the full model's metric lies from the empty circuit's, on the
            search examples.
        n, n_search: held-out and search examples.
        method: how the intervals were made.
        bounded: whether the metric has a ceiling, where effects that add up in the logits grow, too.
        forwards: plain forward passes of a prompt: `pairs`, `judgement`, and what the `own search` took, if that is known.
    """

    FORMAT = "circuitdisc.backups"
    WHERE = "not a result of backups"

    pairs: tuple[JudgedPair, ...]
    random: tuple[JudgedPair, ...]
    growths: Mapping[str, float]
    gaps: tuple[Gap, ...]
    n_pairs: int
    by: PartKind
    parts: Names
    outside: Outside
    bar: float
    least: float
    n: int
    n_search: int
    metric: str
    ablation: str
    confidence: float
    method: str
    bounded: bool
    forwards: Mapping[str, float | None]
    seconds: float

    @property
    def backed_up(self) -> tuple[JudgedPair, ...]:
        """The pairs that back each other up."""
        return tuple(pair for pair in self.pairs if pair.backup)

    def table(self) -> list[Row]:
        """A line for each pair that was judged, then the random ones."""
        return [
            {
                "part": pair.part,
                "without": ", ".join(pair.others),
                "effect": pair.effect,
                "effect without": pair.without,
                "growth": pair.growth,
                "low": pair.growth_low,
                "high": pair.growth_high,
                "p": pair.p,
                "backup": pair.backup,
                "random": pair in self.random,
            }
            for pair in (*self.pairs, *self.random)
        ]


class Certain(Drawing, ByMetric, total=False):
    """What is chosen on search examples and judged on held-out ones."""


@bounded(n_judged=Whole(1, 1000), n_random=N_RANDOM, least=SHARE)
@takes(Certain)
def backups(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    by: str = "head",
    outside: Outside = "set",
    n_judged: int = 10,
    least: float = 0.05,
    n_random: int = 10,
    search: Cost | None = None,
    journal: str | Path | None = None,
    **options: Unpack[Certain],
) -> Backups:
    """Find parts whose effect grows once others are gone.

    Args:
        by: `head` or `edge`: of what pairs are made. Edges outside the circuit are not tried.
        outside: heads outside the circuit: `set` tries each with all heads of the circuit ablated, `each` with each of these
            alone, too, `none` leaves them out.
        n_judged: pairs that are judged on held-out examples.
        least: the bar for growth, as a share of what the full model's metric lies from the empty circuit's.
        n_random: random pairs that are measured beside them.
        confidence: coverage of each interval; one minus it is the probability of naming any pair that is none.
        search: what the search of the circuit has cost, to be named beside.
        journal: a file for what is computed; with it a killed call goes on where it was.

    Raises:
        GraphMismatch: the circuit belongs to another architecture.
        BadSetting: there are no pairs or too many, a split is empty, or the examples do not fit the memory.
        UnknownName: a name is not known.
        BadRun: the journal belongs to another computation.

    Source: CoAx (arXiv 2607.01940).
    """
    started, given = time.perf_counter(), dict[str, Any](options)
    check_choice("by", by, ("head", "edge"))
    check_choice("outside", outside, get_args(Outside))
    judged = subject(model, task, circuit, by, {**given, "split": "heldout"})
    if len(task.train) == 0:
        raise BadSetting("the task has no search examples, on which pairs are chosen: give it some")
    pairs = pairs_of(judged, outside)
    settings = {"by": by, "outside": outside, "n_judged": n_judged, "least": least, "n_random": n_random, "seed": given["seed"]}
    settings |= {"ablation": judged.patching.ablation.to_dict(), "metric": judged.metric.name}
    examples = {"train examples": task.train, "held-out examples": task.heldout}
    with closing(Memo(journal, identity_of(model, examples, settings, circuit))) as memo:
        runs = PairRuns(judged, memo, given["progress"])
        inside = [key for pair in pairs if is_inside(pair, judged) for key in sets_of(pair)]
        with work_bar(
            len({key for pair in pairs for key in sets_of(pair)}) + len(set(inside)), "backups", runs.progress
        ) as bar:
            full = runs.means("model", judged.full, [key for pair in pairs for key in sets_of(pair)], bar.update)
            kept = runs.means("circuit", circuit.mask, inside, bar.update)
        level = least * abs(full[()] - runs.empty())
        chosen, drawn = _choose(pairs, full, level, n_judged, n_random, np.random.default_rng(given["seed"]))
        worst = _worst([pair for pair in pairs if is_inside(pair, judged)], full, kept)
        sets = list(dict.fromkeys([(), *(key for pair in (*chosen, *drawn) for key in sets_of(pair)), *map(together, worst)]))
        values = runs.values("judged", judged.full, sets)
        beside = runs.values("judged circuit", circuit.mask, [(), *map(together, worst)])
    over, confidence, seed = partition_of(task.heldout), given["confidence"], given["seed"]
    measured, method = _measured([*chosen, *drawn], judged, full, values, over, confidence, seed)
    p = holm(np.array([redundancy_p(pair, values, level, over) for pair in chosen]))
    rows = [
        JudgedPair(**row, p=float(p[i]) if i < len(chosen) else None, backup=bool(i < len(chosen) and p[i] < 1 - confidence))
        for i, row in enumerate(measured)
    ]
    growths = np.array([growth(pair, full) for pair in pairs])
    return Backups(
        tuple(sorted(rows[: len(chosen)], key=lambda row: (not row.backup, -row.growth))),
        tuple(rows[len(chosen) :]),
        {"median": float(np.median(growths)), "high": float(np.percentile(growths, 95)), "most": float(growths.max())},
        _gaps([(), *map(together, worst)], values, beside, over, confidence, seed),
        len(pairs),
        judged.by,
        judged.parts,
        outside if by == "head" else "none",
        level,
        least,
        len(task.heldout),
        len(task.train),
        judged.metric.name,
        judged.patching.ablation.label,
        confidence,
        method,
        math.isfinite(judged.metric.most),
        {**runs.forwards, "own search": None if search is None else prompts_run(search, model.graph, len(task.train))},
        time.perf_counter() - started,
    )


# --- which pairs, and what is said of them ------------------------------------------------------------------------------------


def _choose(
    pairs: Sequence[Pair], full: Mapping[Names, float], level: float, n: int, n_random: int, generator: np.random.Generator
) -> tuple[list[Pair], list[Pair]]:
    """The pairs that look most like backups on the search examples, the backup first; and random ones of the rest."""

    def likeness(pair: Pair) -> float:
        _, part, others, both = (full[key] for key in sets_of(pair))
        return min(growth(pair, full) - level, part - both, others - both)

    order = sorted(pairs, key=lambda pair: -likeness(pair))
    rest = order[n:]
    drawn = [rest[place] for place in generator.permutation(len(rest))[:n_random]]
    return [_backup_first(pair, full) for pair in order[:n]], [_backup_first(pair, full) for pair in drawn]


def _backup_first(pair: Pair, full: Mapping[Names, float]) -> Pair:
    """Of two parts the one whose effect in the full model is smaller comes first; of equal ones the later."""
    nothing, part, others, _ = (full[key] for key in sets_of(pair))
    if len(pair[1]) > 1 or abs(nothing - part) <= abs(nothing - others):
        return pair
    return "".join(pair[1]), (pair[0],)


def _worst(inside: Sequence[Pair], full: Mapping[Names, float], kept: Mapping[Names, float]) -> list[Pair]:
    """The pairs of the circuit with the largest gaps between circuit and model."""
    return sorted(inside, key=lambda pair: -abs(full[together(pair)] - kept[together(pair)]))[:WORST]


def redundancy_p(pair: Pair, values: Mapping[Names, Float[np.ndarray, "B"]], level: float, over: Partition) -> float:
    """The largest of three one-sided p values: growth above the level, and each has an effect without the other.

    That each of the three hypotheses has to be rejected needs no correction.

    Source: Berger 1982, "Multiparameter Hypothesis Testing and Acceptance Sampling" (intersection-union tests).
    """
    _, part, others, both = (values[key] for key in sets_of(pair))
    return max(above_zero(growth(pair, values) - level, over), above_zero(part - both, over), above_zero(others - both, over))


def above_zero(values: Float[np.ndarray, "B"], over: Partition) -> float:
    """p value of H0: the mean is at most 0; 1 for fewer than two to draw.

    The larger of Student's and of the same with the skewness of the values taken out: far out in the tail Student's alone is
    too small where they are skewed to the left.

    Source: Hall 1992, "On the Removal of Skewness by Transformation".
    """
    mean, error, n = float(values.mean()), float(standard_error(values, over)), over.n_drawn
    if not math.isfinite(error):
        return 1.0
    if error <= 1e-12 * float(np.abs(values).max()):
        return float(mean <= 0)
    apart, ratio = over.totals(values - mean), mean / error
    skew = float((apart**3).mean() / (apart**2).mean() ** 1.5) / math.sqrt(n)
    corrected = ratio + skew / 6 + skew * ratio**2 / 3 + skew**2 * ratio**3 / 27
    return float(stats.t.sf(min(ratio, corrected), over.degrees_of_freedom))


# --- what the held-out examples say -------------------------------------------------------------------------------------------


def _measured(
    pairs: Sequence[Pair],
    judged: Subject,
    full: Mapping[Names, float],
    values: Mapping[Names, Float[np.ndarray, "B"]],
    over: Partition,
    confidence: float,
    seed: int,
) -> tuple[list[dict[str, Any]], str]:
    """The fields of each pair that rest on values alone, and how their intervals were made."""
    stacked = np.array([[values[key] for key in sets_of(pair)] for pair in pairs])
    nothing, part, others, both = stacked.transpose(1, 0, 2)
    figures = {"effect": nothing - part, "without": others - both, "growth": part + others - nothing - both}
    ends = {name: interval((each,), groups=over, confidence=confidence, seed=seed) for name, each in figures.items()}
    rows = []
    for place, pair in enumerate(pairs):
        row: dict[str, Any] = {"part": pair[0], "others": pair[1], "kind": "inside" if is_inside(pair, judged) else "outside"}
        row["kind"] = row["kind"] if set(pair[1]) <= set(judged.parts) else "outside"
        for name, each in figures.items():
            row[name] = float(each[place].mean())
            row[f"{name}_low"], row[f"{name}_high"] = plain(ends[name].low[place]), plain(ends[name].high[place])
        row["others_effect"] = float((nothing - others)[place].mean())
        row["others_without"] = float((part - both)[place].mean())
        row["searched"] = float(growth(pair, full))
        rows.append(row)
    return rows, ends["growth"].method


def _gaps(
    sets: Sequence[Names],
    full: Mapping[Names, Float[np.ndarray, "B"]],
    kept: Mapping[Names, Float[np.ndarray, "B"]],
    over: Partition,
    confidence: float,
    seed: int,
) -> tuple[Gap, ...]:
    """The gap between circuit and model without each set."""
    apart = np.stack([kept[key] - full[key] for key in sets])
    ends = interval((apart,), groups=over, confidence=confidence, seed=seed).size()
    return tuple(
        Gap(
            "pair" if key else "empty",
            ", ".join(key) or "nothing",
            key,
            float(kept[key].mean()),
            float(full[key].mean()),
            abs(float(apart[row].mean())),
            plain(ends.low[row]),
            plain(ends.high[row]),
        )
        for row, key in enumerate(sets)
    )
