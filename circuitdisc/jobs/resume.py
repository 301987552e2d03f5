"""`circuitdisc resume`: go on with whatever a folder holds."""

from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output, as_output
from circuitdisc.jobs.ranked import by_first, is_split


def _work(call: Call) -> str:
    folder = call.run_folder()
    from circuitdisc.runs import works_in

    outputs = [_go_on(folder, work) for work in works_in(folder)]
    return outputs[0] if len(outputs) == 1 else Output("\n\n".join(outputs), {"works": [output.data for output in outputs]})


def _go_on(folder: Path, work: Any) -> Output:
    if work.job == "discover":
        from circuitdisc.jobs.pipeline import resume

        return resume(folder).output
    from circuitdisc.jobs.registry import REGISTRY

    if work.job not in REGISTRY.names:
        raise BadRun(f"{folder} was begun by `circuitdisc {work.job}`, which this circuitdisc does not have")
    args = list(work.words[1 + len(work.job.split()) :])
    options = {arg: "" for arg in args if arg.startswith("-")}
    job, args = REGISTRY.get(work.job), [arg for arg in args if arg not in options]
    with chdir(work.begun_in), nullcontext(True) if job.by_ranks or is_split(args) else by_first() as has_work:
        return as_output(job(args, options) if has_work else "")


JOB = Job(name="resume", arguments=("FOLDER",), summary="go on with work that was killed", by_ranks=True, work=_work)
