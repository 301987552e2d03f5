"""What drift along a ladder looks like: in words and tables, and as maps of all heads, one for each checkpoint."""

import numpy as np

from circuitdisc.checkpoints.drift import Drift
from circuitdisc.pages.description import Description, Section, cell, describe
from circuitdisc.pages.heads_figures import head_map
from circuitdisc.pages.page import picture
from circuitdisc.pages.verdict import Verdict, few_caveats, may_be_zero
from circuitdisc.results import Row
from circuitdisc.wording import SPLIT_WORDS, intervals_over, number

_MAP = "Layers are rows, heads are columns. Point at a cell to read the head's name and value."


@describe.register
def _(found: Drift) -> Description:
    rows = found.by_checkpoint()
    column = f"attention {found.query} to {found.key}"
    first, last = rows[0], rows[-1]
    lead = [
        f"On {found.n:,} {SPLIT_WORDS[found.split]}, mean attention of all heads from '{found.query}' to '{found.key}' goes "
        f"from {_interval(first, column)} in {first['checkpoint']} to {_interval(last, column)} in {last['checkpoint']}.",
        _most_changed(found),
        f"Changes are against the {'first checkpoint' if found.against == 'first' else 'checkpoint before'}; outputs are "
        f"compared at {'all tokens' if found.at == 'all' else found.at}.",
    ]
    sections = [
        Section(
            "Checkpoints",
            rows,
            f"Attention: mean over heads and examples; {intervals_over(found.over)}. Roles: how many heads hold them "
            f"(attention above {found.roles[0].threshold:g} in more than {found.roles[0].min_share:.0%} of the examples)",
        )
    ]
    for place, name in enumerate(found.checkpoints):
        sections += _checkpoint(found, place, name)
    return Description(Verdict(tuple(lead), (*_change_caveats(found), *few_caveats(found.n))), tuple(sections))


def _interval(row: Row, column: str) -> str:
    return f"{cell(row[column])} ({cell(row['low'])} to {cell(row['high'])})"


def _most_changed(found: Drift) -> str:
    row = found.table()[0]
    return (
        f"In {found.checkpoints[-1]} {row['head']} has changed most in what it adds to the logit difference: by "
        f"{cell(row['change'])} ({cell(row['change low'])} to {cell(row['change high'])}), to {cell(row['adds'])}."
    )


def _change_caveats(found: Drift) -> tuple[str, ...]:
    """Whether the largest change is one."""
    rows = found.table()
    clear = [row["head"] for row in rows if not may_be_zero(row["change low"], row["change high"])]
    if not clear:
        return ("No head's change of what it adds is clear: the interval of each holds 0.",)
    if clear[0] == rows[0]["head"]:
        return ()
    return (
        f"The interval of {rows[0]['head']}'s change holds 0; of those whose interval does not, {clear[0]} has the largest.",
    )


def _checkpoint(found: Drift, place: int, name: str) -> list[Section]:
    """The maps of one checkpoint, and for all but the first the table of changes."""
    reference = found.references[place]
    attention = found.attention[place].mean(-1)
    sections = [
        _map(
            f"{name}: attention", f"attention-{place}", attention, f"Attention from {found.query} to {found.key}.", largest=1.0
        )
    ]
    if reference is None:
        return sections
    attended, added = (found.change(values)[place].mean(-1) for values in (found.attention, found.attribution))
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
    rows: list[Row] = found.table(place)
    note = (
        "adds: to the logit difference; qk, ov moved: change of W_Q W_K^T and of W_V W_O relative to the reference's; cosine: "
        f"of what the head writes in both; {intervals_over(found.over)}"
    )
    moved = np.nanmax(np.stack([found.weights["qk"][place], found.weights["ov"][place]]))
    sections.append(Section(f"{against}: heads", rows, f"{note}. Largest relative change of weights: {number(float(moved))}"))
    return sections


def _map(title: str, name: str, values: np.ndarray, words: str, signed: bool = False, largest: float | None = None) -> Section:
    shown = picture(name, head_map(values, signed=signed, largest=largest), f"{title}. The table has the numbers.")
    return Section(title, picture=shown, caption=f"{words} {_MAP}")
