"""`circuitdisc resume`: go on with whatever a folder holds."""

from circuitdisc.jobs.job import Call, Job


def _work(call: Call) -> str:
    folder = call.run_folder()
    from circuitdisc.checkpoints.transfer.store import is_transfer

    if is_transfer(folder):
        from circuitdisc.jobs.transfer import JOB as TRANSFER

        return TRANSFER([f"out={folder}"])
    from circuitdisc.jobs.pipeline import resume

    return resume(folder).summary


JOB = Job(name="resume", arguments=("FOLDER",), summary="go on with work that was killed", work=_work)
