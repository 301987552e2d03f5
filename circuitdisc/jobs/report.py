"""`circuitdisc report`: a run's page written again."""

from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output


def _work(call: Call) -> str:
    folder = call.run_folder()
    from circuitdisc.jobs.pipeline import write_page

    page = write_page(folder)
    return Output(str(page), {"folder": folder, "page": page})


JOB = Job(name="report", arguments=("RUN",), summary="write a run's report.html again", work=_work)
