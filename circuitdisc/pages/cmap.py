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
from circuitdisc.wording import SPLIT_WORDS, interval, is_number, number, percent

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
def _(result: CrossModel) -> Description:
    said = Verdict(())
    sections: list[Section] = []
    for at, cross_map in enumerate(result.maps):
        said += _said(result, cross_map)
        named = f", {cross_map.direction.replace('_', ' ')}" if len(result.maps) > 1 else ""
        sections += _sections(result, cross_map, f"d{at}", named) if _ranks(cross_map) else _unranked(result, cross_map, named)
    where = "at all tokens" if result.positions is None else f"at {', '.join(result.positions)} alone"
    how = f"Activations are taken over {where}."
    if any(_ranks(cross_map) for cross_map in result.maps):
        how += (
            f" A score is the share of the gap between the two models' mean {result.metric} that a patch closes; intervals: "
            f"{next(cross_map.gap.method for cross_map in result.maps) or 'none'}."
        )
    if result.attention is not None:
        sections.append(_attention(result.attention))
    return Description(said + Verdict((how,), tuple(few_caveats(result.n))), tuple(sections))


def _ranks(cross_map: CrossMap) -> bool:
    """Whether there is a gap that scores can be shares of."""
    return not cross_map.gap.undefined and not may_be_zero(*cross_map.gap.difference[1:])


def _said(result: CrossModel, cross_map: CrossMap) -> Verdict:
    gap, low, high = cross_map.gap.difference
    taker, giver = (number(float(values.mean())) for values in (cross_map.gap.taker, cross_map.gap.giver))
    where = f"On {result.n:,} {SPLIT_WORDS[result.split]}"
    ends = f"{where} the mean {result.metric} is {taker} in {cross_map.taker} and {giver} in {cross_map.giver}"
    if not _ranks(cross_map):
        why = cross_map.gap.undefined or f"the gap, {number(gap)} {interval(low, high)}, may be zero"
        return Verdict((f"There is nothing to rank: {why}, and every score would be a share of it. {ends}.",))
    lines, caveats = [f"{ends}: a gap of {number(gap)} {interval(low, high)}."], []
    best = _said_of_best(cross_map)
    lines, caveats = [*lines, *best.lines], [*caveats, *best.caveats]
    if cross_map.parts and result.positions is None:
        whole, heads = cross_map.part("everything"), cross_map.part("all heads")
        lines.append(
            f"With everything patched the metric is {number(whole.metric)}, with nothing "
            f"{number(cross_map.part('nothing').metric)}; "
            f"all heads' outputs together close {_spanned(heads)} of the gap."
        )
    for group in cross_map.groups:
        caveats += [f"Group {group.patched.name}, {group.kind}: {text}" for text in _group_caveats(group)]
    return Verdict(tuple(lines), tuple(dict.fromkeys(caveats)))


def _said_of_best(cross_map: CrossMap) -> Verdict:
    """The head that closes most by itself, and how sure that is."""
    if not cross_map.maps:
        return Verdict(())
    best = cross_map.ranked.order[0]
    kinds = [
        f"{kind} {percent(float(unit.score.ravel()[unit.order[0]]))} ({unit.names[unit.order[0]]})"
        for kind, unit in cross_map.maps.items()
    ]
    best_score, best_low, best_high = (
        float(values.ravel()[best]) for values in (cross_map.ranked.score, cross_map.ranked.low, cross_map.ranked.high)
    )
    most = (
        "closes more of the gap by itself than any other" if best_score > 0 else "is the highest, and closes nothing of the gap"
    )
    line = (
        f"Of {cross_map.giver} put into {cross_map.taker}, {cross_map.ranked.names[best]} {most}: "
        f"{_interval(best_score, best_low, best_high)}. "
        f"Highest by kind: {'; '.join(kinds)}."
    )
    caveats: list[str] = []
    if may_be_zero(best_low, best_high):
        caveats.append(
            f"The interval of {cross_map.ranked.names[best]}'s score holds 0, although it is the highest of "
            f"{len(cross_map.ranked.order):,}: by itself it may close nothing."
        )
    if best_score > OVERSHOOT:
        caveats.append(
            f"More than 100 % is no merit: with {cross_map.ranked.names[best]} patched the metric goes past "
            f"{cross_map.giver}'s."
        )
    return Verdict((line,), tuple(caveats))


def _group_caveats(group: GroupScore) -> Iterator[str]:
    if not len(group.random):
        return  # a group of all heads, or none were asked for
    yield from chance_caveats("random sets of heads", "score at least as high", group.random.tolist(), group.n_as_high)


def _unranked(result: CrossModel, cross_map: CrossMap, named: str) -> Iterator[Section]:
    """What was measured, in the models' own order and without scores."""
    if cross_map.parts:
        rows: list[Row] = [{"patched": part.name, result.metric: part.metric} for part in cross_map.parts]
        yield Section(
            f"The model in pieces{named}", rows, f"Mean {result.metric} with each part patched. No scores: see the verdict"
        )


def _sections(result: CrossModel, cross_map: CrossMap, name: str, named: str) -> Iterator[Section]:
    if cross_map.maps:
        yield Section(f"Strongest heads{named}", _strongest(result, cross_map), _note(result, cross_map))
    scales = [float(np.nanmax(np.abs(unit.score), initial=0.0)) for unit in cross_map.maps.values()]
    largest = max(scales, default=0.0)  # one scale for all maps
    for kind, unit in cross_map.maps.items():
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
    kinds = list(cross_map.maps)
    if len(kinds) > 1:
        first, second = cross_map.maps[kinds[0]], cross_map.maps[kinds[1]]
        shown = picture(f"{name}-scatter", scatter_figure(first, second), "Scores of the first two kinds; the maps have them.")
        words = "A head on the dotted line does as much by the one as by the other."
        yield Section(f"{kinds[0].capitalize()} against {kinds[1]}{named}", picture=shown, caption=words)
    if cross_map.groups:
        note = (
            "All heads of a group at once. random: median (lowest to highest) of sets with as many in each layer; as high: how "
            "many of them score at least as high"
        )
        yield Section(f"Groups{named}", [_group(group) for group in cross_map.groups], note)
    if cross_map.parts:
        shown = picture(f"{name}-layers", layers_figure(cross_map.parts), "Scores by layer; the table has them.")
        rows: list[Row] = [
            {"patched": part.name, result.metric: part.metric, "score": _spanned(part)} for part in cross_map.parts
        ]
        note = "everything: embedding, all heads, all MLPs, attention biases and readout (final norm and unembedding)"
        yield Section(f"The model in pieces{named}", rows, note, shown, "")
    if cross_map.pairs:
        pairs: list[Row] = [
            {"pair": pair.name, "score": _spanned(pair), "sum of both alone": percent(total)} for pair, total in cross_map.pairs
        ]
        yield Section(f"Pairs{named}", pairs, f"Two of the best at once, {cross_map.ranked.kind} patched")
    if cross_map.growth is not None:
        shown = picture(
            f"{name}-growth", growth_figure(cross_map.growth), "Score over the number of parts; the table has them."
        )
        rows = [_growth_row(row) for row in cross_map.growth.table()]
        yield Section(f"More and more{named}", rows, "last: what is added last. Order: score on the search examples", shown, "")


def _note(result: CrossModel, cross_map: CrossMap) -> str:
    words = "Share of the gap closed by the head alone, with its interval"
    if any(len(unit.heads[0]) > 1 for unit in cross_map.maps.values()):
        words += "; in brackets the heads that are patched with it, since they share what is patched"
    if result.attention is not None:
        words += f". attention: from {result.attention.query} to where it goes most, {result.base} → {result.tuned}"
    return words


def _strongest(result: CrossModel, cross_map: CrossMap) -> list[Row]:
    rows: list[Row] = []
    for given in result.table(cross_map.direction, STRONGEST):
        row: Row = {"head": given["head"]}
        for kind in cross_map.maps:
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


def _attention(difference: AttentionDifference) -> Section:
    key = difference.keys[difference.largest]
    figure = head_map(difference.difference[difference.largest], signed=True)
    shown = picture("attention", figure, f"Difference of attention to {key} for every head; the table has it.")
    note = f"Mean attention from {difference.query} to {key}, {difference.n:,} prompts; difference: "
    note += "tuned minus base, with its interval"
    caption = f"Attention from {difference.query} to {key}, tuned minus base. Layers are rows, heads are columns."
    return Section("Attention of both models", difference.table()[:STRONGEST], note, shown, caption)


def _spanned(part: Scored) -> str:
    return _interval(part.score, part.low, part.high)


def _interval(score: float | None, low: float | None, high: float | None) -> str:
    if score is None or not is_number(score):
        return "undefined"
    words = percent(score)
    if low is not None and is_number(low):
        words += f" {interval(low, high, percent)}"
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
