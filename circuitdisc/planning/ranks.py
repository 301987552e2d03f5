"""A plan on several ranks, and the plan of a transfer from that of one of its searches."""

from collections.abc import Sequence
from dataclasses import replace

from circuitdisc.planning.result import PlannedPart, RunPlan


def rank_numbers(most: int) -> list[int]:
    """1, 2, 4 ... and `most`."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def shares_of(parts: Sequence[PlannedPart], n: int) -> tuple[float, float | None]:
    """The share of the work that the busiest of n ranks does, and its seconds.

    The model of it: examples (or chunks of them) are dealt out whole and take equally long; what ranks tell each other, and
    what does not shrink with the number of examples, takes no time.
    """
    weights = [part.seconds if part.seconds is not None else (part.usual or 0.0) for part in parts]
    work = sum(weight * -(-part.dealt // n) / part.dealt for part, weight in zip(parts, weights, strict=True))
    timed = all(part.seconds is not None for part in parts)
    return (work / sum(weights) if sum(weights) else 1.0), (work if timed else None)


def times(plan: RunPlan, n_searches: int, n_cells: int) -> RunPlan:
    """The plan of a transfer from that of one of its checkpoints: so many searches, and so many cells that are scored."""
    parts = tuple(_times(part, n_cells if part.name == "score" else n_searches) for part in plan.parts)
    ranks = []
    for rank in plan.ranks:
        work, seconds = shares_of(parts, rank.ranks)
        ranks.append(replace(rank, work=work, seconds=seconds))
    return replace(plan, job="transfer", parts=parts, ranks=tuple(ranks))


def _times(part: PlannedPart, n: int) -> PlannedPart:
    seconds = {name: None if getattr(part, name) is None else getattr(part, name) * n for name in ("seconds", "cpu_seconds")}
    low, high = part.seconds_span or (0.0, None)
    ends = None if part.seconds_span is None else (low * n, None if high is None else high * n)
    return replace(part, times=n, seconds_span=ends, **seconds)
