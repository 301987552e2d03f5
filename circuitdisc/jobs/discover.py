"""`circuitdisc discover`: find a circuit, score it, write a report."""

from datetime import datetime
from pathlib import Path

from circuitdisc.jobs.config import DISCOVER
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.ranked import own_folder


def _work(call: Call) -> str:
    settings = call.settings  # first: a slip is said before torch is imported
    from circuitdisc.jobs.pipeline import default_folder, start

    sections = {name: value for name, value in settings.items() if name not in ("threads", "out")}
    sections["command"] = call.command
    sections["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
    folder = Path(settings["out"]) if settings["out"] else default_folder(sections)
    return start(sections, own_folder(folder)).summary


JOB = Job(name="discover", summary="find a circuit, score it, write a report", config=DISCOVER, by_ranks=True, work=_work)
