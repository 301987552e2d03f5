"""Values of patched runs to scores: maps, pieces, groups beside random ones, pairs, a growing set."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from circuitdisc.checkpoints.cmap.result import CrossMap, GroupScore, Growth, ModelGap, Scored, UnitMap
from circuitdisc.checkpoints.cmap.sets import Label, Wanted
from circuitdisc.engine.cross.patch import unit_heads, unit_name, units_of

Values = Mapping[Label, Float[np.ndarray, "B"]]


def scored(
    direction: str, giver: str, taker: str, wanted: Wanted, gap: ModelGap, values: Values, order: Sequence[int]
) -> CrossMap:
    """One direction's result.

    Args:
        values: metric of every patched run, by label, example by example.
        order: units of the first kind, the best on the search examples first; empty if none was needed.
    """
    return CrossMap(
        direction,
        giver,
        taker,
        gap,
        maps={kind: _unit_map(kind, wanted, gap, values) for kind in (wanted.what if wanted.alone else ())},
        parts=tuple(_scored(gap, str(label[1]), values[label]) for label in values if label[0] == "part"),
        groups=tuple(_groups(wanted, gap, values)),
        pairs=tuple(_pairs(wanted, gap, values)),
        growth=_growth(wanted, gap, values, order) if wanted.sizes else None,
    )


def _scored(gap: ModelGap, name: str, values: Float[np.ndarray, "B"]) -> Scored:
    low, high = gap.intervals(values)
    return Scored(name, float(values.mean()), float(gap.scores(values)), float(low), float(high))


def _unit_map(kind: str, wanted: Wanted, gap: ModelGap, values: Values) -> UnitMap:
    counts = wanted.counts
    units = units_of(counts, kind)
    stacked = np.stack([values["unit", kind, at] for at in range(len(units))])
    stacked = stacked.reshape(counts.n_layers, -1, stacked.shape[-1])
    low, high = gap.intervals(stacked)
    names = tuple(unit_name(counts, unit) for unit in units)
    heads = tuple(tuple(unit_heads(counts, unit)) for unit in units)
    return UnitMap(kind, names, heads, stacked, gap.scores(stacked), low, high)


def _groups(wanted: Wanted, gap: ModelGap, values: Values) -> list[GroupScore]:
    groups = []
    for name, places in wanted.groups.items():
        for kind in wanted.what:
            drawn = [values[label] for label in values if label[:3] == ("random", name, kind)]
            random = gap.scores(np.stack(drawn)) if drawn else np.zeros(0)
            heads = tuple(f"a{layer}.h{head}" for layer, head in places)
            n_units = len(wanted.group_units(name, kind))
            groups.append(GroupScore(kind, heads, n_units, _scored(gap, name, values["group", name, kind]), random))
    return groups


def _pairs(wanted: Wanted, gap: ModelGap, values: Values) -> list[tuple[Scored, float]]:
    """Pairs, the highest score first, with the sum of their own two scores."""
    kind, counts = wanted.what[0], wanted.counts
    units, pairs = units_of(counts, kind), []
    for label in values:
        if label[0] == "pair":
            both = [int(at) for at in label[1:]]
            name = " and ".join(unit_name(counts, units[at]) for at in both)
            alone = sum(float(gap.scores(values["unit", kind, at])) for at in both)
            pairs.append((_scored(gap, name, values[label]), alone))
    return sorted(pairs, key=lambda pair: -np.nan_to_num(pair[0].score))


def _growth(wanted: Wanted, gap: ModelGap, values: Values, order: Sequence[int]) -> Growth:
    kind, counts = wanted.what[0], wanted.counts
    units, sizes = units_of(counts, kind), wanted.sizes
    stacked = np.stack([[values["grow", which, size] for size in sizes] for which in range(wanted.n_random + 1)])
    low, high = gap.intervals(stacked[0])
    names = tuple(unit_name(counts, units[at]) for at in order)
    scores = gap.scores(stacked)
    return Growth(kind, names, sizes, scores[0], low, high, scores[1:])
