"""Redundancy on the page and in the verdict: which parts back each other up."""

from collections.abc import Iterator, Mapping, Sequence

from circuitdisc.certainty.backups import Backups, JudgedPair
from circuitdisc.pages.scores.base import Part, brackets, named, of_words, valued
from circuitdisc.pages.verdict import Verdict, few_caveats
from circuitdisc.scoring.completeness import Gap
from circuitdisc.wording import number, percent, span

_NAMED = 3  # backups that the verdict names


def backups_part(result: Backups) -> Part:
    """The pairs that were judged, random ones beside them, and the gaps between circuit and model without pairs."""
    growths = result.growths
    lines = (
        f"Of all {result.n_pairs:,} pairs the growth on {result.n_search:,} search examples has median "
        f"{number(growths['median'])}, 95th percentile {number(growths['high'])} and maximum {number(growths['most'])}; "
        f"the bar is {number(result.bar)}, {percent(result.least)} of the way from the empty circuit to the model.",
        gap_sentence(result.gaps),
        f"Forward passes of a prompt: {forwards_words(result.forwards)}.",
    )
    headers = ("Part", "Without", "Its effect", "Its effect without", "Growth", "p", "Backup")
    n_parts = len(result.parts)
    rows = tuple(_row(pair, n_parts) for pair in (*result.pairs, *result.random))
    caption = (
        "Effect: what the metric falls by when the part is ablated. The pairs were chosen on the search examples; p is "
        "corrected for their number, and random pairs have none"
    )
    of = of_words(result.n, "heldout", result.metric, result.ablation, result.confidence, result.method)
    return Part("Redundancy", of, tuple(line for line in lines if line), headers, rows, caption)


def _row(pair: JudgedPair, n_parts: int) -> tuple[str, ...]:
    growth = valued("", pair.growth, pair.growth_low, pair.growth_high)
    p = "random pair" if pair.p is None else number(pair.p)
    return pair.part, _others(pair.others, n_parts), *_effects(pair), growth, p, "yes" if pair.backup else "no"


def _effects(pair: JudgedPair) -> tuple[str, str]:
    """The part's effect in the full model, and without the others."""
    alone = valued("", pair.effect, pair.effect_low, pair.effect_high)
    return alone, valued("", pair.without, pair.without_low, pair.without_high)


def _others(others: Sequence[str], n_parts: int) -> str:
    """One part by its name, all of the circuit's by their number."""
    return f"all {n_parts} heads of the circuit" if len(others) == n_parts > 1 else named(others)


def gap_sentence(gaps: Sequence[Gap]) -> str:
    """The largest gap between circuit and model without a pair, beside that without nothing; nothing without pairs."""
    nothing, *pairs = gaps
    if not pairs:
        return ""
    worst = max(pairs, key=lambda gap: gap.value)
    return (
        f"Completeness: without {worst.name} circuit and model lie {number(worst.value)}"
        f"{brackets(span('', worst.low, worst.high))} apart, the largest gap of a pair; with all parts {number(nothing.value)}"
        f"{brackets(span('', nothing.low, nothing.high))}."
    )


def forwards_words(forwards: Mapping[str, float | None]) -> str:
    """`1,200 (pairs), 300 (judgement), 1.7 times the run's own search`."""
    spent = {name: value for name, value in forwards.items() if name != "own search" and value is not None}
    own = forwards.get("own search")
    beside = "the run's own search took an unknown number" if own is None else "the run's own search ran nothing"
    beside = f"{number(sum(spent.values()) / own)} times the run's own search" if own else beside
    return ", ".join([*(f"{value:,.0f} ({name})" for name, value in spent.items()), beside])


def backups_verdict(result: Backups) -> Verdict:
    """Which parts are backed up, by which."""
    return Verdict(tuple(_lines(result)), tuple(_caveats(result)))


def _lines(result: Backups) -> Iterator[str]:
    backups, tried = result.backed_up, f"{result.n_pairs:,} pair{'s' * (result.n_pairs != 1)}"
    if not backups:
        yield f"No backup found among {tried}."
    for pair in backups[:_NAMED]:
        others = _others(pair.others, len(result.parts)).replace("all ", "All ", 1)
        alone, later = _effects(pair)
        several = len(pair.others) > 1
        gone = "they are" if several else f"{others} is"
        yield (
            f"{others} {'are' if several else 'is'} backed up by {pair.part}: the effect of {pair.part} grows from {alone} to "
            f"{later} once {gone} ablated."
        )
    if len(backups) > _NAMED:
        yield f"{len(backups):,} of {tried} back each other up; the table has them."
    if random := [pair.growth for pair in result.random]:
        yield f"Of {len(random)} random pairs the growth lies between {number(min(random))} and {number(max(random))}."


def _caveats(result: Backups) -> Iterator[str]:
    if result.bounded:
        yield (
            f"Metric {result.metric} has a ceiling: below it effects that only add up grow, too, when others are gone. "
            "logit_diff has none."
        )
    if result.backed_up and result.growths["median"] > result.bar:
        yield "Most pairs grow by more than the bar: what is named here is then no property of these pairs alone."
    yield from few_caveats(result.n)
