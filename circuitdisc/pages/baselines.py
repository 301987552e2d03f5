"""The baseline table of checkpoints, in words, for the terminal and as a page."""

from circuitdisc.checkpoints.baselines import FIGURES, Baselines, Figure
from circuitdisc.checkpoints.evaluation_sets import HELDOUT
from circuitdisc.pages.description import Description, Section, describe
from circuitdisc.pages.verdict import Verdict, few_caveats
from circuitdisc.results import Row
from circuitdisc.wording import ACCURACIES, number, percent


@describe.register
def _(found: Baselines) -> Description:
    last = found.get(found.checkpoints[-1])
    ends = tuple(dict.fromkeys((found.checkpoints[0], last.checkpoint)))
    measured = {one.name for one in found.figures if one.on == HELDOUT}
    lead = [
        f"On {last.n:,} held-out examples of {found.task} {words} in "
        + ", ".join(f"{_percent(found.get(name, kind))} of them for {name}" for name in ends)
        + f" ({FIGURES[kind]})."
        for kind, words in ACCURACIES.items()
        if kind in measured
    ]
    methods = dict.fromkeys(one.method for one in found.figures if one.on == HELDOUT and one.method)
    lead.append(f"Intervals: {found.confidence:.0%}, {'; '.join(methods) or 'none'}. Log-probabilities in nats.")
    title = {HELDOUT: f"Held-out examples of {found.task}"}
    sections = [
        Section(title.get(on, on.capitalize()), _rows(found, on), f"{words[0].upper()}{words[1:]}.")
        for on, words in found.sets.items()
    ]
    if len(found.sets) > 1:
        sections.append(Section("Correct on every set", _correct(found), "Share of examples whose most likely token is right."))
    return Description(Verdict(tuple(lead), tuple(few_caveats(last.n))), tuple(sections))


def _rows(found: Baselines, on: str) -> list[Row]:
    rows: list[Row] = []
    for checkpoint in found.checkpoints:
        mine = [one for one in found.figures if (one.checkpoint, one.on) == (checkpoint, on)]
        row: Row = {"checkpoint": checkpoint, **{FIGURES[one.name]: _shown(one) for one in mine}}
        rows.append({**row, "n": mine[0].n})
    return rows


def _correct(found: Baselines) -> list[Row]:
    return [{"checkpoint": name, **{on: _shown(found.get(name, on=on)) for on in found.sets}} for name in found.checkpoints]


def _percent(one: Figure) -> str:
    return f"{percent(one.value)} ({percent(one.low)} to {percent(one.high)})"


def _shown(one: Figure) -> str:
    return f"{number(one.value)} [{number(one.low)}, {number(one.high)}]"
