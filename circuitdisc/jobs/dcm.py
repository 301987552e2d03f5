"""`circuitdisc dcm`: what heads, groups or edges carry, by masks learned for each desideratum."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.given import given_circuit
from circuitdisc.jobs.job import Answer, Call, Job, Leaves

if TYPE_CHECKING:
    from circuitdisc.models.model import Model
    from circuitdisc.runs import Journal
    from circuitdisc.tasks.desiderata import Desideratum


def _find(call: Call, folder: Path, journal: "Journal | None") -> Answer:
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.heads.dcm.dcm import dcm

    own = call.own
    circuit = given_circuit(own.pop("circuit"))
    names, n_choose = own.pop("desiderata"), own.pop("n_choose")
    own["positions"] = "all" if own["positions"] == ["all"] else own["positions"]
    model = load_model(**call.settings["model"])
    wanted = desiderata_of(model, call, names, n_choose)
    result = dcm(model, wanted, circuit=circuit, journal=journal, **own, **call.shared)
    return Answer(result, f"{model.name}, task {call.task_words}")


def desiderata_of(model: "Model", call: Call, names: Any, n_choose: int | None) -> "Sequence[Desideratum]":
    """The desiderata that a call asks for.

    Raises:
        UnknownName, BadFile, BadSetting, BadTask: as `load_desiderata`.
    """
    from circuitdisc.jobs.pipeline import build_task
    from circuitdisc.tasks.desiderata import SHIPPED, load_desiderata, of_task

    task = dict(call.settings["task"])
    name, n, n_heldout = task.pop("name"), task.pop("n"), task.pop("n_heldout")
    n_choose = n if n_choose is None else n_choose
    corruption = task.get("corruption", "query")
    if name in SHIPPED:
        if task.pop("corruption", "query") != "query":
            raise BadSetting(f"task.corruption={corruption} cannot be set here: name it with desiderata={corruption}")
    elif name == "file":
        name = task.pop("path")
    else:
        if names is not None:
            raise BadSetting(
                f"desiderata={names} cannot be chosen: task '{name}' stands for one, whose target is its first wrong answer"
            )
        both = {**call.settings, "task": {**call.settings["task"], "n": n + n_choose}}
        return [of_task(build_task(model, both), n_choose)]
    sizes = {"n_train": n, "n_choose": n_choose, "n_report": n_heldout}
    return load_desiderata(name, model, names=names, seed=call.settings["seed"], **sizes, **task)


JOB = Job(
    name="dcm",
    summary="what heads carry: masks that make a patched model say what a desideratum asks for",
    text="""Which components carry the value, the position, the label? Masks are learned for each desideratum of a task
(task=entity_tracking has three), of another task (its target is the first wrong answer), or of a file of yours
(task=FILE.jsonl, lines with a field `desideratum`). Trained on task.n examples, chosen on n_choose others, reported on
task.n_heldout others. Leaves result.json, arrays.npz and report.html; the same command goes on where it was killed.""",
    config="dcm",
    lists=("desiderata", "positions"),
    recorded=True,
    find=_find,
    leaves=Leaves(
        heading="Desiderata",
        words=lambda call: ("dcm", call.model_name, call.task_name),
        described_by="dcm",
        format="circuitdisc.dcm",
        resumes=True,
    ),
)
