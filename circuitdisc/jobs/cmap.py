"""`circuitdisc cmap`: parts of one checkpoint's run put into another's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.given import given_circuit
from circuitdisc.jobs.job import Answer, Call, Job, Leaves
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.spelling import PARALLEL


def _work(call: Call) -> str:
    if {"model", "model.name"} & call.given:
        raise BadSetting("cmap takes two checkpoints: write base=NAME tuned=NAME, and no model=")
    if refused := sorted(call.given & set(PARALLEL)):
        raise BadSetting(f"cmap takes activations of two models, each whole in one process: leave {refused[0]} out")
    for which in ("base", "tuned"):
        if not call.own[which]:
            raise BadSetting(f"which {which} checkpoint? `circuitdisc cmap base=NAME tuned=NAME` takes two names or folders")
    return plan_text(call) if call.own["plan"] else call.leave(_find)


def _find(call: Call, folder: Path, journal: Any) -> Answer:
    from circuitdisc.checkpoints.cmap.cmap import cmap
    from circuitdisc.jobs.pipeline import build_task

    own = call.own
    del own["plan"]
    base, tuned = (str(own.pop(which)) for which in ("base", "tuned"))
    groups = read_groups(own.pop("circuit"), own.pop("groups"))
    model_settings = {name: call.settings["model"][name] for name in ("dtype", "device")}
    notes: tuple[str, ...] = ()

    def make_task(model: Any) -> Any:
        nonlocal notes
        task = build_task(model, call.settings)
        notes = task.notes
        return task

    result = cmap(
        base,
        tuned,
        make_task,
        groups=groups,
        cache_folder=folder.parent,
        metric=call.metric,
        **own,
        **call.shared,
        **model_settings,
    )
    return Answer(result, f"{base} and {tuned}, task {result.task}", notes)


def read_groups(circuit: str | None, groups: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]] | None:
    """Named groups of heads, from a circuit or as they were written.

    Raises:
        BadSetting: both are given, or the groups are not written as names with lists.
        BadFile: the folder has no circuit.
    """
    if circuit is not None and groups is not None:
        raise BadSetting("circuit= and groups= both say which heads are patched together: give one of them")
    if circuit is not None:
        from circuitdisc.checkpoints.cmap.sets import groups_of

        chosen = given_circuit(circuit)
        assert chosen is not None, "a circuit is named"
        return groups_of(chosen)
    if groups is None:
        return None
    if not isinstance(groups, Mapping) or not all(isinstance(heads, list) for heads in groups.values()):
        raise BadSetting("groups= is not a table of lists: write it as groups={A: [a3.h1], B: [a2.h0,a2.h4]}")
    return {str(name): tuple(map(str, heads)) for name, heads in groups.items()}


def plan_text(call: Call) -> str:
    """What the call will take, from the configurations and the prompts' lengths; no weights are read."""
    from circuitdisc.checkpoints.cmap.plan import plan_from_settings
    from circuitdisc.pages.cmap import plan_table

    own = call.own
    groups = read_groups(own.pop("circuit"), own.pop("groups"))
    plan, model, n = plan_from_settings({**call.settings, "settings": own}, groups)
    data = plan.to_dict()
    return Output(f"{model}, {n} prompts, no weights read\n\n{plan_table(plan)}\n\n{json.dumps(data)}", {"plan": data})


JOB = Job(
    name="cmap",
    summary="cross-model patching: which parts carry what fine-tuning changed",
    text="""Cross-model activation patching: which heads, MLPs or weights carry the difference between two checkpoints. Parts of
the tuned model's run are put into the base's (or the other way round), on the same prompts; the patch score is the share of the
gap between the two metrics that this closes. One model is in memory at a time. Prints tables and leaves a folder with
cmap.json, arrays.npz (every example's values) and cmap.html.

  circuitdisc cmap base=tpp/base tuned=tpp/lightweight task=tpp
  circuitdisc cmap base=tpp/base tuned=tpp/lightweight task=tpp what=output,value,pattern circuit=runs/mine direction=both
  circuitdisc cmap base=FOLDER tuned=FOLDER task=entity_tracking model.dtype=bfloat16 plan=true""",
    config="cmap",
    lists=("what", "positions", "keys"),
    by_ranks=True,
    work=_work,
    leaves=Leaves(
        heading="Cross-model patching",
        words=lambda call: ("cmap", str(call.own["base"]), str(call.own["tuned"]), call.task_name),
        described_by="cmap",
        format="circuitdisc.cmap",
        result="cmap.json",
        page="cmap.html",
    ),
)
