"""`circuitdisc baselines`: how well checkpoints do a task, and what they have forgotten."""

from circuitdisc.jobs.job import Job, Leaves
from circuitdisc.jobs.measured import measured

JOB = Job(
    name="baselines",
    summary="how well checkpoints do a task, and what they have forgotten",
    text="""How well checkpoints do a task, and what they have forgotten: log-probability, share correct and logit difference on
held-out examples, on their corrupted prompts, on other tasks and on a text. Leaves baselines.json and report.html.

  circuitdisc baselines checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp task.n_heldout=3000
  circuitdisc baselines checkpoints=runs/mine task=entity_tracking task.boxes=7 text=book.txt""",
    config="baselines",
    lists=("checkpoints", "others"),
    find=measured("circuitdisc.checkpoints.baselines:baselines"),
    leaves=Leaves(
        heading="Baselines of checkpoints",
        words=lambda call: ("baselines", call.task_name),
        described_by="baselines",
        result="baselines.json",
    ),
)
