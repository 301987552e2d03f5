"""The command line of `circuitdisc baselines`."""

from collections.abc import Sequence

from circuitdisc.jobs.measured import Measure, measure_checkpoints

WHAT = """How well checkpoints do a task, and what they have forgotten: log-probability, share correct and logit difference on
held-out examples, on their corrupted prompts, on other tasks and on a text. Leaves baselines.json and report.html.

  circuitdisc baselines checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp task.n_heldout=3000
  circuitdisc baselines checkpoints=runs/mine task=entity_tracking task.boxes=7 text=book.txt"""

MEASURE = Measure("baselines", "Baselines of checkpoints", WHAT, ("checkpoints", "others"))


def baselines_command(args: Sequence[str]) -> str:
    """`circuitdisc baselines` with these arguments; returns what it prints."""
    return measure_checkpoints(MEASURE, args)
