"""`circuitdisc export`: a run's circuit in the layout of EAP-IG and the MIB benchmark."""

from pathlib import Path

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output

SWITCHES = {"prune=true": True, "prune=false": False}


def _work(call: Call) -> str:
    folder = call.run_folder()
    prune = [SWITCHES[arg] for arg in call.args[1:] if arg in SWITCHES]
    files = [arg for arg in call.args[1:] if arg not in SWITCHES]
    if len(files) != 1 or not files[0].endswith(".json") or len(prune) > 1:
        raise BadSetting(
            "which file? `circuitdisc export RUN FILE.json` writes the run's circuit and scores there; prune=true leaves out "
            "the edges that EAP-IG drops before it evaluates a circuit"
        )
    from circuitdisc.jobs.pipeline import export

    path = export(folder, Path(files[0]), prune=bool(prune and prune[0]))
    return Output(str(path), {"folder": folder, "file": path})


JOB = Job(
    name="export",
    arguments=("RUN", "FILE.json"),
    summary="a run's circuit and scores as EAP-IG and the MIB benchmark read them [prune=true]",
    text="""Writes the run's circuit, and its edge scores if it has any, as EAP-IG and the MIB benchmark read them. prune=true
leaves out the edges that EAP-IG drops before it evaluates a circuit.""",
    work=_work,
)
