"""What Slurm's queue has."""

import getpass
import shutil
import subprocess

SECONDS_TO_ANSWER = 60


def queued() -> frozenset[str] | None:
    """This user's jobs that wait or run, as `123` or `123_4`; None where there is no Slurm, or it does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return frozenset(done.stdout.split()) if done.returncode == 0 else None
