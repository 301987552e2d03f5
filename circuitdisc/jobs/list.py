"""`circuitdisc list`: models, tasks, algorithms, metrics, scores, commands by name."""

from functools import partial
from importlib import import_module

from circuitdisc.errors import UnknownName
from circuitdisc.jobs.config import REGISTRIES
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output


def _models() -> list[tuple[str, str]]:
    from circuitdisc.shipped import described_models

    return described_models()


def _of(module: str) -> list[tuple[str, str]]:
    return import_module(f"circuitdisc.{module}").REGISTRY.described()


KINDS = {
    "models": _models,
    **{f"{kind}s": partial(_of, REGISTRIES[kind]) for kind in ("task", "algorithm", "ablation", "metric")},
    "scores": partial(_of, "scoring.registry"),
    "loggers": partial(_of, "tracking"),
    "commands": partial(_of, "jobs.registry"),
}


def _work(call: Call) -> str:
    kind = " ".join(call.args)
    if kind not in KINDS:
        raise UnknownName("list", kind, KINDS, "`circuitdisc list tasks`, for example.")
    from circuitdisc.pages.tables import text_table

    rows = KINDS[kind]()
    return Output(text_table(("name", "what it is"), rows), {kind: dict(rows)})


JOB = Job(name="list", arguments=("|".join(KINDS),), summary="names, and what is behind them", work=_work)
