"""`circuitdisc discover`: find a circuit, score it, write a report."""

from datetime import datetime
from pathlib import Path

from circuitdisc.jobs.config import DISCOVER, groups_of
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output, as_output
from circuitdisc.jobs.ranked import by_first, own_folder

BUDGETS = {"memory", "threads", "progress"}
"""Settings that do not say what is to be searched."""
MEASURED = 10
"""Seconds for which a bare command measures what it would cost."""


def _work(call: Call) -> str:
    settings = call.settings  # first: a slip is said before torch is imported
    if not call.given - BUDGETS:
        return _would_run(call)
    from circuitdisc.jobs.pipeline import default_folder, start

    sections = {name: value for name, value in settings.items() if name not in ("threads", "out")}
    sections["command"] = call.command
    sections["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
    folder = Path(settings["out"]) if settings["out"] else default_folder(sections)
    return start(sections, own_folder(folder)).output


def _would_run(call: Call) -> Output:
    """What the defaults are, what they would cost, and the command that runs them: a bare command starts nothing."""
    from circuitdisc.jobs.registry import REGISTRY

    names = {group: option for group, option in groups_of(DISCOVER).items() if option != "default"}
    names = {"model": call.model_name, **names}
    command = " ".join(["circuitdisc discover", *(f"{group}={name}" for group, name in names.items())])
    with by_first() as has_work:
        if not has_work:
            return Output("", {})
        planned = as_output(REGISTRY.get("plan")([*call.args, f"measure={MEASURED}"]))
    begins = f"Nothing was started. Without other settings this would run:\n\n  {command}\n\n"
    more = "`circuitdisc discover --help` lists the settings."
    return Output(f"{begins}{planned}\n\n{more}", {"started": False, "would_run": command, "plan": planned.data["result"]})


JOB = Job(name="discover", summary="find a circuit, score it, write a report", config=DISCOVER, by_ranks=True, work=_work)
