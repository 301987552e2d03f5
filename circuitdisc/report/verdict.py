"""What the scores say, in plain words: one sentence with the result, then every reason to trust it less."""

from collections.abc import Iterator
from dataclasses import dataclass

from circuitdisc.circuit import Granularity
from circuitdisc.report.wording import SPLIT_WORDS, is_number, percent, share, span, undefined
from circuitdisc.scoring.base import Score, Scores

_HEADLINES = ("faithfulness", "ratio")  # the first of these that was computed is the headline
_OVERSHOOT = 1.005  # rounds to more than 100 %


@dataclass(frozen=True)
class Verdict:
    """One sentence, and the caveats that belong to it."""

    headline: str
    caveats: tuple[str, ...] = ()


def verdict(scores: Scores | None, granularity: Granularity = "edge") -> Verdict:
    """The verdict on a circuit.

    Args:
        scores: the circuit's scores; None if it was not scored.
        granularity: whether its size is told in edges or in heads.
    """
    if scores is None or not scores.scores:
        return Verdict("The circuit has not been scored.")
    score = _headline_score(scores)
    size = _size(scores, granularity)
    if score is None:
        return Verdict(f"The circuit ({size}) has no faithfulness score; the scores that were computed are below.")
    where = f"On {score.n:,} {SPLIT_WORDS.get(score.split, score.split)}"
    if not is_number(score.value):
        headline = f"{where} the {score.name} of the circuit ({size}) is {undefined(score.note)}."
        return Verdict(headline, tuple(_gaps(scores, score)))
    headline = f"{where} the circuit ({size}) {_claim(score)}{_interval(score)}{_controls(score)}."
    return Verdict(headline, tuple(_caveats(scores, score, granularity)))


def _headline_score(scores: Scores) -> Score | None:
    for split in ("heldout", "train"):
        for name in _HEADLINES:
            try:
                return scores.get(name, split)
            except KeyError:
                continue
    return None


def _size(scores: Scores, granularity: Granularity) -> str:
    if granularity == "head":
        part, whole, word = scores.circuit_heads, scores.graph_heads, "heads"
    else:
        part, whole, word = scores.circuit_edges, scores.graph_edges, "edges"
    return f"{part:,} of {whole:,} {word}, {share(part, whole)}"


def _claim(score: Score) -> str:
    value = score.value or 0.0
    metric = "the full model's metric" if score.name == "ratio" else "the metric"
    if value > _OVERSHOOT:
        return f"overshoots: it reaches {percent(value)} of {metric}"
    if value < 0:
        return f"keeps nothing of {metric}: {percent(value)}"
    return f"keeps {percent(value)} of {metric}"


def _interval(score: Score) -> str:
    between = span(score.name, score.low, score.high)
    return f" ({percent(score.confidence)} interval {between})" if between else ""


def _controls(score: Score) -> str:
    values = [value for value in score.controls if value is not None and is_number(value)]
    return f"; random circuits of the same size and kind keep {percent(max(values))} at best" if values else ""


def _caveats(scores: Scores, score: Score, granularity: Granularity) -> Iterator[str]:
    value = score.value or 0.0
    kept = scores.circuit_heads if granularity == "head" else scores.circuit_edges
    whole = scores.graph_heads if granularity == "head" else scores.graph_edges
    if kept == 0:
        yield "The circuit is empty: nothing was kept."
    elif kept == whole:
        yield "The circuit is the whole graph: nothing was cut."
    if value > _OVERSHOOT:
        yield "More than 100 % is not better: what was cut works against the metric, and the circuit lacks it."
    if value < 0:
        reference = "zero" if score.name == "ratio" else "the empty circuit"
        yield f"Less than 0 %: by this metric the circuit does worse than {reference}."
    if not is_number(score.low) or not is_number(score.high):
        yield "No interval was computed for this value."
    yield from _chance(score, value)
    yield from _gaps(scores, score)


def _chance(score: Score, value: float) -> Iterator[str]:
    defined = [control for control in score.controls if control is not None and is_number(control)]
    as_good = sum(control >= value for control in defined)
    if not score.controls:
        yield "It was not compared with random circuits, so chance is not ruled out."
    elif not defined:
        yield f"The score of all {len(score.controls):,} random circuits is undefined, so chance is not ruled out."
    elif as_good:
        yield f"{as_good:,} of {len(defined):,} random circuits of the same size and kind score at least as high."
    if defined and len(defined) < len(score.controls):
        yield f"The score of {len(score.controls) - len(defined):,} random circuits is undefined; they are left out."


def _gaps(scores: Scores, score: Score) -> Iterator[str]:
    """Does the circuit fit the examples that it was searched on better than others?"""
    if score.split != "heldout":
        yield "There are no held-out examples: these are the ones that the circuit was searched on."
        return
    try:
        train = scores.get(score.name, "train")
    except KeyError:
        return
    ends = (train.low, train.high, score.low, score.high)
    if not is_number(train.value) or not all(is_number(end) for end in ends):
        return
    train_low, train_high, low, high = (float(end or 0.0) for end in ends)
    if train_low <= high and low <= train_high:
        return
    nearer = abs(1 - (train.value or 0.0)) < abs(1 - (score.value or 0.0))
    words = "fits its search examples better than held-out ones" if nearer else "fits held-out examples better"
    yield (
        f"The circuit {words}: {score.name} {percent(train.value)} ({span(score.name, train_low, train_high)}) on the "
        f"{train.n:,} search examples; the intervals do not overlap."
    )
