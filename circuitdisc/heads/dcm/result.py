"""What `dcm` finds: masks, and how often the desiderata are met.

Shape letters: C components, X sets of components, B examples, L layers, H heads.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitdisc.errors import UnknownName
from circuitdisc.graph import Node
from circuitdisc.results import Result, Row, plain_rows
from circuitdisc.stats import Partition, share_interval


@dataclass(frozen=True)
class Met:
    """What a patched model says.

    Args:
        share: of the examples on which it says the target.
        low, high: Wilson's interval of that share.
        kept: share on which it says the clean prompt's own answer (as far as the desideratum names it).
        logit: mean logit of the target.
        n: examples.
    """

    share: float
    low: float
    high: float
    kept: float
    logit: float
    n: int

    @classmethod
    def of(
        cls,
        met: Float[np.ndarray, "B"],
        kept: Float[np.ndarray, "B"],
        logit: Float[np.ndarray, "B"],
        confidence: float,
        over: Partition | None = None,
    ) -> "Met":
        ends = share_interval(met, groups=over, confidence=confidence)
        return cls(float(met.mean()), float(ends.low), float(ends.high), float(kept.mean()), float(logit.mean()), len(met))


@dataclass(frozen=True, repr=False)
class MaskTrial(Result):
    """One trained mask.

    Args:
        penalty, seed: what it was trained with.
        mask: before rounding. Length C.
        chosen_by: share of the examples of the second split on which the rounded mask meets the desideratum.
    """

    WHERE = "a trained mask in the journal"

    penalty: float
    seed: int
    mask: tuple[float, ...]
    chosen_by: float

    @property
    def size(self) -> int:
        """Components that the rounded mask patches."""
        return sum(value > 0.5 for value in self.mask)


@dataclass(frozen=True, repr=False)
class FoundMask(Result):
    """One desideratum.

    Args:
        desideratum: its name.
        components: names of what the mask is over. Length C.
        trials: all masks that were trained.
        best: which of them was chosen on the second split.
        patched, everything, nothing: the chosen mask, all components patched, and none, on the third split.
        random: shares met by random sets of the mask's size.
        sizes: examples of each split.
        met: example by example, in the order: mask, all, none, random sets. [X, B]
    """

    KEYS = (
        "desideratum", "masked", "components", "chosen=trial", "trials=tried", "patched", "all=everything", "none=nothing",
        "random", "p_value", "n=sizes",
    )  # fmt: skip

    desideratum: str
    components: tuple[str, ...]
    trials: tuple[MaskTrial, ...]
    best: int
    patched: Met
    everything: Met
    nothing: Met
    random: tuple[float, ...]
    sizes: Mapping[str, int]
    met: Float[np.ndarray, "X B"]

    @property
    def trial(self) -> MaskTrial:
        return self.trials[self.best]

    @property
    def tried(self) -> list[Row]:
        """All trained masks, with their sizes."""
        return [{**trial.to_dict(), "size": trial.size} for trial in self.trials]

    @property
    def masked(self) -> tuple[str, ...]:
        """The components that the chosen mask patches."""
        return tuple(name for name, value in zip(self.components, self.trial.mask, strict=True) if value > 0.5)

    @property
    def p_value(self) -> float | None:
        return p_value(self.patched.share, self.random)


@dataclass(frozen=True, repr=False)
class GroupMet(Result):
    """One whole group of heads patched, under one desideratum.

    Args:
        positions: where, in words.
        random: shares met by random sets of as many heads.
    """

    KEYS = ("desideratum", "group", "heads", "positions", "patched=met", "random", "p_value")

    desideratum: str
    group: str
    heads: tuple[str, ...]
    positions: str
    met: Met
    random: tuple[float, ...]

    @property
    def p_value(self) -> float | None:
        return p_value(self.met.share, self.random)


def p_value(share: float, random: Sequence[float]) -> float | None:
    """Share of the sets, this one among them, that meet the desideratum at least as often; None without random ones."""
    return (1 + sum(drawn >= share for drawn in random)) / (1 + len(random)) if random else None


@dataclass(frozen=True, repr=False)
class Dcm(Result):
    """The masks of all desiderata, and what they do.

    Args:
        over: `head`, `group` or `edge`.
        found: a desideratum each.
        groups: a desideratum and a group each; empty without groups.
        shape: layers and heads of the model.
        n_random: random sets asked for.
        confidence: coverage of the intervals.
    """

    KEYS = ("over", "confidence", "n_random", "desiderata=found", "groups")

    over: str
    found: tuple[FoundMask, ...]
    groups: tuple[GroupMet, ...]
    shape: tuple[int, int]
    n_random: int
    confidence: float

    @property
    def n(self) -> int:
        """Examples of the third split, over all desiderata."""
        return sum(mask.patched.n for mask in self.found)

    def get(self, desideratum: str) -> FoundMask:
        """One desideratum.

        Raises:
            UnknownName: there is none of this name.
        """
        for mask in self.found:
            if mask.desideratum == desideratum:
                return mask
        raise UnknownName("desideratum", desideratum, [mask.desideratum for mask in self.found])

    def table(self) -> list[Row]:
        """A line a desideratum: the chosen mask on the third split."""
        return plain_rows(
            {
                "desideratum": mask.desideratum,
                f"{self.over}s masked": mask.trial.size,
                "of": len(mask.components),
                "penalty": mask.trial.penalty,
                "n": mask.patched.n,
                "met": mask.patched.share,
                "low": mask.patched.low,
                "high": mask.patched.high,
                **_random(mask.random, mask.patched.share),
                "all masked": mask.everything.share,
                "none masked": mask.nothing.share,
                "clean answer": mask.patched.kept,
            }
            for mask in self.found
        )

    def group_table(self) -> list[Row]:
        """A line a desideratum and group: the whole group patched alone."""
        return plain_rows(
            {
                "desideratum": group.desideratum,
                "group": group.group,
                "heads": len(group.heads),
                "at": group.positions,
                "n": group.met.n,
                "met": group.met.share,
                "low": group.met.low,
                "high": group.met.high,
                **_random(group.random, group.met.share),
                "clean answer": group.met.kept,
            }
            for group in self.groups
        )

    def head_map(self, desideratum: str) -> Float[np.ndarray, "L H"]:
        """The chosen mask before rounding, layer by head; NaN for heads that have none.

        A head of several groups shows the largest; over edges it shows how many of a head's outgoing edges are patched.
        """
        mask, values = self.get(desideratum), np.full(self.shape, math.nan)
        members = {name: (name,) for name in mask.components}
        if self.over == "group":
            members = {group.group: group.heads for group in self.groups if group.desideratum == desideratum}
        for name, value in zip(mask.components, mask.trial.mask, strict=True):
            if self.over == "edge":
                sender = Node.parse(name.partition("->")[0])
                if sender.kind == "head":
                    place = (sender.layer, sender.head)
                    values[place] = np.nansum([values[place], float(value > 0.5)])
                continue
            for _, layer, head in map(Node.parse, members[name]):
                values[layer, head] = np.nanmax([values[layer, head], value]) if values[layer, head] >= 0 else value
        return values

    def arrays(self) -> dict[str, np.ndarray]:
        """All masks [trials, C] and which examples meet each desideratum [X, B], by name."""
        arrays: dict[str, np.ndarray] = {}
        for mask in self.found:
            arrays[f"masks_{mask.desideratum}"] = np.array([trial.mask for trial in mask.trials])
            arrays[f"met_{mask.desideratum}"] = mask.met
        return arrays


def _random(random: Sequence[float], share: float) -> Row:
    """Median and range of the random sets, and how often they do as well."""
    return {
        "random": float(np.median(random)) if random else None,
        "random high": max(random) if random else None,
        "p": p_value(share, random),
    }
