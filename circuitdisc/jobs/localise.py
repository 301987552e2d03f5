"""`circuitdisc localise`: a few heads edited, and what that does to held-out examples."""

from pathlib import Path
from typing import TYPE_CHECKING

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.given import given_circuit
from circuitdisc.jobs.job import Answer, Call, Job, Leaves

if TYPE_CHECKING:
    from circuitdisc.runs import Journal

WORDS = ("lofit", "all", "circuit")
EDIT = "edit.safetensors"


def _find(call: Call, folder: Path, journal: "Journal | None") -> Answer:
    from circuitdisc.engine.selfcheck import load_model
    from circuitdisc.heads.localised.localised import localised
    from circuitdisc.jobs.pipeline import build_task

    own = call.own
    circuit, heads = given_circuit(own.pop("circuit")), own.pop("heads")
    heads = heads[0] if isinstance(heads, list) and len(heads) == 1 and heads[0] in WORDS else heads
    if (heads == "circuit") != (circuit is not None):
        raise BadSetting("heads=circuit and circuit= go together: give both, or neither")
    model = load_model(**call.settings["model"])
    task = build_task(model, call.settings)
    result = localised(model, task, circuit or heads, metric=call.metric, journal=journal, **own, **call.shared)
    result.edit.save(folder / EDIT)
    return Answer(result, f"{model.name}, task {call.task_words}", task.notes)


JOB = Job(
    name="localise",
    summary="a few heads edited, learned or swept, and what held-out examples make of it",
    text="""Edits a few heads, learned or swept on train examples, chosen on others, and measures held-out ones before and
after, beside as many random heads. Leaves result.json, arrays.npz, edit.safetensors (for HeadEdit.load) and report.html; the
same command goes on where it was killed.""",
    config="localise",
    lists=("heads",),
    recorded=True,
    find=_find,
    leaves=Leaves(
        heading="Localised intervention",
        words=lambda call: (f"localise-{call.own['kind']}", call.model_name, call.task_name),
        described_by="dcm",
        format="circuitdisc.localised",
        resumes=True,
    ),
)
