"""What the scores say, in plain words: one sentence with the result, then every reason to trust it less.

Page and terminal show the same `Verdict`: no other place says what a result means.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from circuitdisc.circuit import Circuit
from circuitdisc.scoring.base import Score, Scores
from circuitdisc.scoring.chance import RANDOM_CIRCUITS, as_near, chance_caveats, defined, nearest
from circuitdisc.scoring.faithfulness import UNCLEAR
from circuitdisc.wording import SPLIT_WORDS, is_number, number, percent, score_value, share, span, undefined

EMPTY = "The circuit is empty: no edge is kept, and every score of it is that of cutting everything."

MARGIN = 0.005
OVERSHOOT = 1 + MARGIN
"""Above this faithfulness a circuit is said to pass the full model: it rounds to more than 100 %."""

FEW = 30
"""Examples below which an interval is called rough."""

_HEADLINES = ("faithfulness", "ratio")  # the first of these that was computed is the headline
_LITTLE = 0.1  # of the full model's metric: two ends that lie no farther apart have little between them
_SIGNS = {"kl": -1, "accuracy": 1, "pair_accuracy": 1}  # scores beside the headline, and which way is good
_MANY_RIGHT = 0.5  # a full model whose top token is right less often is not judged by its accuracy


@dataclass(frozen=True)
class Verdict:
    """What a result says, and what speaks against believing it.

    Args:
        lines: the result, a sentence each.
        caveats: every reason to trust it less, a sentence each.
    """

    lines: tuple[str, ...]
    caveats: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The first sentence."""
        return self.lines[0]

    def __add__(self, other: "Verdict") -> "Verdict":
        """Both, each caveat once."""
        return Verdict(self.lines + other.lines, tuple(dict.fromkeys(self.caveats + other.caveats)))

    @property
    def data(self) -> dict[str, list[str]]:
        """For a script."""
        return {"verdict": list(self.lines), "caveats": list(self.caveats)}

    @property
    def text(self) -> str:
        """For the terminal: a caveat begins with an exclamation mark."""
        lines = ["verdict", *(f"  {line}" for line in self.lines), *(f"  ! {caveat}" for caveat in self.caveats)]
        return plain_text("\n".join(lines))


def plain_text(text: str) -> str:
    """A text with the hyphens and spaces that every terminal shows."""
    return text.replace("−", "-").replace("\u00a0", " ")


def as_sentences(notes: Iterable[str]) -> tuple[str, ...]:
    """Notes as caveats: one line each, each once, with a full stop."""
    lines = (" ".join(note.split()) for note in notes)
    return tuple(dict.fromkeys(line if line.endswith((".", "!", "?")) else f"{line}." for line in lines if line))


def few_caveats(n: int) -> Iterator[str]:
    """Whether the examples are few."""
    if n < FEW:
        examples = "1 example stands" if n == 1 else f"{n:,} examples stand"
        yield f"Only {examples} behind it: an interval from so few is rough."


def may_be_zero(low: float | None, high: float | None) -> bool:
    """Whether an interval holds 0, or is unknown."""
    return not (is_number(low) and is_number(high)) or float(low or 0.0) <= 0 <= float(high or 0.0)


def _below(value: float) -> bool:
    """Whether a share is below 0 as it is shown: what rounding leaves is `0 %`."""
    return percent(value).startswith("−")


def within_noise(score: Score) -> bool:
    """Whether the full model is not clearly another than the empty circuit, so that a share of the way between says nothing."""
    return UNCLEAR in score.note


# --- one circuit ------------------------------------------------------------------------------------------------------


def verdict(scores: Scores | None, circuit: Circuit | None = None) -> Verdict:
    """The verdict on a circuit.

    Args:
        scores: the circuit's scores; None if it was not scored.
        circuit: the circuit itself, for what its search and its task have noted; None if it is not at hand.
    """
    known = tuple(circuit_caveats(circuit)) if circuit is not None else ()
    if scores is None or not scores.scores:
        return Verdict(("The circuit has not been scored.",), known)
    score = headline_score(scores)
    heads = circuit is not None and circuit.granularity == "head"
    size = _size(scores, heads)
    if score is None:
        return Verdict((f"The circuit ({size}) has no faithfulness score, only those in the table.",), known)
    caveats = (*_size_caveats(scores, heads), *score_caveats(scores, score), *known)
    return Verdict((_headline(scores, score, size),), tuple(dict.fromkeys(caveats)))


def headline_score(scores: Scores) -> Score | None:
    """Faithfulness on the held-out examples; else what comes nearest to it."""
    for split in ("heldout", "train"):
        for name in _HEADLINES:
            try:
                return scores.get(name, split)
            except KeyError:
                continue
    return None


def score_caveats(scores: Scores, score: Score, searched: bool = True) -> Iterator[str]:
    """Every reason to trust the headline less that lies in the scores.

    Args:
        searched: whether the circuit was searched on these search examples; those of another task say nothing of its fit.
    """
    if is_number(score.value) and not within_noise(score):
        yield from _value_caveats(scores, score, float(score.value or 0.0))
        yield from as_sentences([score.note])
    yield from few_caveats(score.n)
    if searched:
        yield from _split_caveats(scores, score)


def _size(scores: Scores, heads: bool) -> str:
    if heads:
        part, whole, word = scores.circuit_heads, scores.graph_heads, "heads"
    else:
        part, whole, word = scores.circuit_edges, scores.graph_edges, "edges"
    return f"{part:,} of {whole:,} {word}, {share(part, whole)}"


def _headline(scores: Scores, score: Score, size: str) -> str:
    where = f"On {score.n:,} {SPLIT_WORDS.get(score.split, score.split)}"
    ends = _ends(scores, score)
    if not is_number(score.value):
        return f"{where} the {score.name} of the circuit ({size}) is {undefined(score.note)}{_three(score, ends)}."
    if within_noise(score):
        value = percent(score.value)
        return f"{where} the {score.name} of the circuit ({size}), {value}, says nothing: {score.note}{_three(score, ends)}."
    between = span(score.name, score.low, score.high)
    interval = f" ({percent(score.confidence)} interval {between})" if between else ""
    value = float(score.value or 0.0)
    words = f"{where} the circuit ({size}) has a {score.name} of {percent(value)}{interval}{_position(score, value, ends)}"
    values = defined(score.controls)
    if values:
        near = percent(nearest(values))
        words += f"; of {len(values):,} {RANDOM_CIRCUITS} the nearest to 100 % has {near}"
    return f"{words}."


def _ends(scores: Scores, score: Score) -> Mapping[str, float] | None:
    """Means of the metric: of the full model, the circuit and the empty circuit; None if they are not all known."""
    means = scores.means.get(score.split, {})
    known = all(is_number(means.get(which)) for which in ("full", "circuit", "empty"))
    return means if known else None


def _three(score: Score, ends: Mapping[str, float] | None) -> str:
    if ends is None:
        return ""
    full, kept, empty = (number(float(ends[which])) for which in ("full", "circuit", "empty"))
    return f" (mean {score.metric}: full model {full}, circuit {kept}, empty circuit {empty})"


def _position(score: Score, value: float, ends: Mapping[str, float] | None) -> str:
    """Where the circuit lies between its two ends, with the three numbers."""
    if score.name == "ratio":
        if ends is None:
            return ", of the full model's metric"
        return (
            f": its mean {score.metric}, {number(ends['circuit'])}, is that share of the full model's, {number(ends['full'])}"
        )
    beyond = ", past the full model" if value > OVERSHOOT else ", away from the full model" if _below(value) else ""
    if ends is None:
        return f", from the empty circuit (0 %) to the full model (100 %){beyond}"
    full, kept, empty = (number(float(ends[which])) for which in ("full", "circuit", "empty"))
    return (
        f": its mean {score.metric}, {kept}, lies that far from the empty circuit's {empty} to the full model's {full}{beyond}"
    )


# --- caveats ----------------------------------------------------------------------------------------------------------


def _size_caveats(scores: Scores, heads: bool) -> Iterator[str]:
    if heads and scores.circuit_heads == 0:
        yield "No head is kept: the circuit is the one that faithfulness is measured from, embeddings and MLPs alone."
    elif not heads and scores.circuit_edges == 0:
        yield EMPTY
    elif scores.circuit_heads == scores.graph_heads if heads else scores.circuit_edges == scores.graph_edges:
        yield "The circuit is the whole graph: nothing was cut, so that its scores say nothing of a circuit."


def circuit_caveats(circuit: Circuit) -> Iterator[str]:
    """What the circuit itself shows: no edges, fewer than were asked for, or some that lead nowhere; then its notes."""
    if circuit.granularity == "edge" and circuit.n_edges == 0:
        yield EMPTY
    yield from _asked(circuit)
    n_live = circuit.prune().n_edges
    if circuit.granularity == "edge" and circuit.n_edges:
        if circuit.prune(unreached=True).n_edges == 0:
            yield (
                "No path of kept edges leads from an embedding to the logits: nothing of the clean prompt reaches them through "
                "the circuit."
            )
        elif n_live < circuit.n_edges:
            yield (
                f"{circuit.n_edges - n_live:,} of its {circuit.n_edges:,} edges have no path to the logits: without them the "
                "circuit does the same."
            )
    yield from as_sentences(circuit.provenance.notes)


def _asked(circuit: Circuit) -> Iterator[str]:
    """A search for a number of edges may end with fewer."""
    settings = circuit.provenance.settings
    if settings.get("target") is not None or "start" in settings:  # the size is a result
        return
    edges, fraction = settings.get("edges"), settings.get("fraction")
    if isinstance(edges, int) and not isinstance(edges, bool):
        asked, words = edges, f"edges={edges}"
    elif edges is None and isinstance(fraction, float):
        asked, words = math.ceil(fraction * circuit.graph.n_edges), f"fraction={fraction:g}"
    else:
        return
    if circuit.granularity == "edge" and circuit.n_edges < asked:
        pruned = ": chosen edges that have no path to the logits were left out" if "grow" in settings else ""  # see Selection
        yield f"{words} asks for {asked:,} edges, and the circuit has {circuit.n_edges:,}{pruned}."


def _value_caveats(scores: Scores, score: Score, value: float) -> Iterator[str]:
    whole = scores.circuit_edges == scores.graph_edges
    if value > OVERSHOOT:
        yield "More than 100 % is no merit: the circuit moves the metric farther than the full model does."
    if _below(value) and score.name == "ratio":
        yield "Less than 0 %: the circuit's metric has the other sign than the full model's."
    elif _below(value):
        yield "Less than 0 %: the circuit lies on the far side of the empty circuit."
    if not is_number(score.low) or not is_number(score.high):
        yield "No interval was computed for this value."
    elif float(score.low or 0.0) <= 0 < value and score.name == "faithfulness":
        yield "The interval reaches 0 %: the circuit is not clearly nearer to the full model than the empty one is."
    yield from _end_caveats(score, _ends(scores, score))
    if not whole:
        values = defined(score.controls)
        doing = "come at least as near to 100 %"
        yield from chance_caveats(RANDOM_CIRCUITS, doing, score.controls, as_near(value, values), score.matched)
    yield from _accuracy_caveats(scores, score.split, value)
    yield from _outdone_caveats(scores, score.split)


def _end_caveats(score: Score, ends: Mapping[str, float] | None) -> Iterator[str]:
    """What is odd about the two ends that faithfulness lies between."""
    if ends is None or score.name != "faithfulness":
        return
    full, empty = float(ends["full"]), float(ends["empty"])
    if full < empty:
        yield (
            f"The full model's mean {score.metric}, {number(full)}, lies below the empty circuit's, {number(empty)}: with "
            "everything cut the metric is higher, so that to be near the full model is not to do the task."
        )
    elif full - empty < _LITTLE * abs(full):
        yield (
            f"Cutting everything takes away little: the mean {score.metric} goes from {number(full)} to {number(empty)}, and "
            "shares of so small a step say little."
        )


def _accuracy_caveats(scores: Scores, split: str, value: float) -> Iterator[str]:
    """Top-1 accuracy and pair accuracy tell other things than the metric, and than each other."""
    by_name = {score.name: score for score in scores.scores if score.split == split and is_number(score.value)}
    full, full_pair = by_name.get("full_accuracy"), by_name.get("full_pair_accuracy")
    if full is not None and float(full.value or 0.0) < _MANY_RIGHT:
        pairs = f", and a right answer lies above every wrong one on {_of(full_pair)}" if full_pair is not None else ""
        yield (
            f"The full model's most likely token of the whole vocabulary is right on {_of(full)} of the examples{pairs}: read "
            "accuracy and pair accuracy against that."
        )
    names = {"accuracy": "The most likely token is right", "pair_accuracy": "A right answer lies above every wrong one"}
    for name, words in names.items():
        mine, whole = by_name.get(name), by_name.get(f"full_{name}")
        if mine is None or whole is None or not is_number(mine.high) or not is_number(whole.low):
            continue
        if value > _MANY_RIGHT and float(mine.high or 0.0) < float(whole.low or 0.0):
            yield f"{words} on {_of(mine)} of the examples with the circuit, on {_of(whole)} with the full model."


def _outdone_caveats(scores: Scores, split: str) -> Iterator[str]:
    """A circuit may come near in the metric and yet do worse than chance in another score: below most of its controls."""
    for score in scores.scores:
        if score.split != split or score.name not in _SIGNS or not is_number(score.value):
            continue
        values = defined(score.controls)
        sign = _SIGNS[score.name]
        n_better = sum(sign * control > sign * float(score.value or 0.0) for control in values)
        if n_better > len(values) / 2:
            yield (
                f"Chance outdoes the circuit in {score.name}: {n_better:,} of {len(values):,} {RANDOM_CIRCUITS} are "
                f"{'above' if sign > 0 else 'below'} the circuit's {_of(score)} (their median: "
                f"{score_value(score.name, median(values))})."
            )


def _of(score: Score) -> str:
    return score_value(score.name, score.value)


def _split_caveats(scores: Scores, score: Score) -> Iterator[str]:
    """Does the circuit do otherwise on the examples of the search?"""
    if score.split != "heldout":
        yield "There are no held-out examples: these are search examples, which a circuit may fit by chance."
        return
    try:
        train = scores.get(score.name, "train")
    except KeyError:
        return
    ends = (train.low, train.high, score.low, score.high)
    if not all(is_number(each) for each in (train.value, score.value, *ends)) or within_noise(train) or within_noise(score):
        return
    train_low, train_high, low, high = (float(end or 0.0) for end in ends)
    if train_low <= high and low <= train_high:
        return
    far, here = (abs(1 - float(each.value or 0.0)) for each in (train, score))
    which = "nearer to" if far < here else "farther from" if far > here else "as far from"
    yield (
        f"On the {train.n:,} search examples the circuit lies {which} 100 %: {score.name} {percent(train.value)} "
        f"{span(score.name, train_low, train_high)}, whose interval does not overlap with this one."
    )
