"""`circuitdisc discover`: find a circuit, score it, write a report; or, with -m, every combination of several values."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun, CircuitdiscError, Stopped
from circuitdisc.jobs.config import DISCOVER, conf_dir, plain, read_overrides
from circuitdisc.jobs.job import Call, Job, check_call

MULTIRUN = "--multirun"


def _work(call: Call) -> str:
    if MULTIRUN in call.options:
        return _multirun(read_overrides(call.args, multirun=True))
    return run(call.settings, call.command)


def run(settings: dict[str, Any], command: str, number: int | None = None) -> str:
    """One job, from its composed settings; returns what is printed.

    Args:
        command: what the user typed, for the record.
        number: the job's number in a multirun, whose folder `out` is; the job gets a folder in it.
    """
    from circuitdisc.jobs.pipeline import default_folder, start

    sections = {name: value for name, value in settings.items() if name not in ("threads", "out", "launcher")}
    sections["command"] = command
    sections["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
    folder = Path(settings["out"]) if settings["out"] else default_folder(sections)
    return start(sections, folder if number is None else folder / str(number)).output


def _multirun(overrides: list[str]) -> str:
    """Every combination, by Hydra's sweeper and launcher; jobs may run in other processes.

    Raises:
        BadRun: some of the jobs failed.
        Stopped: Ctrl-C.
    """
    import hydra

    given = next((override.partition("=")[2] for override in reversed(overrides) if override.startswith("out=")), "")
    folder = given if given not in ("", "null") else f"runs/multirun_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    overrides = [*(text for text in overrides if not text.startswith("out=")), f"out={folder}", f"hydra.sweep.dir={folder}"]
    if (record := Path(folder, "multirun.yaml")).is_symlink():  # Hydra writes its settings there
        raise BadRun(f"{record} is a link to another place, and nothing is written through links: remove it")
    sys.argv = ["circuitdisc", MULTIRUN, *overrides]
    try:
        hydra.main(config_path=str(conf_dir()), config_name=DISCOVER, version_base="1.3")(_sweep_job)()
    except KeyboardInterrupt as stop:
        of_job = f"of the job at work: {stop}; " if isinstance(stop, Stopped) else ""
        raise Stopped(f"{of_job}finished jobs are in {folder}, and those after it were not begun") from stop
    if failed := sorted(path.stem for path in Path(folder).glob("*.error")):
        raise BadRun(f"{len(failed)} of the jobs failed ({', '.join(failed[:10])}): their sentences are in {folder}/*.error")
    return f"folder  {folder}"


def _sweep_job(config: Any) -> None:
    """One job of a multirun. A bad one does not end the others: it leaves its sentence in `<number>.error`."""
    from hydra.core.hydra_config import HydraConfig

    from circuitdisc.jobs.notes import as_notes

    hydra_config = HydraConfig.get()
    number = hydra_config.job.num
    call = Call(JOB, tuple(hydra_config.overrides.task))
    try:
        with as_notes():  # a launcher may have begun another process for the job
            settings = plain(config)
            check_call(settings)
            print(run(settings, call.command, number))
    except CircuitdiscError as error:
        print(f"circuitdisc: job {number}: {error}", file=sys.stderr)
        from circuitdisc.files import make_folder, write_text

        make_folder(Path(config.out))  # a job that leaves nothing takes the folder with it
        write_text(Path(config.out, f"{number}.error"), f"{error}\n")


JOB = Job(
    name="discover",
    summary="find a circuit, score it, write a report",
    config=DISCOVER,
    options={MULTIRUN: "every combination of comma-separated values, for example algorithm.threshold=0.01,0.03"},
    work=_work,
)
