"""What `dcm` and `localised` found: in words and tables for the terminal, and as a page, framed by `pages/description.py`."""

from collections.abc import Iterator

import numpy as np

from circuitdisc.heads.dcm.result import Dcm, FoundMask
from circuitdisc.heads.localised.result import EditEffect, Localised
from circuitdisc.pages.description import Description, Section, cell, describe
from circuitdisc.pages.heads_figures import head_map
from circuitdisc.pages.page import picture
from circuitdisc.pages.verdict import Verdict, few_caveats, may_be_zero
from circuitdisc.results import Row
from circuitdisc.scoring.chance import chance_caveats
from circuitdisc.wording import interval, number, percent

_MAP = "Layers are rows, heads are columns. Point at a cell to read the head's name and value."
_KINDS = {
    "offset": "a learned vector is added to what each head carries, at every token",
    "inject": "what each head carries where the answer is read is mixed with its mean over examples, by a learned share",
    "first_token": "each head's attention to the first token is multiplied by a factor and renormalised",
}
_SHARES = {"met", "random", "random high", "all masked", "none masked", "clean answer"}
NAMED_AT_MOST = 12


@describe.register
def _(result: Dcm) -> Description:
    first = result.found[0]
    sizes = (f"{first.sizes[split]:,}" for split in ("train", "choose", "report"))
    lead = [_sentence(result, each) for each in result.found]
    lead += [
        "Masks were trained on {} examples, chosen on {} others and are reported on {} others.".format(*sizes),
        "A patched component carries what it carries on the corrupted prompt: (1 - m) x clean + m x corrupted, with masks m "
        "rounded at 0.5. met: share of the n examples on which the patched model says the target.",
    ]
    caveats = [f"{each.desideratum}: {text}" for each in result.found for text in _met_caveats(result, each)]
    caveats += few_caveats(first.patched.n)
    note = (
        f"Third split. Intervals: Wilson, {percent(result.confidence)}. random: median and highest of sets of equal size; p: "
        "share of these sets, the mask among them, that do as well. all, none masked: all components patched, or none. "
        "clean answer: share on which the patched model still gives it"
    )
    sections = [Section("Desiderata", [_narrow(row) for row in result.table()], note)]
    if result.groups:
        grouped = "Each group patched whole and alone, beside random sets of as many heads at the same positions"
        sections.append(Section("What each group carries", [_narrow(row) for row in result.group_table()], grouped))
    for each in result.found:
        shown = picture(
            f"mask-{each.desideratum}",
            head_map(result.head_map(each.desideratum), largest=None if result.over == "edge" else 1.0),
            f"Mask of every head for {each.desideratum}.",
        )
        caption = "Patched edges that leave each head." if result.over == "edge" else "Mask of every head before rounding."
        trials: list[Row] = [
            {
                "penalty": trial.penalty,
                "seed": trial.seed,
                f"{result.over}s masked": trial.size,
                "met, second split": trial.chosen_by,
                "": "chosen" if index == each.best else "",
            }
            for index, trial in enumerate(each.trials)
        ]
        chosen = "All masks that were trained, and the share of the second split on which each meets the desideratum"
        sections.append(Section(f"Mask for {each.desideratum}", trials, chosen, shown, f"{caption} {_MAP}"))
    return Description(Verdict(tuple(lead), tuple(dict.fromkeys(caveats))), tuple(sections))


def _narrow(row: Row) -> Row:
    """A line with shares as percentages and its interval as words, and without what another table has."""
    narrow: Row = {}
    for name, value in row.items():
        if name == "low":
            narrow["interval"] = interval(value, row["high"], percent)
        elif name not in ("high", "penalty"):
            narrow[name] = percent(value) if name in _SHARES and value is not None else value
    return narrow


def _sentence(result: Dcm, mask: FoundMask) -> str:
    names = list(mask.masked[:NAMED_AT_MOST])
    more = len(mask.masked) - len(names)
    what = f"{', '.join(names)}{f' and {more:,} more' if more else ''}" if names else f"no {result.over}"
    between = interval(mask.patched.low, mask.patched.high, percent)
    sentence = (
        f"{mask.desideratum}: the mask holds {what}; so patched, the model says the target on {percent(mask.patched.share)} "
        f"{between} of {mask.patched.n:,} examples, with nothing patched on {percent(mask.nothing.share)}, with all "
        f"on {percent(mask.everything.share)}"
    )
    if mask.random:
        ends = f"{percent(min(mask.random))} to {percent(max(mask.random))}"
        sentence += f"; with random sets of equal size on {ends} (median {percent(float(np.median(mask.random)))})"
    return f"{sentence}."


def _met_caveats(result: Dcm, mask: FoundMask) -> Iterator[str]:
    """Why a desideratum that is met may say nothing of the mask."""
    if not mask.masked:
        yield "The mask is empty: nothing is patched, so that what is met is met by the clean model."
        return
    if len(mask.masked) == len(mask.components):
        yield f"The mask holds every {result.over}: it tells none from any other."
    if mask.patched.share <= mask.nothing.share:
        yield "With the mask patched it is met no more often than with nothing patched."
    as_good = sum(share >= mask.patched.share for share in mask.random)
    yield from chance_caveats("random sets of equal size", "meet it at least as often", mask.random, as_good)


@describe.register
def _(result: Localised) -> Description:
    heads, first = result.edit.heads, result.effects[0]
    named = ", ".join(heads[:NAMED_AT_MOST]) + (
        f" and {len(heads) - NAMED_AT_MOST:,} more" if len(heads) > NAMED_AT_MOST else ""
    )
    lead = [f"{named}: {_KINDS[result.kind]}."]
    lead += [_effect_sentence(effect) for effect in result.effects]
    caveats = [f"{effect.metric}: {text}" for effect in result.effects for text in _effect_caveats(effect)]
    best = result.learned.best
    lead.append(
        f"Learned on {result.sizes['train']:,} examples; chosen on {result.sizes['choose']:,} others, where the mean "
        f"{first.metric} is {cell(best['chosen by'])} with the edit and {cell(result.unedited)} without one."
    )
    if float(best["chosen by"]) <= result.unedited:
        caveats.append(f"On the examples that it was chosen on, the edit does not raise the mean {first.metric}.")
    caveats += few_caveats(first.n)
    shown = picture("heads", head_map(result.head_map()), "How much each head is edited; the table has the numbers.")
    draws = len(result.controls)
    random = f"random: median and highest of {draws:,} draws of as many heads, each learned anew"
    note = f"Held-out examples, with intervals. {random}"
    norms: list[Row] = [{"head": head, "norm of its scaling": norm} for head, norm in result.norms.items()]
    parts = [
        Section("Effect", result.table(), note),
        Section("Heads", result.head_table(), "How much each head is edited", shown, _MAP),
        Section("Candidates", list(result.learned.history), "chosen by: mean metric on the second split; the highest is taken"),
    ]
    if norms:
        parts.append(Section("LoFiT's first step", norms, "Size of every head's learned scaling, largest first"))
    return Description(Verdict(tuple(lead), tuple(dict.fromkeys(caveats))), tuple(parts))


def _effect_sentence(effect: EditEffect) -> str:
    sentence = (
        f"On {effect.n:,} held-out examples {effect.metric} goes from {number(effect.before)} to {number(effect.after)}: a "
        f"change of {number(effect.difference)} {interval(effect.low, effect.high)}"
    )
    if effect.controls:
        sentence += f"; with random heads edited, of {number(min(effect.controls))} to {number(max(effect.controls))}"
    return f"{sentence}."


def _effect_caveats(effect: EditEffect) -> Iterator[str]:
    if may_be_zero(effect.low, effect.high):
        yield "The interval of the change holds 0: it may be none."
    as_good = sum(control >= effect.difference for control in effect.controls)
    yield from chance_caveats("random draws of as many heads", "raise it at least as much", effect.controls, as_good)
