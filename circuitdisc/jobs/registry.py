"""Every command. A new one is a file in this folder, a line here, and a file in conf/ for its settings."""

from functools import cache
from importlib import import_module

from circuitdisc.jobs.job import Job

MODULES = (
    "discover",
    "score",
    "stability",
    "export",
    "report",
    "resume",
    "compare",
    "finetune",
    "baselines",
    "transfer",
    "drift",
    "cmap",
    "heads",
    "dcm",
    "localise",
    "list",
)


@cache
def jobs() -> dict[str, Job]:
    """Name -> command, in the order of the help. A module declares one `JOB`, or several `JOBS` under its own name."""
    modules = [import_module(f"circuitdisc.jobs.{name}") for name in MODULES]
    return {job.name: job for module in modules for job in getattr(module, "JOBS", None) or (module.JOB,)}
