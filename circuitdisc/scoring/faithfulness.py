"""Faithfulness: how much of what the full model does the circuit still does.

With m the mean of the metric over a split, M the full model, C the circuit and "empty" the circuit with everything cut (for a
head circuit: every head cut):

    faithfulness  (m(C) - m(empty)) / (m(M) - m(empty)), a ratio of means over the data set, never a mean of ratios
    ratio         m(C) / m(M)
    difference    |m(M) - m(C)|
    kl            KL(M || C) in nats, mean over examples
    accuracy      share of examples whose top token is right when C runs
    full_accuracy, accuracy_ratio   the same of M, and C's over M's
    correlation, full_correlation   of C's (M's) number with the right one, over examples: for models whose output is a number.
                  A figure of the whole data set and no mean over its examples

Sources: normalised faithfulness as in MIB (Mueller et al. 2025) and Marks et al. 2024; ratios as in Prakash et al. 2024;
difference as in Wang et al. 2022; KL as in Conmy et al. 2023.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitdisc.metrics import METRICS, OUTPUT
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.intervals import bootstrap_interval, wilson_interval

# A denominator this close to 0, relative to the values it is the difference of, makes a ratio meaningless.
VANISHING = 1e-6

PerExample = Mapping[str, Float[np.ndarray, "B"]]


UNCLEAR = "the full model is not clearly another than the empty circuit"


@dataclass(frozen=True)
class Statistic:
    """A score as a function of per-example values of the full model, the circuit and the empty circuit.

    Args:
        name: of the score.
        metric: whose values it takes; None for the task's metric.
        function: (full, circuit, empty), each [..., B], to the score along the last axis.
        of_targets: the function takes the right numbers, too, behind the others.
    """

    name: str
    metric: str | None
    function: Callable[..., Float[np.ndarray, "..."]]
    of_targets: bool = False


def _faithfulness(full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, axis: int = -1) -> np.ndarray:
    floor = empty.mean(axis)
    return _divide(circuit.mean(axis) - floor, full.mean(axis) - floor)


def _ratio(full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, axis: int = -1) -> np.ndarray:
    return _divide(circuit.mean(axis), full.mean(axis))


def _difference(full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.abs(full.mean(axis) - circuit.mean(axis))


def _kl(full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, axis: int = -1) -> np.ndarray:
    return -circuit.mean(axis)


def _accuracy(full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, axis: int = -1) -> np.ndarray:
    return circuit.mean(axis)


def _full_accuracy(full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, axis: int = -1) -> np.ndarray:
    return full.mean(axis)


def _correlation(full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, target: np.ndarray, axis: int = -1) -> np.ndarray:
    a, b = (x - x.mean(axis, keepdims=True) for x in (circuit, target))
    return _divide((a * b).sum(axis), np.sqrt((a * a).sum(axis) * (b * b).sum(axis)))


def _full_correlation(
    full: np.ndarray, circuit: np.ndarray, empty: np.ndarray, target: np.ndarray, axis: int = -1
) -> np.ndarray:
    return _correlation(empty, full, empty, target, axis)


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(top) / np.asarray(bottom)


STATISTICS = (
    Statistic("faithfulness", None, _faithfulness),
    Statistic("ratio", None, _ratio),
    Statistic("difference", None, _difference),
    Statistic("kl", "kl", _kl),
    Statistic("accuracy", "accuracy", _accuracy),
    Statistic("full_accuracy", "accuracy", _full_accuracy),
    Statistic("accuracy_ratio", "accuracy", _ratio),
    Statistic("correlation", OUTPUT.name, _correlation, of_targets=True),
    Statistic("full_correlation", OUTPUT.name, _full_correlation, of_targets=True),
)
TARGET = "target"  # beside the metrics in `values`: the right numbers


def faithfulness_scores(
    values: Mapping[str, Mapping[str, Float[np.ndarray, "B"]]],
    controls: list[str],
    *,
    split: str,
    metric: str,
    ablation: str,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Score]:
    """All scores of this file on one split.

    Args:
        values: `full`, `circuit`, `empty` and each control -> metric -> values, example by example. A score whose metric is not
            there is left out.
        controls: names of the random circuits in `values`.
        ablation: label of the ablation.
    """
    known = [one for one in STATISTICS if one.metric is None or one.metric in values["circuit"]]
    return [_score(one, values, controls, split, metric, ablation, confidence, seed) for one in known]


def _score(
    statistic: Statistic,
    values: Mapping[str, PerExample],
    controls: list[str],
    split: str,
    metric: str,
    ablation: str,
    confidence: float,
    seed: int,
) -> Score:
    name = statistic.metric or metric
    full, circuit, empty = (np.asarray(values[which][name], dtype=np.float64) for which in ("full", "circuit", "empty"))
    right = (np.asarray(values["circuit"][TARGET], np.float64),) if statistic.of_targets else ()
    n, why = len(full), _why_undefined(statistic.name, full, empty)
    if statistic.name == "ratio" and name in METRICS and METRICS[name].needs_targets:
        why = "the metric is an error, and no share of an error is kept: see faithfulness"
    if why:
        return Score(statistic.name, split, ablation, name, n, None, confidence=confidence, note=why)
    low, high = bootstrap_interval((full, circuit, empty, *right), statistic.function, confidence, seed)
    note = ""
    counted = _counted(statistic.name, full, circuit)
    if statistic.name == "accuracy":
        note = f"full model {full.mean():.3g}"
    if statistic.name == "faithfulness" and (noise := _within_noise(full, empty)):
        note = noise
    if counted is not None and counted.min() == counted.max() and counted[0] in (0.0, 1.0):
        low, high = wilson_interval(int(counted.sum()), n, confidence)
        note += f"{'; ' if note else ''}all examples agree, so Wilson's interval"
    value = float(statistic.function(full, circuit, empty, *right))
    if not np.isfinite(value):
        why = "not finite: on some example a right answer has probability 0"
        why = "the model's number, or the right one, is the same on all examples" if statistic.of_targets else why
        return Score(statistic.name, split, ablation, name, n, None, confidence=confidence, note=why)
    of_full = statistic.name in ("full_accuracy", "full_correlation")  # which are the same whatever the circuit
    drawn_from = () if of_full else controls
    others = (np.asarray(values[one][name], np.float64) for one in drawn_from)
    drawn = tuple(_finite(float(statistic.function(full, other, empty, *right))) for other in others)
    return Score(statistic.name, split, ablation, name, n, value, _finite(low), _finite(high), confidence, drawn, note)


def _within_noise(full: np.ndarray, empty: np.ndarray) -> str:
    """A warning if the full model and the empty circuit differ by less than two standard errors of their paired difference."""
    gap = full - empty
    error = 2 * gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else 0.0
    if abs(gap.mean()) >= error:
        return ""
    return f"{UNCLEAR}: they differ by {gap.mean():.2g} ± {error:.2g}, so that a ratio to it says nothing"


def _counted(name: str, full: np.ndarray, circuit: np.ndarray) -> np.ndarray | None:
    """What a score is the plain share of, so that it has Wilson's interval; None if it is no such share."""
    if name == "accuracy_ratio" and full.min() < 1.0:
        return None
    return {"accuracy": circuit, "full_accuracy": full, "accuracy_ratio": circuit}.get(name)


def _why_undefined(name: str, full: np.ndarray, empty: np.ndarray) -> str:
    if not (np.isfinite(full.mean()) and np.isfinite(empty.mean())):
        return ""
    scale = max(abs(full.mean()), abs(empty.mean()), 1e-12)
    if name == "faithfulness" and abs(full.mean() - empty.mean()) <= VANISHING * scale:
        return "the full model and the empty circuit score the same, so there is nothing to keep"
    if name in ("ratio", "accuracy_ratio") and abs(full.mean()) <= VANISHING * scale:
        return f"the full model's {'metric' if name == 'ratio' else 'accuracy'} is 0"
    return ""


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
