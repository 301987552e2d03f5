"""Every command. A new one is a file in this folder, a line here, and a file in conf/ for its settings.

These files are imported for the help, and so they import what computes and describes a result where it is needed.

Other packages declare theirs as entry points (`circuitdisc/plugins.py`), each a `Job` of the entry point's name, or `JOBS` with
it among them. They are known by name; nothing of them is imported before the command is called or `circuitdisc list commands`.
"""

from importlib import import_module
from typing import Any

from circuitdisc.jobs.config import conf_file
from circuitdisc.jobs.job import Job
from circuitdisc.plugins import Registry, Unfit

MODULES = (
    "discover",
    "score",
    "stability",
    "rivals",
    "specificity",
    "backups",
    "mixtures",
    "positions",
    "certify",
    "export",
    "figure",
    "report",
    "resume",
    "status",
    "collect",
    "runs",
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
    "benchmark",
    "plan",
    "lens",
    "tasks_check",
)
"""Modules that are light to import. Each declares one `JOB`, or several `JOBS` under its own name."""

TASKS = "Tasks and a model: what it can do, before anything is searched. `circuitdisc list tasks` describes them."
"""What the commands of `circuitdisc tasks` have in common."""


def _own() -> dict[str, Job]:
    modules = [import_module(f"circuitdisc.jobs.{name}") for name in MODULES]
    return {job.name: job for module in modules for job in getattr(module, "JOBS", None) or (module.JOB,)}


OWN = _own()
"""Name -> command, in the order of the help."""


def hides_own(name: str) -> bool:
    """Whether a command of another package would stand before one of ours: `discover more`, or `heads` alone."""
    return any(own == name.partition(" ")[0] or own.startswith(f"{name} ") for own in OWN if own != name)


def _adopt(name: str, declared: Any) -> Job:
    if hides_own(name):
        raise Unfit("would hide a command of circuitdisc")
    jobs = [job for job in (declared if isinstance(declared, list | tuple) else [declared]) if isinstance(job, Job)]
    chosen = next((job for job in jobs if job.name == name), None)
    if chosen is None:
        raise Unfit(f"is a command named {jobs[0].name!r}" if jobs else "is no command")
    if chosen.config is not None and not conf_file(chosen.config).is_file():
        raise Unfit(f"has its settings in {conf_file(chosen.config)}, which is not there")
    return chosen


REGISTRY = Registry(
    "command", OWN, _adopt, "a Job with a name of its own, the entry point's, and as config the path of a YAML file, or None"
)
