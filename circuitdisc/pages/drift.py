"""What drift along a ladder looks like: in words, as curves along the checkpoints, and in tables."""

import numpy as np

from circuitdisc.checkpoints.drift import Drift
from circuitdisc.engine.measuring import mean_intervals
from circuitdisc.pages.curves import FOLLOWED, Line, ladder_curves
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
    sections[1:1] = _curves(drift)
    sections += [_changes(drift, place) for place in range(len(drift.checkpoints)) if drift.references[place] is not None]
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


def _curves(drift: Drift) -> list[Section]:
    """What is followed along the ladder, as figures, and where the changes of the last checkpoint are."""
    rows, attended = drift.by_checkpoint(), drift.attention_means
    added = drift.attribution.mean(-1)
    low, high = mean_intervals(drift.attribution, drift.over, drift.confidence, drift.seed)
    mean = Line(
        "mean of all heads",
        [row[f"attention {drift.query} to {drift.key}"] for row in rows],
        [row["low"] for row in rows],
        [row["high"] for row in rows],
    )
    attention = [mean, *_lines(drift, attended["mean"], attended["low"], attended["high"])]
    last, reference = drift.checkpoints[-1], drift.references[-1]
    roles = [Line(role, [row[role] for row in rows]) for role in drift.roles[0].roles]
    figures = {
        "attention": ladder_curves(drift.checkpoints, attention, f"attention {drift.query} to {drift.key}", share=True),
        "attribution": ladder_curves(drift.checkpoints, _lines(drift, added, low, high), "added to the logit difference"),
        "roles": ladder_curves(drift.checkpoints, roles, "heads that hold the role"),
        "change": head_map(drift.change(drift.attribution)[-1].mean(-1), signed=True),
    }
    followed = f"The {min(FOLLOWED, len(drift.heads))} heads that change most along the ladder, with their intervals"
    titles = {
        "attention": ("Attention along the ladder", f"Attention from {drift.query} to {drift.key}. {followed}."),
        "attribution": ("What heads add, along the ladder", f"What each adds to the logit difference. {followed}."),
        "roles": ("Roles along the ladder", "How many heads hold each role."),
        "change": (f"{last} minus {reference}", f"Change of what a head adds to the logit difference. {_MAP}"),
    }
    return [
        Section(title, picture=picture(name, figures[name], f"{title}; the tables have the numbers."), caption=caption)
        for name, (title, caption) in titles.items()
    ]


def _lines(drift: Drift, *values: np.ndarray) -> list[Line]:
    """Lines of the heads whose mean changes most along the ladder, the largest change first.

    Args:
        values: means and the ends of their intervals. [C, L, H]
    """
    by_head = [each.reshape(len(drift.checkpoints), -1) for each in values]
    largest = np.argsort(-np.ptp(by_head[0], axis=0), kind="stable")[:FOLLOWED]
    return [Line(drift.heads[h], *(each[:, h].tolist() for each in by_head)) for h in largest.tolist()]


def _changes(drift: Drift, place: int) -> Section:
    """The heads of a checkpoint beside those of its reference."""
    note = (
        "adds: to the logit difference; qk, ov moved: change of W_Q W_K^T and of W_V W_O relative to the reference's; cosine: "
        f"of what the head writes in both; {intervals_over(drift.over)}"
    )
    moved = np.nanmax(np.stack([drift.weights["qk"][place], drift.weights["ov"][place]]))
    title = f"{drift.checkpoints[place]} minus {drift.references[place]}: heads"
    return Section(title, drift.table(place), f"{note}. Largest relative change of weights: {number(float(moved))}")
