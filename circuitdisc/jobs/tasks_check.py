"""`circuitdisc tasks check`: which tasks a model does, and on which there is something to explain (`task_checks.py`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.jobs.job import Answer, Call, Job, Leaves, described_in
from circuitdisc.jobs.output import Output

if TYPE_CHECKING:
    from circuitdisc.jobs.task_checks import TaskChecks


def _check(call: Call) -> "tuple[TaskChecks, str]":
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.jobs.task_checks import check_tasks

    model = load_model(**call.settings["model"])
    own = dict(call.own)
    return check_tasks(model, own.pop("tasks"), **own, **call.shared), model.name


def _find(call: Call, folder: Path, journal: Any) -> Answer:
    from circuitdisc.files import write_text
    from circuitdisc.jobs.task_checks import TABLE, table_csv

    checked, name = _check(call)
    write_text(folder / TABLE, table_csv(checked))
    return Answer(checked, f"{name}, {len(checked.checks)} tasks")


def _work(call: Call) -> str:
    from circuitdisc.jobs.task_checks import describe_checks
    from circuitdisc.pages.description import description_text

    if call.settings["out"]:
        return call.leave(_find)
    checked, name = _check(call)
    description = describe_checks(checked)
    text = f"{name}, {len(checked.checks)} tasks\n\n{description_text(description)}"
    return Output(text, {**description.said.data, "result": checked.to_dict()})


JOB = Job(
    name="tasks check",
    summary="which tasks a model does, and on which a search is worth its time",
    text="""Which tasks a model does, and on which there is something to explain: accuracy beside chance, the metric on clean
and on corrupted prompts, and whether a search is worth its time. With out= it leaves result.json, tasks.csv and report.html.

  circuitdisc tasks check model=tpp/lightweight
  circuitdisc tasks check model=gpt2 tasks=[ioi,greater_than] n=200 shots=2""",
    config="tasks_check",
    lists=("tasks",),
    work=_work,
    leaves=Leaves(
        heading="Tasks",
        words=lambda call: ("tasks", call.model_name),
        described_by=described_in("circuitdisc.jobs.task_checks:describe_checks"),
        format="circuitdisc.tasks_check",
    ),
)
