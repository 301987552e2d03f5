"""`circuitdisc discover`: find a circuit, score it, write a report."""

from datetime import datetime
from pathlib import Path

from circuitdisc.jobs.config import DISCOVER
from circuitdisc.jobs.job import Call, Job


def _work(call: Call) -> str:
    settings = call.settings  # first: a slip is said before torch is imported
    from circuitdisc.jobs.pipeline import start

    sections = {name: value for name, value in settings.items() if name not in ("threads", "out")}
    sections["command"] = call.command
    sections["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
    return start(sections, Path(settings["out"]) if settings["out"] else None).output


JOB = Job(name="discover", summary="find a circuit, score it, write a report", config=DISCOVER, work=_work)
