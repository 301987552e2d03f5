"""What drift along a ladder looks like: in words and tables, and as maps of all heads, one for each checkpoint."""

import numpy as np

from circuitdisc.checkpoints.drift import Drift
from circuitdisc.pages.description import Description, Section, cell, describe
from circuitdisc.pages.heads_figures import head_map
from circuitdisc.pages.page import picture
from circuitdisc.pages.verdict import Verdict, few_caveats, may_be_zero
from circuitdisc.results import Row
from circuitdisc.wording import SPLIT_WORDS, interval, intervals_over, number

_MAP = "Layers are rows, heads are columns. Point at a cell to read the head's name and value."


@describe.register
def _(drift: Drift) -> Description:
    rows = drift.by_checkpoint()
    column = f"attention {drift.query} to {drift.key}"
    first, last = rows[0], rows[-1]
    lead = [
        f"On {drift.n:,} {SPLIT_WORDS[drift.split]}, mean attention of all heads from '{drift.query}' to '{drift.key}' goes "
        f"from {_interval(first, column)} in {first['checkpoint']} to {_interval(last, column)} in {last['checkpoint']}.",
        _most_changed(drift),
        f"Changes are against the {'first checkpoint' if drift.against == 'first' else 'checkpoint before'}; outputs are "
        f"compared at {'all tokens' if drift.at == 'all' else drift.at}.",
    ]
    sections = [
        Section(
            "Checkpoints",
            rows,
            f"Attention: mean over heads and examples; {intervals_over(drift.over)}. Roles: how many heads hold them "
            f"(attention above {drift.roles[0].threshold:g} in more than {drift.roles[0].min_share:.0%} of the examples)",
        )
    ]
    for place, name in enumerate(drift.checkpoints):
        sections += _checkpoint(drift, place, name)
    return Description(Verdict(tuple(lead), (*_change_caveats(drift), *few_caveats(drift.n))), tuple(sections))


def _interval(row: Row, column: str) -> str:
    return f"{cell(row[column])} {interval(row['low'], row['high'])}"


def _most_changed(drift: Drift) -> str:
    row = drift.table()[0]
    return (
        f"In {drift.checkpoints[-1]} {row['head']} has changed most in what it adds to the logit difference: by "
        f"{cell(row['change'])} {interval(row['change low'], row['change high'])}, to {cell(row['adds'])}."
    )


def _change_caveats(drift: Drift) -> tuple[str, ...]:
    """Whether the largest change is one."""
    rows = drift.table()
    clear = [row["head"] for row in rows if not may_be_zero(row["change low"], row["change high"])]
    if not clear:
        return ("No head's change of what it adds is clear: the interval of each holds 0.",)
    if clear[0] == rows[0]["head"]:
        return ()
    return (
        f"The interval of {rows[0]['head']}'s change holds 0; of those whose interval does not, {clear[0]} has the largest.",
    )


def _checkpoint(drift: Drift, place: int, name: str) -> list[Section]:
    """The maps of one checkpoint, and for all but the first the table of changes."""
    reference = drift.references[place]
    attention = drift.attention[place].mean(-1)
    sections = [
        _map(
            f"{name}: attention", f"attention-{place}", attention, f"Attention from {drift.query} to {drift.key}.", largest=1.0
        )
    ]
    if reference is None:
        return sections
    attended, added = (drift.change(values)[place].mean(-1) for values in (drift.attention, drift.attribution))
    against = f"{name} minus {reference}"
    sections.append(
        _map(f"{against}: attention", f"attention-change-{place}", attended, "Difference of attention.", signed=True)
    )
    sections.append(
        _map(
            f"{against}: attribution",
            f"attribution-{place}",
            added,
            "Change of what a head adds to the logit difference.",
            True,
        )
    )
    rows: list[Row] = drift.table(place)
    note = (
        "adds: to the logit difference; qk, ov moved: change of W_Q W_K^T and of W_V W_O relative to the reference's; cosine: "
        f"of what the head writes in both; {intervals_over(drift.over)}"
    )
    moved = np.nanmax(np.stack([drift.weights["qk"][place], drift.weights["ov"][place]]))
    sections.append(Section(f"{against}: heads", rows, f"{note}. Largest relative change of weights: {number(float(moved))}"))
    return sections


def _map(title: str, name: str, values: np.ndarray, words: str, signed: bool = False, largest: float | None = None) -> Section:
    shown = picture(name, head_map(values, signed=signed, largest=largest), f"{title}. The table has the numbers.")
    return Section(title, picture=shown, caption=f"{words} {_MAP}")
