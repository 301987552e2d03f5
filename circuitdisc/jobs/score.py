"""`circuitdisc score`: a run's circuit scored again, by every score (--all), or scores of edges from a file (--scores)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadSetting, BadTask, UnknownName
from circuitdisc.jobs.config import changes_of, read_overrides
from circuitdisc.jobs.job import Call, Job, set_threads
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.scores_file import FILE_JOB

ALL, SCORES = "--all", "--scores"
REFUSED = {
    "algorithm": "the search of a run is over: leave algorithm= out, or start another run with it",
    "out": "scores are written into the run's own folder: leave out= out",
}


def _work(call: Call) -> str:
    if SCORES in call.options:
        return _score_file(call)
    folder = call.run_folder()
    changes, progress = changes_of_call(call, folder)
    if ALL in call.options:
        from circuitdisc.jobs.judge import judge

        judgement = judge(folder, changes, progress, call.command)
        return _with_page(judgement.text(), {**judgement.said.data, "result": judgement.to_dict()}, folder, bool(changes))
    from circuitdisc.circuit import Circuit
    from circuitdisc.jobs.pipeline import CIRCUIT, rescore
    from circuitdisc.pages import scores_table
    from circuitdisc.pages.verdict import verdict

    scores, circuit = rescore(folder, changes, progress), Circuit.load(folder / CIRCUIT)
    data = {**verdict(scores, circuit).data, "result": scores.to_dict()}
    return _with_page(scores_table(scores, circuit=circuit), data, folder, bool(changes))


def _with_page(text: str, data: Mapping[str, Any], folder: Path, changed: bool) -> Output:
    """The output; of scores that are the run's own its page is written again."""
    if changed:
        return Output(text, data)
    from circuitdisc.jobs.pipeline import write_page

    page = write_page(folder)
    return Output(f"{text}\n\nreport  {page}", {"folder": folder, "page": page, **data})


def changes_of_call(call: Call, folder: Path) -> tuple[dict[str, Any], bool]:
    """What is to be scored otherwise than the run has it, in the run's own task and ablation; and whether bars are shown.

    Raises:
        BadRun: the folder is not a run.
        UnknownName, BadSetting: a setting is not known, or cannot be used.
    """
    from circuitdisc.sections import open_run

    own = open_run(folder).config
    options = {"task": own["task"]["name"], "ablation": own["ablation"]["kind"]}
    asked = [f"{group}={option}" for group, option in options.items() if group not in call.given]
    for key, why in REFUSED.items():
        if {name for name in call.given if name.partition(".")[0] == key}:
            raise BadSetting(why)
    overrides = read_overrides([*asked, *call.args[1:]], call.config, "setting of score")
    changes = changes_of(overrides, call.config, overrides[len(asked) :])
    changes = {name: value for name, value in changes.items() if value is not None}
    set_threads(changes.pop("threads", None))
    return changes, changes.pop("progress", True)


def _score_file(call: Call) -> str:
    from circuitdisc.jobs.scores_file import measure

    path = _file(call)
    of_file = Call(FILE_JOB, call.args)
    for group, example in (("model", "model=gpt2"), ("task", "task=ioi, or task=prompts.jsonl")):
        if not {group, f"{group}.name"} & of_file.given:
            error = BadTask if group == "task" else BadSetting
            raise error(f"no {group} is named: the file says which edges count, not for what; give {example}")
    return measure(path, of_file)


def _file(call: Call) -> Path:
    """The file of edge scores.

    Raises:
        BadFile: none is named, or there is no such file.
        UnknownName, BadSetting: there is more beside it than settings.
    """
    name = call.options[SCORES]
    if not name or _is_setting(name):
        raise BadFile(f"which file? `circuitdisc score {SCORES} FILE` takes a file of edge scores, .json or .npz")
    if not Path(name).is_file():
        raise BadFile(f"cannot read {name}: there is no such file")
    if ALL in call.options:
        raise UnknownName("option", ALL, [SCORES, "--help"], "Settings are written key=value.")
    for arg in call.args:
        if not _is_setting(arg):
            raise BadSetting(f"'{arg}' is not a setting: write key=value; `{SCORES} FILE` scores a file, not a run's folder")
    return Path(name)


def _is_setting(arg: str) -> bool:
    return "=" in arg and not Path(arg).is_file()


JOB = Job(
    name="score",
    arguments=("RUN",),
    summary="score a run's circuit again (other settings are printed, not saved)",
    config="score",
    options={
        ALL: "also completeness, minimality, hypothesis tests, and a verdict in words",
        f"{SCORES} FILE": "scores of edges that another tool has written; needs model= and task=",
    },
    variants=(FILE_JOB,),
    by_ranks=True,
    recorded=True,
    spreads=ALL,
    work=_work,
)
