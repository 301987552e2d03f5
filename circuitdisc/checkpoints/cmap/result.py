"""What cross-model activation patching found: scores of every patch, with intervals and random controls.

Shape letters: L layers, U units (heads, or groups of heads that share what is patched), B examples, K points, R draws.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.checkpoints.attention_difference import AttentionDifference
from circuitdisc.results import Result, Row, plain, plain_rows
from circuitdisc.scoring.faithfulness import VANISHING
from circuitdisc.stats import Interval, Partition, interval


@dataclass(frozen=True)
class ModelGap:
    """The two models' metric, and patch scores between them.

    score = (m(patched) - m(taker)) / (m(giver) - m(taker)), of means over the examples: the share of the gap closed.

    Args:
        taker, giver: metric of the model that runs, and of the one whose activations it takes over. [B]
    """

    taker: Float[np.ndarray, "B"]
    giver: Float[np.ndarray, "B"]
    confidence: float
    seed: int
    over: Partition | None = None

    @property
    def undefined(self) -> str:
        """Why there are no scores; empty if there are."""
        taker, giver = float(self.taker.mean()), float(self.giver.mean())
        if abs(giver - taker) <= VANISHING * max(abs(taker), abs(giver), 1e-12):
            return "the two models score the same, so there is no gap to close"
        return ""

    def scores(self, values: Float[np.ndarray, "*X B"]) -> Float[np.ndarray, "*X"]:
        """Score of each patch; NaN if undefined."""
        if self.undefined:
            return np.full(values.shape[:-1], math.nan)
        return (values.mean(-1) - self.taker.mean()) / (self.giver.mean() - self.taker.mean())

    def intervals(self, values: Float[np.ndarray, "*X B"]) -> Float[np.ndarray, "2 *X"]:
        """Intervals of the scores, the three metrics resampled together."""
        if self.undefined:
            return np.full((2, *values.shape[:-1]), math.nan)
        # differences from the taker, so that what changes nothing scores 0 in every resample
        ends = self._interval(values - self.taker, self.giver - self.taker)
        return np.stack([ends.low, ends.high])

    def _interval(self, *rows: Float[np.ndarray, "*X B"]) -> Interval:
        """Of the mean of the first, or of its ratio to the mean of the second."""
        figure = None if len(rows) == 1 else _share
        return interval(rows, figure, groups=self.over, confidence=self.confidence, seed=self.seed)

    @property
    def method(self) -> str:
        """How the intervals are made, and over what."""
        return self._interval(self.giver - self.taker).method

    @property
    def difference(self) -> tuple[float, float, float]:
        """m(giver) - m(taker), with its interval."""
        ends = self._interval(self.giver - self.taker)
        return float((self.giver - self.taker).mean()), float(ends.low), float(ends.high)


def _share(means: Float[np.ndarray, "2 *W"]) -> Float[np.ndarray, "*W"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[0] / means[1]


@dataclass(frozen=True, repr=False)
class Scored(Result):
    """One patch.

    Args:
        name: what was patched, in a word or two.
        metric: the patched model's metric, mean over examples.
        score: share of the gap closed, with its interval; NaN if undefined.
    """

    name: str
    metric: float
    score: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class UnitMap(Result):
    """Every unit of one kind patched alone.

    Args:
        kind: `output`, `value`, `query`, `key` or `pattern`.
        names: of the units, layer by layer; `a3.h4-7` for heads that share what is patched.
        heads: the heads of each unit.
        values: metric of the patched model. [L, U, B]
        score, low, high: [L, U]
    """

    KEYS = ("kind", "names", "heads", "metric=values", "score", "low", "high")

    kind: str
    names: tuple[str, ...]
    heads: tuple[tuple[str, ...], ...]
    values: Float[np.ndarray, "L U B"]
    score: Float[np.ndarray, "L U"]
    low: Float[np.ndarray, "L U"]
    high: Float[np.ndarray, "L U"]

    @property
    def order(self) -> list[int]:
        """Units, the highest score first."""
        return np.argsort(-np.nan_to_num(self.score.ravel()), kind="stable").tolist()

    @property
    def by_head(self) -> Float[np.ndarray, "L H"]:
        """The score of every head: that of the unit it belongs to."""
        return np.repeat(self.score, len(self.heads[0]), axis=1)

    def of_head(self, head: str) -> int:
        """The unit of a head."""
        return next(at for at, heads in enumerate(self.heads) if head in heads)


@dataclass(frozen=True, repr=False)
class GroupScore(Result):
    """Heads patched together.

    Args:
        kind: what of them.
        heads: of the group; for shared kinds all that share with them are patched, too.
        n_units: how many units that are.
        patched: the score.
        random: scores of as many random units of the same layers. [R]
    """

    kind: str
    heads: tuple[str, ...]
    n_units: int
    patched: Scored
    random: Float[np.ndarray, "R"]

    @property
    def n_as_high(self) -> int:
        """Random draws that score at least as high."""
        return int((self.random >= self.patched.score).sum())

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "heads": list(self.heads),
            "n_units": self.n_units,
            **self.patched.to_dict(),
            "random": plain(self.random),
        }


@dataclass(frozen=True, repr=False)
class Growth(Result):
    """More and more units patched together: the best on the train split first, beside random orders.

    Args:
        kind: what of them.
        order: names of the units.
        sizes: how many are patched at each point.
        score, low, high: [K]
        random: scores along random orders. [R, K]
    """

    kind: str
    order: tuple[str, ...]
    sizes: tuple[int, ...]
    score: Float[np.ndarray, "K"]
    low: Float[np.ndarray, "K"]
    high: Float[np.ndarray, "K"]
    random: Float[np.ndarray, "R K"]

    def table(self) -> list[Row]:
        """A line a point."""
        some = len(self.random) > 0
        return plain_rows(
            {
                "patched": size,
                "last": self.order[size - 1] if size else "",
                "score": self.score[k],
                "low": self.low[k],
                "high": self.high[k],
                "random median": np.median(self.random[:, k]) if some else math.nan,
                "random highest": self.random[:, k].max() if some else math.nan,
            }
            for k, size in enumerate(self.sizes)
        )


@dataclass(frozen=True, repr=False)
class CrossMap(Result):
    """One direction: activations of `giver` taken over by `taker`.

    Args:
        gap: their metrics.
        maps: by kind, every unit patched alone; empty if units were not.
        parts: the model in pieces: nothing, embedding, all heads, all MLPs, each MLP, each residual, readout, everything.
        groups: named groups, and all of them together.
        pairs: two of the best units at once; `sum` is that of their own scores.
        growth: None if it was not asked for.
    """

    KEYS = (
        "direction", "giver", "taker", "metric_of_giver", "metric_of_taker", "difference", "undefined", "maps", "parts",
        "groups", "pairs=pair_lines", "growth",
    )  # fmt: skip

    direction: str
    giver: str
    taker: str
    gap: ModelGap
    maps: dict[str, UnitMap]
    parts: tuple[Scored, ...] = ()
    groups: tuple[GroupScore, ...] = ()
    pairs: tuple[tuple[Scored, float], ...] = ()
    growth: Growth | None = None

    @property
    def metric_of_giver(self) -> float:
        return float(self.gap.giver.mean())

    @property
    def metric_of_taker(self) -> float:
        return float(self.gap.taker.mean())

    @property
    def difference(self) -> dict[str, float]:
        """m(giver) - m(taker), with its interval."""
        return dict(zip(("gap", "low", "high"), self.gap.difference, strict=True))

    @property
    def undefined(self) -> str:
        """Why there are no scores; empty if there are."""
        return self.gap.undefined

    @property
    def pair_lines(self) -> list[Row]:
        """Every pair, with the sum of its units' own scores."""
        return [{**pair.to_dict(), "sum": total} for pair, total in self.pairs]

    @property
    def ranked(self) -> UnitMap:
        """The map of the first kind asked for; needs units that were patched alone."""
        return next(iter(self.maps.values()))

    def part(self, name: str) -> Scored:
        """One of the parts, by name."""
        return next(part for part in self.parts if part.name == name)


@dataclass(frozen=True, repr=False)
class CrossModel(Result):
    """What cross-model patching of two checkpoints found.

    Args:
        maps: one for each direction.
        positions: where activations were taken over; None: at all tokens.
        attention: both models' attention; None if it was not asked for.
        plan: what was foreseen; see `CrossPlan`.
        cost: plain forwards that the patched runs took, and seconds.
    """

    KEYS = (
        "base", "tuned", "task", "metric", "split", "n", "positions", "directions=maps", "attention", "plan", "cost",
    )  # fmt: skip

    base: str
    tuned: str
    task: str
    metric: str
    split: str
    n: int
    positions: tuple[str, ...] | None
    maps: tuple[CrossMap, ...]
    attention: AttentionDifference | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    def direction(self, name: str) -> CrossMap:
        """The map of one direction."""
        return next(cross_map for cross_map in self.maps if cross_map.direction == name)

    def table(self, direction: str | None = None, most: int | None = None) -> list[Row]:
        """Heads by their score of the first kind, the highest first: scores of all kinds, and where both models look."""
        cross_map = self.maps[0] if direction is None else self.direction(direction)
        rows: list[Row] = []
        for at in cross_map.ranked.order[:most] if cross_map.maps else ():
            for head in cross_map.ranked.heads[at]:
                row: Row = {"head": head}
                for kind, units in cross_map.maps.items():
                    unit = units.of_head(head)
                    row |= {kind: units.score.ravel()[unit], f"{kind} low": units.low.ravel()[unit]}
                    row |= {f"{kind} high": units.high.ravel()[unit]}
                    if len(units.heads[unit]) > 1:
                        row[f"{kind} with"] = units.names[unit]
                if self.attention is not None:
                    row["attention"] = self.attention.words(self.attention.names.index(head))
                rows.append(row)
        return plain_rows(rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every example's values, by name, for an .npz file."""
        arrays: dict[str, np.ndarray] = {}
        for cross_map in self.maps:
            arrays |= {f"{cross_map.direction}_giver": cross_map.gap.giver, f"{cross_map.direction}_taker": cross_map.gap.taker}
            arrays |= {f"{cross_map.direction}_{kind}": unit.values for kind, unit in cross_map.maps.items()}
        if self.attention is not None:
            arrays |= {"attention_base": self.attention.base, "attention_tuned": self.attention.tuned}
        return arrays
