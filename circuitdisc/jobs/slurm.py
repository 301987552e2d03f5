"""Hydra's launcher for Slurm, which waits for the queue."""

import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from circuitdisc.jobs.queue import queued

SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_TO_APPEAR = 10.0  # from sbatch's answer to the job's line in the queue


class QueueLauncher(SlurmLauncher):
    """Hydra's launcher for Slurm, which waits until its jobs have left the queue, whatever became of each.

    Its parent waits for each job's answer, asks the accounting database for it, which not every cluster has, and leaves all
    others when a job was killed. What cells have done stands in their logs.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from submitit.slurm.slurm import SlurmJob

        begun = time.monotonic()

        def left_the_queue(job: Any) -> list[JobReturn]:
            while (jobs := queued()) is None or job.job_id in jobs or time.monotonic() - begun < SECONDS_TO_APPEAR:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            return [JobReturn(status=JobStatus.COMPLETED)]

        with patch.object(SlurmJob, "results", left_the_queue):
            return super().launch(job_overrides, initial_job_idx)
