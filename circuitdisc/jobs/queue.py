"""What Slurm's queue has, and waiting for it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

SECONDS_TO_ANSWER = 60
SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_TO_APPEAR = 10.0  # from sbatch's answer to the job's line in the queue


def queued() -> frozenset[str] | None:
    """This user's jobs that wait or run, as `123` or `123_4`; None where there is no Slurm, or it does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return frozenset(done.stdout.split()) if done.returncode == 0 else None


@contextmanager
def waiting_for_the_queue() -> Iterator[None]:
    """Hydra's launcher for Slurm waits inside until its jobs have left the queue, whatever became of each.

    By itself it waits for each job's answer, asks the accounting database for it, which not every cluster has, and leaves all
    others when one was killed. What cells have done stands in their logs.
    """
    from hydra.core.utils import JobReturn, JobStatus
    from submitit.slurm.slurm import SlurmJob  # pyright: ignore[reportMissingImports]

    first = dict[str, float]()

    def left_the_queue(job: Any) -> list[JobReturn]:
        first.setdefault("look", time.monotonic())
        while (jobs := queued()) is None or job.job_id in jobs or time.monotonic() - first["look"] < SECONDS_TO_APPEAR:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return [JobReturn(status=JobStatus.COMPLETED)]

    with patch.object(SlurmJob, "results", left_the_queue):
        yield
