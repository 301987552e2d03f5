"""`circuitdisc drift`: how heads change along a ladder of checkpoints."""

from circuitdisc.jobs.job import Job, Leaves
from circuitdisc.jobs.measured import measured

JOB = Job(
    name="drift",
    summary="how heads change along a ladder: attention, roles, weights, what they add",
    text="""How heads change along a ladder of checkpoints: attention from one named position to another, head roles, weights,
what each head adds to the logit difference, and how alike it writes. Leaves drift.json, arrays.npz (every example's values) and
report.html.

  circuitdisc drift checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp key=c1""",
    config="drift",
    lists=("checkpoints", "roles"),
    find=measured("circuitdisc.checkpoints.drift:drift"),
    leaves=Leaves(
        heading="Drift of heads", words=lambda call: ("drift", call.task_name), described_by="drift", result="drift.json"
    ),
)
