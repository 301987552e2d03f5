"""The command line of `circuitdisc drift`."""

from collections.abc import Sequence

from circuitdisc.jobs.measured import Measure, measure_checkpoints

WHAT = """How heads change along a ladder of checkpoints: attention from one named position to another, head roles, weights,
what each head adds to the logit difference, and how alike it writes. Leaves drift.json, arrays.npz (every example's values) and
report.html.

  circuitdisc drift checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp key=c1"""

MEASURE = Measure("drift", "Drift of heads", WHAT, ("checkpoints", "roles"))


def drift_command(args: Sequence[str]) -> str:
    """`circuitdisc drift` with these arguments; returns what it prints."""
    return measure_checkpoints(MEASURE, args)
