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
    correlation, full_correlation   of C's (M's) number with the right one, over examples: for models whose output is a number.
                  A figure of the whole data set and no mean over its examples

Sources: normalised faithfulness as in MIB (Mueller et al. 2025) and Marks et al. 2024; ratios as in Prakash et al. 2024;
difference as in Wang et al. 2022; KL as in Conmy et al. 2023.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitdisc.metrics import METRICS, OUTPUT
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


def _pearson(means: Float[np.ndarray, "5 *W"]) -> Float[np.ndarray, "*W"]:
    """Correlation from the means of x, y, x^2, y^2 and x y."""
    x, y, xx, yy, xy = means
    spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    return _divide(xy - x * y, spread)


def _products(x: Float[np.ndarray, "B"], y: Float[np.ndarray, "B"]) -> tuple[Float[np.ndarray, "B"], ...]:
    """What `_pearson` takes the means of; both are centred first, which changes no correlation and keeps digits."""
    x, y = x - x.mean(), y - y.mean()
    return x, y, x * x, y * y, x * y


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
        of_full: it says nothing of the circuit, so that it is the same for every control.
        averaged: (full, circuit, empty, right numbers) to the values, example by example, whose means the figure takes; None:
            those of the full model, the circuit and the empty circuit.
    """

    name: str
    metric: str | None
    figure: Callable[[Means], Float[np.ndarray, "*W"]]
    size: bool = False
    of_full: bool = False
    averaged: Callable[..., tuple[Float[np.ndarray, "B"], ...]] | None = None

    def values(self, *values: Float[np.ndarray, "B"]) -> tuple[Float[np.ndarray, "B"], ...]:
        """What the figure takes the means of."""
        return values[:3] if self.averaged is None else self.averaged(*values)

    def value(self, *values: Float[np.ndarray, "B"]) -> float:
        """The score of per-example values."""
        found = float(self.figure(np.stack([one.mean() for one in self.values(*values)])))
        return abs(found) if self.size else found


STATISTICS = (
    Statistic("faithfulness", None, normalised),
    Statistic("ratio", None, _ratio),
    Statistic("difference", None, _difference, size=True),
    Statistic("kl", "kl", lambda means: -means[1]),
    Statistic("accuracy", "accuracy", lambda means: means[1]),
    Statistic("full_accuracy", "accuracy", lambda means: means[0], of_full=True),
    Statistic("accuracy_ratio", "accuracy", _ratio),
    Statistic("pair_accuracy", "pair_accuracy", lambda means: means[1]),
    Statistic("full_pair_accuracy", "pair_accuracy", lambda means: means[0], of_full=True),
    Statistic("correlation", OUTPUT.name, _pearson, averaged=lambda full, circuit, empty, right: _products(circuit, right)),
    Statistic(
        "full_correlation", OUTPUT.name, _pearson, of_full=True,
        averaged=lambda full, circuit, empty, right: _products(full, right),
    ),
)  # fmt: skip
TARGET = "target"  # beside the metrics in `values`: the right numbers


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
        values: `full`, `circuit`, `empty` and each control -> metric -> values, example by example. A score whose metric is not
            there is left out.
        controls: names of the random circuits in `values`.
        ablation: label of the ablation.
        over: what is drawn again for intervals; None: single examples.
        matched: what the controls have in common with the circuit, or why there are none.
    """
    scores = []
    for statistic in (one for one in STATISTICS if one.metric is None or one.metric in values["circuit"]):
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
    right = np.asarray(values["circuit"].get(TARGET, np.zeros_like(full)), dtype=np.float64)
    over = over or partition(len(full))
    value, why = statistic.value(full, circuit, empty, right), _why_undefined(statistic.name, full, empty)
    if statistic.name == "ratio" and name in METRICS and METRICS[name].needs_targets:
        why = "the metric is an error, and no share of an error is kept: see faithfulness"
    if not why and not np.isfinite(value):
        why = "not finite: on some example a right answer has probability 0"
        why = "the model's number, or the right one, is the same on all examples" if statistic.averaged else why
    if why:
        return Score(statistic.name, *labels, len(full), None, confidence=confidence, note=why)
    ends = _interval(statistic, (full, circuit, empty, right), over, confidence, seed)
    drawn_from = () if statistic.of_full else controls
    drawn = tuple(plain(statistic.value(full, np.asarray(values[one][name], np.float64), empty, right)) for one in drawn_from)
    note, beside = _note(statistic.name, full, circuit, empty, over), "" if statistic.of_full else matched
    return Score(statistic.name, *labels, len(full), value, *ends.ends, confidence, drawn, note, ends.method, beside)


def _interval(
    statistic: Statistic, values: Sequence[Float[np.ndarray, "B"]], over: Partition, confidence: float, seed: int
) -> Interval:
    counted = _counted(statistic.name, values[0], values[1])
    if counted is not None:
        return share_interval(counted, groups=over, confidence=confidence)
    found = interval(statistic.values(*values), statistic.figure, groups=over, confidence=confidence, seed=seed)
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
    shares = {"accuracy": circuit, "pair_accuracy": circuit, "accuracy_ratio": circuit}
    counted = (shares | {"full_accuracy": full, "full_pair_accuracy": full}).get(name)
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
