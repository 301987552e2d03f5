"""What random controls say of a value, in words: how many do as well, which p that is, and when it says nothing."""

from collections.abc import Iterator, Sequence

from circuitdisc.controls import NONE
from circuitdisc.wording import is_number, number

ALPHA = 0.05
"""Above this p, chance is not ruled out."""

RANDOM_CIRCUITS = "random circuits of the same size and kind"


def defined(controls: Sequence[float | None]) -> list[float]:
    """The controls that have a value."""
    return [value for value in controls if value is not None and is_number(value)]


def nearest(controls: Sequence[float], target: float = 1.0) -> float:
    """The control that comes nearest to a target."""
    return min(controls, key=lambda control: abs(target - control))


def as_near(value: float, controls: Sequence[float], target: float = 1.0) -> int:
    """How many controls come at least as near to a target."""
    return sum(abs(target - control) <= abs(target - value) for control in controls)


def p_value(n_as_good: int, n: int) -> float:
    """Share of the draws, the value's own among them, that do at least as well."""
    return (1 + n_as_good) / (1 + n)


def chance_caveats(who: str, doing: str, controls: Sequence[float | None], n_as_good: int, matched: str = "") -> Iterator[str]:
    """Every reason to think that chance would have done it, too.

    Args:
        who: the controls in words, as `random circuits`.
        doing: what makes one as good, as `come at least as near to 100 %`.
        controls: their values; None where one is undefined.
        n_as_good: how many of those that are defined do that.
        matched: what they are matched in; or that there are none, and why.
    """
    values = defined(controls)
    if not controls:
        why = matched if matched.startswith(NONE) else f"was not compared with {who}"
        yield f"It {why}, so chance is not ruled out."
        return
    if not values:
        yield f"The value of all {len(controls):,} {who} is undefined, so chance is not ruled out."
        return
    p = p_value(n_as_good, len(values))
    end = "; chance is not ruled out" if p > ALPHA else ""
    if n_as_good:
        yield f"{n_as_good:,} of {len(values):,} {who} {doing}: p = {number(p)}{end}."
    elif end:
        yield f"The controls are few: with {len(values):,} {who}, of which none {doing}, p cannot fall below {number(p)}{end}."
    if len(values) > 1 and min(values) == max(values):
        yield f"All {len(values):,} {who} have the same value, {number(values[0])}: it does not tell them apart."
    if len(values) < len(controls):
        yield f"The value of {len(controls) - len(values):,} {who} is undefined; they are left out."
