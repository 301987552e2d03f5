"""`circuitdisc list`: models, tasks, algorithms, metrics by name."""

from circuitdisc.errors import UnknownName
from circuitdisc.jobs.job import Call, Job


def _models() -> list[tuple[str, str]]:
    from circuitdisc.shipped import described_models

    return described_models()


def _tasks() -> list[tuple[str, str]]:
    from circuitdisc.tasks import TASKS

    return [(name, task.summary) for name, task in TASKS.items()]


def _algorithms() -> list[tuple[str, str]]:
    from circuitdisc.discovery.registry import described_algorithms

    return described_algorithms()


def _metrics() -> list[tuple[str, str]]:
    from circuitdisc.metrics import METRICS

    return [(name, metric.summary) for name, metric in METRICS.items()]


KINDS = {"models": _models, "tasks": _tasks, "algorithms": _algorithms, "metrics": _metrics}


def _work(call: Call) -> str:
    kind = " ".join(call.args)
    if kind not in KINDS:
        raise UnknownName("list", kind, KINDS, "`circuitdisc list tasks`, for example.")
    from circuitdisc.pages.tables import text_table

    return text_table(("name", "what it is"), KINDS[kind]())


JOB = Job(name="list", arguments=("|".join(KINDS),), summary="names, and what is behind them", work=_work)
