"""`circuitdisc lens`: the logit lens (`logit_lens.py`)."""

from pathlib import Path
from typing import Any

from circuitdisc.jobs.job import Answer, Call, Job, Leaves, described_in


def _find(call: Call, folder: Path, journal: Any) -> Answer:
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.jobs.logit_lens import logit_lens
    from circuitdisc.jobs.pipeline import build_task

    model = load_model(**call.settings["model"])
    task = build_task(model, call.settings)
    return Answer(
        logit_lens(model, task, metric=call.metric, **call.own, **call.shared), f"{model.name}, task {task.name}", task.notes
    )


JOB = Job(
    name="lens",
    summary="the logit lens: the metric read off the residual stream after each layer",
    text="""The logit lens: the task's metric read off the residual stream before the first layer and after each, through the
model's own final norm and unembedding, on clean and on corrupted prompts. Leaves result.json, arrays.npz (every example's
values) and report.html.

  circuitdisc lens model=tpp/lightweight task=tpp""",
    config="lens",
    find=_find,
    leaves=Leaves(
        heading="Logit lens",
        words=lambda call: ("lens", call.model_name, call.task_name),
        described_by=described_in("circuitdisc.jobs.logit_lens:describe_lens"),
        format="circuitdisc.lens",
    ),
)
