"""`circuitdisc compare`: what the circuits of two runs share, and what their heads do."""

from pathlib import Path

from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output


def _work(call: Call) -> str:
    folders = [arg for arg in call.args if "=" not in arg or Path(arg).is_dir()]
    if len(folders) != 2:
        raise BadRun(f"which two runs? `circuitdisc compare RUN_A RUN_B` takes two folders of runs, not {len(folders)}")
    settings = call.read([arg for arg in call.args if arg not in folders])
    from circuitdisc.jobs.compare_runs import PAGE, compare_runs
    from circuitdisc.pages.comparison import comparison_table, comparison_verdict

    del settings["threads"]
    comparison, folder = compare_runs(*folders, **{**settings, "attend": _pair(settings["attend"])})
    page = folder / PAGE
    data = {"folder": folder, "page": page, **comparison_verdict(comparison).data, "result": comparison.to_dict()}
    return Output(f"{comparison_table(comparison)}\n\npage  {page}", data)


def _pair(value: object) -> tuple[str, str] | None:
    if value is None:
        return None
    query, colon, key = str(value).partition(":")
    if not colon or not query or not key:
        raise BadSetting(f"attend={value!r} cannot be read: give query:key, as in end:s2")
    return query, key


JOB = Job(
    name="compare",
    arguments=("RUN_A", "RUN_B"),
    summary="what the circuits of two runs share, and what their heads do",
    text="""Two runs of one architecture: the heads, nodes and edges that their circuits share, each circuit on the other's
task, and what changing heads does to both tasks. Writes compare.json and compare.html.""",
    config="compare",
    lists=("heads",),
    work=_work,
)
