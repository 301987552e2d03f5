"""The baseline table of checkpoints, in words, for the terminal and as a page."""

from circuitdisc.checkpoints.baselines import FIGURES, Baselines, Figure
from circuitdisc.checkpoints.evaluation_sets import HELDOUT
from circuitdisc.pages.curves import Line, ladder_curves
from circuitdisc.pages.description import Description, Section, describe
from circuitdisc.pages.page import picture
from circuitdisc.pages.verdict import Verdict, few_caveats
from circuitdisc.results import Row
from circuitdisc.wording import ACCURACIES, interval, number, percent


@describe.register
def _(baselines: Baselines) -> Description:
    last = baselines.get(baselines.checkpoints[-1])
    ends = tuple(dict.fromkeys((baselines.checkpoints[0], last.checkpoint)))
    measured = {figure.name for figure in baselines.figures if figure.on == HELDOUT}
    lead = [
        f"On {last.n:,} held-out examples of {baselines.task} {words} in "
        + ", ".join(f"{_percent(baselines.get(name, kind))} of them for {name}" for name in ends)
        + f" ({FIGURES[kind]})."
        for kind, words in ACCURACIES.items()
        if kind in measured
    ]
    methods = dict.fromkeys(figure.method for figure in baselines.figures if figure.on == HELDOUT and figure.method)
    lead.append(f"Intervals: {baselines.confidence:.0%}, {'; '.join(methods) or 'none'}. Log-probabilities in nats.")
    curves = [_curves(baselines)] if len(baselines.checkpoints) > 1 else []
    title = {HELDOUT: f"Held-out examples of {baselines.task}"}
    sections = curves + [
        Section(title.get(on, on.capitalize()), _rows(baselines, on), f"{words[0].upper()}{words[1:]}.")
        for on, words in baselines.sets.items()
    ]
    if len(baselines.sets) > 1:
        sections.append(
            Section("Correct on every set", _correct(baselines), "Share of examples whose most likely token is right.")
        )
    return Description(Verdict(tuple(lead), tuple(few_caveats(last.n))), tuple(sections))


def _rows(baselines: Baselines, on: str) -> list[Row]:
    rows: list[Row] = []
    for checkpoint in baselines.checkpoints:
        mine = [figure for figure in baselines.figures if (figure.checkpoint, figure.on) == (checkpoint, on)]
        row: Row = {"checkpoint": checkpoint, **{FIGURES[figure.name]: _shown(figure) for figure in mine}}
        rows.append({**row, "n": mine[0].n})
    return rows


def _correct(baselines: Baselines) -> list[Row]:
    return [
        {"checkpoint": name, **{on: _shown(baselines.get(name, on=on)) for on in baselines.sets}}
        for name in baselines.checkpoints
    ]


def _percent(figure: Figure) -> str:
    return f"{percent(figure.value)} {interval(figure.low, figure.high, percent)}"


def _shown(figure: Figure) -> str:
    words = percent if figure.name in ACCURACIES else number
    return f"{words(figure.value)} {interval(figure.low, figure.high, words)}"


def _curves(baselines: Baselines) -> Section:
    """The accuracy on every set, checkpoint by checkpoint."""
    lines = []
    for on in baselines.sets:
        figures = [baselines.get(name, on=on) for name in baselines.checkpoints]
        values, low, high = ([getattr(figure, part) for figure in figures] for part in ("value", "low", "high"))
        lines.append(Line(baselines.task if on == HELDOUT else on, values, low, high))
    figure = ladder_curves(baselines.checkpoints, lines, "accuracy", share=True)
    words = "Share of examples whose most likely token is right, with its interval."
    return Section("Along the checkpoints", picture=picture("accuracy", figure, f"{words} The tables have it."), caption=words)
