"""What cross-model patching found, in words, tables and figures; and what it will take, as a table."""

from collections.abc import Iterator

import numpy as np

from circuitdisc.checkpoints.attention_difference import AttentionDifference
from circuitdisc.checkpoints.cmap.result import CrossMap, CrossModel, GroupScore, Scored
from circuitdisc.engine.cross.plan import CrossPlan
from circuitdisc.pages.cmap_figures import growth_figure, layers_figure, scatter_figure
from circuitdisc.pages.description import Description, Section, describe
from circuitdisc.pages.heads_figures import head_map
from circuitdisc.pages.page import picture
from circuitdisc.pages.tables import text_table
from circuitdisc.pages.verdict import OVERSHOOT, Verdict, few_caveats, may_be_zero
from circuitdisc.results import Row
from circuitdisc.scoring.chance import chance_caveats
from circuitdisc.wording import SPLIT_WORDS, is_number, number, percent

STRONGEST = 12
_MAP = "Layers are rows, heads are columns. Point at a cell to read the head's name and value. 1 is the whole gap."
_KINDS = {
    "output": "what a head writes, with its own model's W_O",
    "value": "its value vectors",
    "query": "its queries",
    "key": "its keys",
    "pattern": "its attention pattern",
}
GIB, MIB = 2**30, 2**20


@describe.register
def _(found: CrossModel) -> Description:
    said = Verdict(())
    sections: list[Section] = []
    for at, one in enumerate(found.maps):
        said += _said(found, one)
        named = f", {one.direction.replace('_', ' ')}" if len(found.maps) > 1 else ""
        sections += _sections(found, one, f"d{at}", named) if _ranks(one) else _unranked(found, one, named)
    where = "at all tokens" if found.positions is None else f"at {', '.join(found.positions)} alone"
    how = f"Activations are taken over {where}."
    if any(_ranks(one) for one in found.maps):
        how += (
            f" A score is the share of the gap between the two models' mean {found.metric} that a patch closes; intervals: "
            f"{next(one.gap.method for one in found.maps) or 'none'}."
        )
    if found.attention is not None:
        sections.append(_attention(found.attention))
    return Description(said + Verdict((how,), tuple(few_caveats(found.n))), tuple(sections))


def _ranks(one: CrossMap) -> bool:
    """Whether there is a gap that scores can be shares of."""
    return not one.gap.undefined and not may_be_zero(*one.gap.difference[1:])


def _said(found: CrossModel, one: CrossMap) -> Verdict:
    gap, low, high = one.gap.difference
    taker, giver = (number(float(values.mean())) for values in (one.gap.taker, one.gap.giver))
    where = f"On {found.n:,} {SPLIT_WORDS[found.split]}"
    ends = f"{where} the mean {found.metric} is {taker} in {one.taker} and {giver} in {one.giver}"
    if not _ranks(one):
        why = one.gap.undefined or f"the gap, {number(gap)} ({number(low)} to {number(high)}), may be zero"
        return Verdict((f"There is nothing to rank: {why}, and every score would be a share of it. {ends}.",))
    lines, caveats = [f"{ends}: a gap of {number(gap)} ({number(low)} to {number(high)})."], []
    best = one.ranked.order[0]
    kinds = [
        f"{kind} {percent(float(unit.score.ravel()[unit.order[0]]))} ({unit.names[unit.order[0]]})"
        for kind, unit in one.maps.items()
    ]
    best_score, best_low, best_high = (
        float(values.ravel()[best]) for values in (one.ranked.score, one.ranked.low, one.ranked.high)
    )
    most = (
        "closes more of the gap by itself than any other" if best_score > 0 else "is the highest, and closes nothing of the gap"
    )
    lines.append(
        f"Of {one.giver} put into {one.taker}, {one.ranked.names[best]} {most}: {_interval(best_score, best_low, best_high)}. "
        f"Highest by kind: {'; '.join(kinds)}."
    )
    if may_be_zero(best_low, best_high):
        caveats.append(
            f"The interval of {one.ranked.names[best]}'s score holds 0, although it is the highest of "
            f"{len(one.ranked.order):,}: by itself it may close nothing."
        )
    if best_score > OVERSHOOT:
        caveats.append(
            f"More than 100 % is no merit: with {one.ranked.names[best]} patched the metric goes past {one.giver}'s."
        )
    if one.parts and found.positions is None:
        whole, heads = one.part("everything"), one.part("all heads")
        lines.append(
            f"With everything patched the metric is {number(whole.metric)}, with nothing {number(one.part('nothing').metric)}; "
            f"all heads' outputs together close {_spanned(heads)} of the gap."
        )
    for group in one.groups:
        caveats += [f"Group {group.patched.name}, {group.kind}: {text}" for text in _group_caveats(group)]
    return Verdict(tuple(lines), tuple(dict.fromkeys(caveats)))


def _group_caveats(group: GroupScore) -> Iterator[str]:
    if not len(group.random):
        return  # a group of all heads, or none were asked for
    yield from chance_caveats("random sets of heads", "score at least as high", group.random.tolist(), group.n_as_high)


def _unranked(found: CrossModel, one: CrossMap, named: str) -> Iterator[Section]:
    """What was measured, in the models' own order and without scores."""
    if one.parts:
        rows: list[Row] = [{"patched": part.name, found.metric: part.metric} for part in one.parts]
        yield Section(
            f"The model in pieces{named}", rows, f"Mean {found.metric} with each part patched. No scores: see the verdict"
        )


def _sections(found: CrossModel, one: CrossMap, name: str, named: str) -> Iterator[Section]:
    yield Section(f"Strongest heads{named}", _strongest(found, one), _note(found, one))
    largest = max(float(np.nanmax(np.abs(unit.score), initial=0.0)) for unit in one.maps.values())  # one scale for all maps
    for kind, unit in one.maps.items():
        shared = len(unit.heads[0])
        note = (
            f" Heads in groups of {shared} share a {kind} and are patched together: their cells are one score."
            if shared > 1
            else ""
        )
        shown = picture(
            f"{name}-{kind}", head_map(unit.by_head, signed=True, largest=largest), f"Score of every head, {kind} patched."
        )
        yield Section(f"{kind.capitalize()}{named}", picture=shown, caption=f"Patched: {_KINDS[kind]}. {_MAP}{note}")
    kinds = list(one.maps)
    if len(kinds) > 1:
        first, second = one.maps[kinds[0]], one.maps[kinds[1]]
        shown = picture(f"{name}-scatter", scatter_figure(first, second), "Scores of the first two kinds; the maps have them.")
        words = "A head on the dotted line does as much by the one as by the other."
        yield Section(f"{kinds[0].capitalize()} against {kinds[1]}{named}", picture=shown, caption=words)
    if one.groups:
        note = (
            "All heads of a group at once. random: median (lowest to highest) of sets with as many in each layer; as high: how "
            "many of them score at least as high"
        )
        yield Section(f"Groups{named}", [_group(group) for group in one.groups], note)
    if one.parts:
        shown = picture(f"{name}-layers", layers_figure(one.parts), "Scores by layer; the table has them.")
        rows: list[Row] = [{"patched": part.name, found.metric: part.metric, "score": _spanned(part)} for part in one.parts]
        note = "everything: embedding, all heads, all MLPs, attention biases and readout (final norm and unembedding)"
        yield Section(f"The model in pieces{named}", rows, note, shown, "")
    if one.pairs:
        pairs: list[Row] = [
            {"pair": pair.name, "score": _spanned(pair), "sum of both alone": percent(total)} for pair, total in one.pairs
        ]
        yield Section(f"Pairs{named}", pairs, f"Two of the best at once, {one.ranked.kind} patched")
    if one.growth is not None:
        shown = picture(f"{name}-growth", growth_figure(one.growth), "Score over the number of parts; the table has them.")
        rows = [_growth_row(row) for row in one.growth.table()]
        yield Section(f"More and more{named}", rows, "last: what is added last. Order: score on the search examples", shown, "")


def _note(found: CrossModel, one: CrossMap) -> str:
    words = "Share of the gap closed by the head alone, with its interval"
    if any(len(unit.heads[0]) > 1 for unit in one.maps.values()):
        words += "; in brackets the heads that are patched with it, since they share what is patched"
    if found.attention is not None:
        words += f". attention: from {found.attention.query} to where it goes most, {found.base} → {found.tuned}"
    return words


def _strongest(found: CrossModel, one: CrossMap) -> list[Row]:
    rows: list[Row] = []
    for given in found.table(one.direction, STRONGEST):
        row: Row = {"head": given["head"]}
        for kind in one.maps:
            shared = f" [{given[f'{kind} with']}]" if f"{kind} with" in given else ""
            row[kind] = _interval(given[kind], given[f"{kind} low"], given[f"{kind} high"]) + shared
        if "attention" in given:
            row["attention"] = given["attention"]
        rows.append(row)
    return rows


def _group(group: GroupScore) -> Row:
    words = "-"
    if len(group.random):
        low, middle, high = np.percentile(group.random, [0, 50, 100])
        words = f"{percent(float(middle))} ({percent(float(low))} to {percent(float(high))})"
    return {
        "group": group.patched.name,
        "patched": group.kind,
        "heads": ", ".join(group.heads) if len(group.heads) <= 8 else f"{len(group.heads)} heads",
        "score": _spanned(group.patched),
        "random": words,
        "as high": f"{group.n_as_high} of {len(group.random)}",
    }


def _growth_row(row: Row) -> Row:
    shown: Row = {"patched": row["patched"], "last": row["last"], "score": _interval(row["score"], row["low"], row["high"])}
    return shown | {name: percent(row[name]) for name in ("random median", "random highest")}


def _attention(found: AttentionDifference) -> Section:
    key = found.keys[found.largest]
    figure = head_map(found.difference[found.largest], signed=True)
    shown = picture("attention", figure, f"Difference of attention to {key} for every head; the table has it.")
    note = f"Mean attention from {found.query} to {key}, {found.n:,} prompts; difference: tuned minus base, with its interval"
    caption = f"Attention from {found.query} to {key}, tuned minus base. Layers are rows, heads are columns."
    return Section("Attention of both models", found.table()[:STRONGEST], note, shown, caption)


def _spanned(part: Scored) -> str:
    return _interval(part.score, part.low, part.high)


def _interval(score: float | None, low: float | None, high: float | None) -> str:
    if score is None or not is_number(score):
        return "undefined"
    words = percent(score)
    if low is not None and is_number(low):
        words += f" ({percent(low)} to {percent(high)})"
    return words.replace(" %", "\u00a0%")  # a percent sign stays with its number


def plan_table(plan: CrossPlan) -> str:
    """Memory, disk and passes, for the terminal."""
    rows = [
        ("memory: weights of one model", _size(plan.weights)),
        (f"memory: activations of a chunk ({len(plan.chunks)} chunks)", _size(plan.activations)),
        ("memory: kept of the other model at once", _size(plan.cache_held)),
        ("memory: peak", _size(plan.peak)),
        *((f"{plan.store}: {kind}", _size(size)) for kind, size in plan.cache.items()),
        (f"{plan.store}: weights behind them", _size(plan.given_weights)),
        (f"{plan.store}: all", _size(plan.cache_bytes)),
        *((f"plain forwards: {name}", number(float(value))) for name, value in plan.passes.items()),
        ("plain forwards: one direction, all together", number(plan.total_passes)),
    ]
    return text_table(("what", "how much"), rows, "lr")


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
