"""`circuitdisc report`: a run's page written again."""

from circuitdisc.jobs.job import Call, Job


def _work(call: Call) -> str:
    folder = call.run_folder()
    from circuitdisc.jobs.pipeline import write_page

    return str(write_page(folder))


JOB = Job(name="report", arguments=("RUN",), summary="write a run's report.html again", work=_work)
