"""When a part may stay cut: by how far the metric moves, or by how much of it the circuit still has."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from typing_extensions import TypedDict

from circuitdisc.checks import KEEP, THRESHOLD, THRESHOLD_OR_AUTO
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.options import Option
from circuitdisc.wording import percent

AUTO = "auto"
AUTO_SHARE = 0.999


class KeepOptions(TypedDict, total=False):
    """When a part may stay cut, as a change or as a share of what is left."""

    threshold: Annotated[
        float | str,
        Option(
            0.01,
            "a cut stays if it changes the metric by less than this, in units of the metric. `auto`: from the attribution "
            "scores of all edges (see `rules.auto_threshold`).",
            THRESHOLD_OR_AUTO,
        ),
    ]
    keep: Annotated[
        float | None,
        Option(
            None,
            "in place of a threshold: a cut stays while the circuit as it stands keeps this share of the gap in the metric "
            "between the full model and the empty circuit (and rises no further above the full model).",
            KEEP,
        ),
    ]
    two_sided: Annotated[
        bool | None,
        Option(
            None,
            "a rise of the metric by the threshold or more keeps a part, too. `False` is ACDC's own rule, by which only a fall "
            "does: with a metric that can rise above the full model's, it collects what works against the metric. None: "
            "`False` for `kl`, which cannot rise so far, and `True` for all others.",
        ),
    ]


class RuleOptions(KeepOptions, total=False):
    """When a cut may stay."""

    relative: Annotated[bool, Option(False, "the threshold is a fraction of the current metric.")]


class Passing(Protocol):
    """A rule by which a search cuts."""

    def passes(self, before: float, value: float) -> bool: ...


class Rule(NamedTuple):
    """When a part may stay cut: the metric has changed by less than the threshold.

    Args:
        threshold: the change allowed; with `relative`, as a fraction of the size of the metric before.
        two_sided: a rise counts as a change, too; otherwise only a fall does.
        origin: where the threshold comes from, in a sentence, if not from whoever called.
    """

    threshold: float
    relative: bool
    two_sided: bool
    origin: str = ""

    def passes(self, before: float, value: float) -> bool:
        """True if the change from `before` to `value` is below the threshold, so that the cut may stay.

        Raises:
            BadSetting: one of the two is not finite, so that there is no change to judge.
        """
        check_change(before, value)
        return self._change(before, value) < self._allowed(before)

    def margin(self, before: float, value: float) -> float:
        """How far the change lies below what is allowed, in units of the metric; negative if it lies above."""
        return self._allowed(before) - self._change(before, value)

    def _change(self, before: float, value: float) -> float:
        fall = before - value
        return abs(fall) if self.two_sided else fall

    def _allowed(self, before: float) -> float:
        return self.threshold * abs(before) if self.relative else self.threshold

    def note(self, metric: Metric) -> str:
        """Which rule decided, in a sentence for whoever reads the circuit."""
        if self.two_sided:
            words = "Cuts were decided two-sided: a part is kept if cutting it moves"
            return f"{words} {metric.name} by the threshold or more, up or down.{self.origin}"
        words = "Cuts were decided one-sided, as by ACDC's own rule: a part is kept only if cutting it lowers"
        if metric.zero_at_full:
            return f"{words} {metric.name} by the threshold or more; no circuit can lie above the full model's 0.{self.origin}"
        return (
            f"{words} {metric.name} by the threshold or more, so that what works against the metric is cut and the circuit "
            f"may lie above the full model.{self.origin}"
        )


@dataclass(frozen=True)
class KeepRule:
    """A part may stay cut while the circuit as it stands keeps a share of what the full model does.

    Args:
        keep: the share, c: with m the metric, (m - empty) / (full - empty) stays from c to 2 - c.
        full, empty: the metric of the full model, and with everything cut.

    Raises:
        BadSetting: the two are the same, so that there is nothing to keep a share of.
    """

    keep: float
    full: float
    empty: float

    def __post_init__(self) -> None:
        gap = abs(self.full - self.empty)
        if not gap > 1e-6 * max(abs(self.full), abs(self.empty), 1e-12):
            raise BadSetting(
                f"keep={self.keep:g}: the metric of the full model ({self.full:.4g}) and of the empty circuit "
                f"({self.empty:.4g}) are the same, or not finite, so that there is nothing to keep a share of: use another "
                "ablation, or threshold="
            )

    def share(self, value: float) -> float:
        """How much of the full model's metric a value is, from 0 for the empty circuit to 1."""
        return (value - self.empty) / (self.full - self.empty)

    def passes(self, before: float, value: float) -> bool:
        """True if the share is still within its bounds.

        Raises:
            BadSetting: the value is not finite.
        """
        check_change(before, value)
        return self.margin(before, value) >= 0

    def margin(self, before: float, value: float) -> float:
        """How far the share lies within its bounds; negative if it lies outside."""
        return 1 - self.keep - abs(1 - self.share(value))

    def note(self, metric: Metric) -> str:
        """Which rule decided, in a sentence for whoever reads the circuit."""
        return (
            f"Cuts were decided by what is left (keep={self.keep:g}): a part goes while the circuit as it stands keeps from "
            f"{percent(self.keep)} to {percent(2 - self.keep)} of the gap in {metric.name} between the full model "
            f"({self.full:.4g}) and the empty circuit ({self.empty:.4g}), on the examples that it was searched on."
        )


Deciding = Rule | KeepRule


def check_change(before: float, value: float) -> None:
    """Raise if a change of the metric cannot be judged, since one of the two values is not finite."""
    if not math.isfinite(before - value):
        raise BadSetting(
            f"the metric goes from {before} to {value} when a part is cut, and no cut can be judged by that: use another "
            "metric (logit_diff is always finite), another ablation, or model.dtype=float32"
        )


def rule_of(
    options: Mapping[str, Any],
    metric: Metric,
    scores: Float[np.ndarray, "R S"] | None,
    ends: Callable[[], tuple[float, float, float]],
) -> Deciding:
    """The rule that the options of `RuleOptions` name.

    Args:
        scores: attribution scores of all edges, for `threshold=auto`; NaN where there is no edge. [R, S]
        ends: gives the metric of the full model, of the empty circuit and of the circuit that the search begins with, if they
            are needed.

    Raises:
        BadSetting: an option cannot be used with this metric.
    """
    threshold, origin = options["threshold"], ""
    if threshold == AUTO:
        if options["relative"]:
            raise BadSetting(
                "threshold=auto with relative=true: auto finds a change in units of the metric; use relative=false"
            )
        if options["ranking"] == "random":
            raise BadSetting("threshold=auto: random scores estimate no effect; use ranking=eap_ig, or give a number")
        assert scores is not None, "auto takes its scores from a ranking"
        threshold = auto_threshold(scores)
        carry = f"edges estimated at or above it carry {percent(AUTO_SHARE)} of the sum of squared effects"
        origin = f" threshold=auto came to {threshold:.3g} ({carry})."
    rule = check_rule(threshold, options["relative"], options["two_sided"], metric)
    if options["keep"] is None:
        return rule._replace(origin=origin)
    full, empty, begun_with = ends()
    keeping = KeepRule(options["keep"], full, empty)
    if not keeping.passes(full, begun_with):
        raise BadSetting(
            f"keep={options['keep']:g}: the edges that attribution proposed have {percent(keeping.share(begun_with))} of the "
            f"gap in {metric.name} between full model and empty circuit before anything is cut: raise prune_first=, or "
            "take all edges (prune_first=null)"
        )
    return keeping


def auto_threshold(scores: Float[np.ndarray, "R S"]) -> float:
    """The size at and above which edges carry `AUTO_SHARE` of the sum of squares of all estimated effects.

    Args:
        scores: estimated change of the metric when an edge is cut; NaN where there is no edge.

    Raises:
        BadSetting: all scores are 0.
    """
    sizes = np.sort(np.abs(scores[np.isfinite(scores)]))[::-1]
    carried = np.cumsum(sizes**2)
    if not carried[-1] > 0:
        raise BadSetting("threshold=auto: the attribution scores of all edges are 0, so that no size stands out: give a number")
    return float(sizes[np.searchsorted(carried, AUTO_SHARE * carried[-1])])


def check_rule(threshold: object, relative: bool, two_sided: object, metric: Metric) -> Rule:
    """The rule of a search that cuts part by part.

    Args:
        two_sided: None takes both sides for a metric that can rise above the full model's value, and the fall alone for one
            that cannot (`kl`), where a rise is a step towards the full model.

    Raises:
        BadSetting: the threshold is no number from 0, or a fraction of a value that is 0 by construction; or `two_sided` is
            neither null, true nor false.
    """
    if two_sided is not None and not isinstance(two_sided, bool):
        raise BadSetting(
            f"two_sided={two_sided!r} must be true, false (ACDC's own rule: only falls count) or null (by the metric)"
        )
    if relative and metric.zero_at_full:
        raise BadSetting(
            f"relative=true with metric '{metric.name}': the full model's value is 0, and no fraction of 0 can be lost; "
            "use relative=false, or another metric"
        )
    both = not metric.zero_at_full if two_sided is None else two_sided
    return Rule(THRESHOLD.check("threshold", threshold), relative, both)


# --- rules that look at the distance from the full model, for searches that put edges back, too ---------------------------


@dataclass(frozen=True)
class Priced:
    """As near to the full model as can be, where every edge costs the threshold.

    Args:
        rule: its threshold, and whether a rise counts.
        full: the metric of the full model.
    """

    rule: Rule
    full: float

    def distance(self, value: float) -> float:
        """How far the metric is from the full model's."""
        return abs(self.full - value) if self.rule.two_sided else self.full - value

    def passes(self, before: float, value: float) -> bool:
        """Whether a cut may stay."""
        self.rule.passes(before, value)  # refuses what is not finite
        return self.distance(value) - self.distance(before) < self.rule.threshold

    def missed(self, before: float, value: float) -> bool:
        """Whether an edge is to be put back."""
        return self.distance(before) - self.distance(value) > self.rule.threshold

    def cost(self, value: float, n_edges: int) -> float:
        """What the search lowers."""
        return self.distance(value) + self.rule.threshold * n_edges

    def note(self, metric: Metric) -> str:
        way = "from" if self.rule.two_sided else "below"
        return (
            f"Refined at threshold={self.rule.threshold:.4g}: each kept edge, cut alone, takes {metric.name} further {way} the "
            f"full model's {self.full:.4g} by that or more, and no edge that was tried, put back alone, brings it nearer by "
            f"more, on the examples that it was searched on.{self.rule.origin}"
        )


@dataclass(frozen=True)
class Within:
    """The fewest edges that keep a share of what the full model does."""

    rule: KeepRule

    def distance(self, value: float) -> float:
        return abs(1 - self.rule.share(value))

    def passes(self, before: float, value: float) -> bool:
        return self.rule.passes(before, value)

    def missed(self, before: float, value: float) -> bool:
        """An edge more is never wanted for itself."""
        return False

    def cost(self, value: float, n_edges: int) -> float:
        return n_edges if self.rule.margin(value, value) >= 0 else np.inf

    def note(self, metric: Metric) -> str:
        return f"{self.rule.note(metric)} No single edge can be cut within these bounds."


@dataclass(frozen=True)
class OfSize(Priced):
    """As near to the full model as a circuit of a given size can be.

    Args:
        n_edges: the size.
        rounding: what a swap must gain: less is taken for rounding.
    """

    n_edges: int
    rounding: float

    def helps(self, before: float, value: float) -> bool:
        """Whether a swap is made."""
        self.rule.passes(before, value)  # refuses what is not finite
        return self.distance(before) - self.distance(value) > self.rounding

    def note(self, metric: Metric) -> str:
        return f"Refined to {self.n_edges:,} edges, as near to the full model's {metric.name} of {self.full:.4g} as swaps lead."
