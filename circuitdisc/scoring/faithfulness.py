"""Faithfulness: how much of what the full model does the circuit still does.

With m the mean of the metric over a split, M the full model, C the circuit and "empty" the circuit with everything cut (for a
head circuit: every head cut):

    faithfulness  (m(C) - m(empty)) / (m(M) - m(empty)), a ratio of means over the data set, never a mean of ratios
    ratio         m(C) / m(M)
    difference    |m(M) - m(C)|
    kl            KL(M || C) in nats, mean over examples
    accuracy      share of examples whose top token is right when C runs
    full_accuracy, accuracy_ratio   the same of M, and C's over M's
    pair_accuracy   share of examples where C puts a right answer's logit above that of every wrong one
    full_pair_accuracy   the same of M

Sources: normalised faithfulness as in MIB (Mueller et al. 2025) and Marks et al. 2024; ratios as in Prakash et al. 2024;
difference as in Wang et al. 2022; KL as in Conmy et al. 2023.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitdisc.scoring.base import Score
from circuitdisc.stats import Interval, Partition, interval, partition, plain, share_interval, standard_error

# A denominator this close to 0, relative to the values it is the difference of, makes a ratio meaningless.
VANISHING = 1e-6
FEW = 0.05  # a share of the examples so small that a mean should not rest on it by half

PerExample = Mapping[str, Float[np.ndarray, "B"]]
Means = Float[np.ndarray, "3 *W"]
"""Means of the full model, the circuit and the empty circuit."""


UNCLEAR = "the full model is not clearly another than the empty circuit"


def normalised(means: Means) -> Float[np.ndarray, "*W"]:
    """Faithfulness: (m(C) - m(empty)) / (m(M) - m(empty))."""
    full, circuit, empty = means
    return _divide(circuit - empty, full - empty)


def _ratio(means: Means) -> Float[np.ndarray, "*W"]:
    return _divide(means[1], means[0])


def _difference(means: Means) -> Float[np.ndarray, "*W"]:
    return means[0] - means[1]


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.asarray(top) / np.asarray(bottom))


@dataclass(frozen=True)
class Statistic:
    """A score as a function of the means of the full model, the circuit and the empty circuit.

    Args:
        name: of the score.
        metric: whose values it takes; None for the task's metric.
        figure: [3, ...] to [...]: from means to the score.
        size: the score is the figure's absolute value.
    """

    name: str
    metric: str | None
    figure: Callable[[Means], Float[np.ndarray, "*W"]]
    size: bool = False

    def value(self, *values: Float[np.ndarray, "B"]) -> float:
        """The score of per-example values."""
        found = float(self.figure(np.stack([one.mean() for one in values])))
        return abs(found) if self.size else found


STATISTICS = (
    Statistic("faithfulness", None, normalised),
    Statistic("ratio", None, _ratio),
    Statistic("difference", None, _difference, size=True),
    Statistic("kl", "kl", lambda means: -means[1]),
    Statistic("accuracy", "accuracy", lambda means: means[1]),
    Statistic("full_accuracy", "accuracy", lambda means: means[0]),
    Statistic("accuracy_ratio", "accuracy", _ratio),
    Statistic("pair_accuracy", "pair_accuracy", lambda means: means[1]),
    Statistic("full_pair_accuracy", "pair_accuracy", lambda means: means[0]),
)
OF_FULL = ("full_accuracy", "full_pair_accuracy")  # the same whatever the circuit


def faithfulness_scores(
    values: Mapping[str, Mapping[str, Float[np.ndarray, "B"]]],
    controls: Sequence[str],
    *,
    split: str,
    metric: str,
    ablation: str,
    over: Partition | None = None,
    matched: str = "",
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Score]:
    """All scores of this file on one split.

    Args:
        values: `full`, `circuit`, `empty` and each control -> metric -> values, example by example. A score whose metric is
            missing there is left out: `pair_accuracy` of examples without wrong answers.
        controls: names of the random circuits in `values`.
        ablation: label of the ablation.
        over: what is drawn again for intervals; None: single examples.
        matched: what the controls have in common with the circuit, or why there are none.
    """
    scores = []
    for statistic in (one for one in STATISTICS if one.metric is None or one.metric in values["full"]):
        labels = (split, ablation, statistic.metric or metric)
        scores.append(_score(statistic, values, controls, labels, over, matched, confidence, seed))
    return scores


def _score(
    statistic: Statistic,
    values: Mapping[str, PerExample],
    controls: Sequence[str],
    labels: tuple[str, str, str],
    over: Partition | None,
    matched: str,
    confidence: float,
    seed: int,
) -> Score:
    name = labels[2]
    full, circuit, empty = (np.asarray(values[which][name], dtype=np.float64) for which in ("full", "circuit", "empty"))
    over = over or partition(len(full))
    value, why = statistic.value(full, circuit, empty), _why_undefined(statistic.name, full, empty)
    if not why and not np.isfinite(value):
        why = "not finite: on some example a right answer has probability 0"
    if why:
        return Score(statistic.name, *labels, len(full), None, confidence=confidence, note=why)
    ends = _interval(statistic, full, circuit, empty, over, confidence, seed)
    drawn_from = () if statistic.name in OF_FULL else controls
    drawn = tuple(plain(statistic.value(full, np.asarray(values[one][name], np.float64), empty)) for one in drawn_from)
    note, beside = _note(statistic.name, full, circuit, empty, over), "" if statistic.name in OF_FULL else matched
    return Score(statistic.name, *labels, len(full), value, *ends.ends, confidence, drawn, note, ends.method, beside)


def _interval(
    statistic: Statistic,
    full: Float[np.ndarray, "B"],
    circuit: Float[np.ndarray, "B"],
    empty: Float[np.ndarray, "B"],
    over: Partition,
    confidence: float,
    seed: int,
) -> Interval:
    counted = _counted(statistic.name, full, circuit)
    if counted is not None:
        return share_interval(counted, groups=over, confidence=confidence)
    found = interval((full, circuit, empty), statistic.figure, groups=over, confidence=confidence, seed=seed)
    return found.size() if statistic.size else found.within(0.0) if statistic.name == "kl" else found


def _note(name: str, full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, over: Partition) -> str:
    if name == "accuracy":
        return f"full model {full.mean():.3g}"
    if name == "kl":
        return _rests_on_few(-circuit)
    return _within_noise(full, empty, over) if name == "faithfulness" else ""


def _within_noise(full: np.ndarray, empty: np.ndarray, over: Partition) -> str:
    """A warning if the full model and the empty circuit differ by less than two standard errors of their paired difference."""
    gap, error = float((full - empty).mean()), 2 * float(np.nan_to_num(standard_error(full - empty, over)))
    if abs(gap) >= error:
        return ""
    return f"{UNCLEAR}: they differ by {gap:.2g} ± {error:.2g}, so that a ratio to it says nothing"


def _rests_on_few(values: np.ndarray) -> str:
    """A warning if few examples make up half of a mean: what was not among them is not in its interval either."""
    largest = np.sort(np.maximum(values, 0))[::-1]
    if not largest.sum() > 0:
        return ""
    n_half = int(np.searchsorted(np.cumsum(largest), largest.sum() / 2)) + 1
    if n_half > max(1, FEW * len(values)):
        return ""
    return f"half of it comes from {n_half} of {len(values)} examples, so that the interval may be too narrow"


def _counted(name: str, full: np.ndarray, circuit: np.ndarray) -> np.ndarray | None:
    """What a score is the plain share of, so that it has Wilson's interval; None if it is no such share."""
    if name == "accuracy_ratio" and full.min() < 1.0:
        return None
    counted = full if name in OF_FULL else circuit if name in ("accuracy", "accuracy_ratio", "pair_accuracy") else None
    return counted if counted is not None and counted.min() >= 0 and counted.max() <= 1 else None


def _why_undefined(name: str, full: np.ndarray, empty: np.ndarray) -> str:
    if not (np.isfinite(full.mean()) and np.isfinite(empty.mean())):
        return ""
    if name == "faithfulness":
        return why_undefined(float(full.mean()), float(empty.mean()))
    scale = max(abs(full.mean()), abs(empty.mean()), 1e-12)
    if name in ("ratio", "accuracy_ratio") and abs(full.mean()) <= VANISHING * scale:
        return f"the full model's {'metric' if name == 'ratio' else 'accuracy'} is 0"
    return ""


def why_undefined(full: float, empty: float) -> str:
    """Why faithfulness has no value, from both means; empty if it has one."""
    if abs(full - empty) <= VANISHING * max(abs(full), abs(empty), 1e-12):
        return "the full model and the empty circuit score the same, so there is nothing to keep"
    return ""
