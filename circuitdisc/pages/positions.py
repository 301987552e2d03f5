"""Positions on the page and in the verdict: at which spans of a prompt a circuit needs its edges."""

from collections.abc import Iterator

import numpy as np

from circuitdisc.pages.backups import forwards_words
from circuitdisc.pages.scores.base import Part, brackets, named, of_words, valued
from circuitdisc.pages.verdict import MARGIN, Verdict, few_caveats, may_be_zero
from circuitdisc.positioned.positions import (
    BY_UNIT,
    EVERYWHERE,
    OWN,
    PLAIN_EDGES,
    PLAIN_UNITS,
    POSITIONED,
    SLACK,
    JudgedSize,
    OnCheckpoint,
    Positions,
)
from circuitdisc.scoring.chance import as_near, chance_caveats, defined
from circuitdisc.wording import percent, share, span

SENDERS = 40
"""Senders that are shown."""
_NAMES = {
    POSITIONED: "positioned, by exact search",
    OWN: "the run's own, at all spans",
    EVERYWHERE: "the same edges at all spans",
    BY_UNIT: "best units by attribution",
    PLAIN_UNITS: "best edges at all spans, as many units",
    PLAIN_EDGES: "best edges at all spans, as many edges",
}
_KINDS = {"other heads": "the same wiring between other heads", "other spans": "the same edges at other spans"}


def positions_parts(result: Positions) -> list[Part]:
    """The circuits side by side, who sends at which span, and other checkpoints."""
    parts = [_circuits_part(result), _senders_part(result)]
    if result.checkpoints:
        headers = ("Checkpoint", "n", "Positioned", "The run's own", "Positioned nearer by")
        caption = "Faithfulness of both circuits on other checkpoints; each with an ablation of its own examples"
        parts.append(Part("Positions: other checkpoints", "", (), headers, tuple(map(_there, result.checkpoints)), caption))
    return parts


def _circuits_part(result: Positions) -> Part:
    of = of_words(result.n, "heldout", result.metric, result.ablation, result.confidence, result.method)
    proposed = "" if result.start == "circuit" else f", proposed by {result.ranking} of {result.n_possible:,}"
    lines = (
        f"Spans: {', '.join(result.spans.names)}; answers are read at {', '.join(result.spans.read)}.",
        f"A unit is an edge at a span. {result.n_tried:,} units were tried{proposed}, in {result.n_tests:,} exact tests: what "
        f"is kept has from {percent(result.keep)} to {percent(2 - result.keep)} of the gap between empty circuit and full "
        f"model on {result.n_search:,} search examples, and no single unit of it can be cut.",
        f"Forward passes of a prompt: {forwards_words(result.forwards)}.",
    )
    rows = [_row(each) for each in result.circuits]
    rest = valued("faithfulness", result.rest, result.rest_low, result.rest_high)
    rows.append(("the model without positioned", "–", "–", rest, "–", "–"))
    for kind, values in result.random.items():
        drawn = defined(values)
        between = f"{percent(min(drawn))} to {percent(max(drawn))}" if drawn else "–"
        size = result.named(POSITIONED)
        rows.append((f"{len(values):,} random: {_KINDS.get(kind, kind)}", f"{size.n_units:,}", "–", between, "–", "–"))
    headers = ("Circuit", "Units", "Edges", "Faithfulness", "On search examples", "Positioned nearer by")
    caption = (
        "Sizes are without what no answer can see. Nearer by: of the gap between empty circuit and full model, paired; above 0 "
        "the positioned circuit lies nearer the full model"
    )
    return Part("Positions", of, lines, headers, tuple(rows), caption)


def _row(each: JudgedSize) -> tuple[str, ...]:
    sizes = _NAMES.get(each.name, each.name), f"{each.n_units:,}", f"{each.n_edges:,}"
    values = valued("faithfulness", each.faithfulness, each.low, each.high)
    searched = valued("faithfulness", each.searched, each.searched_low, each.searched_high)
    return *sizes, values, searched, "–" if each.name == POSITIONED else _nearer_words(each)


def _nearer_words(each: JudgedSize | OnCheckpoint) -> str:
    return valued("faithfulness", each.nearer, each.nearer_low, each.nearer_high)


def _there(each: OnCheckpoint) -> tuple[str, ...]:
    own = valued("faithfulness", each.plain, each.plain_low, each.plain_high)
    return (
        each.checkpoint,
        f"{each.n:,}",
        valued("faithfulness", each.positioned, each.low, each.high),
        own,
        _nearer_words(each),
    )


def _senders_part(result: Positions) -> Part:
    """How many edges each sender feeds at each span."""
    circuit = result.circuit
    sent = circuit.mask.sum(1).T  # [S, P]
    busy, used = np.flatnonzero(sent.any(1)), np.flatnonzero(sent.any(0))
    silent = [name for name, n in zip(result.spans.names, sent.sum(0), strict=True) if not n]
    shown = np.sort(busy[np.argsort(-sent[busy].sum(1), kind="stable")][:SENDERS])
    rows = [
        (circuit.graph.senders[sender].name, *(f"{n:,}" if n else "–" for n in sent[sender, used].tolist())) for sender in shown
    ]
    rows.append(("all", *(f"{n:,}" for n in sent.sum(0)[used].tolist())))
    some = f"; the {SENDERS} of {len(busy):,} that feed most" if len(busy) > SENDERS else ""
    caption = f"Edges that each sender feeds at each span{some}{f'; none at {named(silent, 20)}' if silent else ''}"
    headers = ("Sender", *(result.spans.names[index] for index in used))
    return Part("Positions: who sends where", "", (), headers, tuple(rows), caption)


# --- the verdict ----------------------------------------------------------------------------------------------------------


def positions_verdict(result: Positions) -> Verdict:
    """Whether positions pay."""
    return Verdict(tuple(_lines(result)), tuple(_caveats(result)))


def _lines(result: Positions) -> Iterator[str]:
    found, own = result.named(POSITIONED), result.named(OWN)
    whose = "of the run's circuit" if result.start == "circuit" else "of the model that were tried"
    values, beside = (valued("faithfulness", each.faithfulness, each.low, each.high) for each in (found, own))
    spans_each = f"{found.n_units / max(1, found.n_edges):.1f} of {len(result.spans)} spans each"
    yield (
        f"Of the {result.n_tried:,} units (edges at spans) {whose}, {found.n_units:,} are kept "
        f"({share(found.n_units, result.n_tried)}; {found.n_edges:,} edges, at {spans_each}): faithfulness {values} on "
        f"{result.n:,} held-out examples, the run's circuit {beside}."
    )
    units, plain = result.named(BY_UNIT), result.named(PLAIN_UNITS)
    between = brackets(span("faithfulness", result.traded_low, result.traded_high))
    yield (
        f"{_pays(result.traded_low, result.traded_high)}: by attribution alone, the best {units.n_units:,} units have a "
        f"faithfulness of {percent(units.faithfulness)}, the best edges at all spans with no more units ({plain.n_units:,}) "
        f"{percent(plain.faithfulness)}; they lie {percent(result.traded)}{between} of the gap nearer the full model."
    )
    edges = result.named(PLAIN_EDGES)
    yield (
        f"As many edges at all spans, the best by attribution ({edges.n_edges:,} edges, {edges.n_units:,} units), have "
        f"{percent(edges.faithfulness)}: the positioned circuit is {_beside(edges)}."
    )
    for each in result.checkpoints:
        yield f"On {each.checkpoint} it has {_there(each)[2]}, the run's circuit {_there(each)[3]}."


def _pays(low: float | None, high: float | None) -> str:
    """What a difference says, from its interval."""
    if may_be_zero(low, high) or max(abs(low or 0.0), abs(high or 0.0)) < MARGIN:  # what rounding leaves is none
        return "With as many units, positions make no clear difference"
    return "With as many units, positions pay" if float(low or 0.0) > 0 else "With as many units, positions cost"


def _beside(other: JudgedSize) -> str:
    """`nearer the full model by 16 % [8 %, 24 %] of the gap`."""
    if may_be_zero(other.nearer_low, other.nearer_high):
        return f"not clearly nearer the full model (by {_nearer_words(other)} of the gap)"
    if float(other.nearer_low or 0.0) > 0:
        return f"nearer the full model (by {_nearer_words(other)} of the gap)"
    return f"farther from the full model (by {_farther_words(other)} of the gap)"


def _farther_words(other: JudgedSize) -> str:
    turned = (None if value is None else -value for value in (other.nearer, other.nearer_high, other.nearer_low))
    return valued("faithfulness", *turned)


def _caveats(result: Positions) -> Iterator[str]:
    found, own = result.named(POSITIONED), result.named(OWN)
    if own.nearer_high is not None and own.nearer_high < -SLACK:
        yield (
            "On held-out examples the positioned circuit lies clearly farther from the full model than the run's, by "
            f"{_farther_words(own)} of the gap: the search has fitted its {result.n_search:,} examples; give it more (task.n)."
        )
    if result.start == "graph" and result.n_tried < result.n_possible:
        yield (
            f"{result.ranking} proposed {result.n_tried:,} of {result.n_possible:,} units; the others were cut on the estimate "
            "alone, and never tried."
        )
    if not found.n_units:
        yield "No unit is kept: the positioned circuit is the empty one."
    for kind, values in result.random.items():
        value, drawn = found.faithfulness, defined(values)
        if value is not None:
            who = f"random circuits with {_KINDS.get(kind, kind)}"
            yield from chance_caveats(who, "come at least as near to 100 %", values, as_near(value, drawn))
    if result.rest is not None and result.rest > 1 / 2:
        yield f"The model without these units still has {percent(result.rest)}: others do the task, too."
    yield from few_caveats(result.n)
