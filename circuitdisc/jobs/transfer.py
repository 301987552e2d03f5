"""`circuitdisc transfer`: the circuit of each checkpoint, scored on every one of them."""

import shlex
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.ranked import own_folder

PAGE = "transfer.html"


def _work(call: Call) -> str:
    if named := sorted({"model", "model.name"} & call.given):
        raise BadSetting(f"transfer runs several models, not {named[0]}=: name them in checkpoints=[...]")
    return _begin(call) if call.own["checkpoints"] else _go_on(call)


def _go_on(call: Call) -> str:
    """Go on with the transfer in `out`, whose settings are known."""
    from circuitdisc.checkpoints.transfer.transfer import resume_transfer
    from circuitdisc.runs import stoppable

    if not call.settings["out"] or call.given - {"out", "progress", "threads"}:
        raise BadSetting(
            "which checkpoints? Give the ladder in its order, as in checkpoints=[tpp/base,tpp/lightweight], or out=FOLDER "
            "alone to go on with a transfer that was begun there"
        )
    folder = own_folder(Path(call.settings["out"]))
    command = f"circuitdisc transfer out={shlex.quote(str(folder))}"
    with stoppable(command, lambda: True):
        return _finish(folder, resume_transfer(folder, call.settings["progress"]), command)


def _begin(call: Call) -> str:
    from circuitdisc.checkpoints.transfer.transfer import transfer
    from circuitdisc.runs import is_transfer, stoppable

    own, algorithm = call.own, dict(call.settings["algorithm"])
    name = algorithm.pop("name")
    folder = call.folder(("transfer", call.task_name, name))
    donor = own.pop("donor") or ()
    with stoppable(f"circuitdisc transfer out={shlex.quote(str(folder))}", lambda: is_transfer(folder)):
        found = transfer(
            own.pop("checkpoints"),
            call.settings["task"],
            name,
            out=folder,
            donor="all" if donor == ["all"] else donor,
            ablation=call.settings["ablation"],
            metric=call.metric,
            model_settings=call.model_settings,
            **call.shared,
            **own,
            **algorithm,
        )
        return _finish(folder, found, call.command)


def _finish(folder: Path, found: Any, command: str) -> str:
    from circuitdisc.pages.transfer import transfer_text, transfer_verdict, write_transfer
    from circuitdisc.runs import writing

    with writing(folder):
        write_transfer(folder / PAGE, found, command)
    page = folder / PAGE
    data = {"folder": folder, "page": page, **transfer_verdict(found).data, "result": found.to_dict()}
    return Output(f"{transfer_text(found)}\n\nfolder  {folder}\npage    {page}", data)


JOB = Job(
    name="transfer",
    summary="the circuit of each checkpoint, scored on every one of them",
    text="""Finds the circuit of every checkpoint (or takes circuits that are given) and scores each on each of them, on search
and on held-out examples, with intervals and random circuits of equal size; what the circuits share; what is kept, gained and
lost along the ladder. Leaves transfer.json, arrays.npz, transfer.html, and a file for every circuit and every cell: the same
command again, or `circuitdisc transfer out=FOLDER` alone, goes on with a call that was killed.

  circuitdisc transfer checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp \\
      algorithm=head_ablation metric=accuracy task.n_heldout=3000 joint=true donor=[tpp/lightweight:tpp/welterweight]
  circuitdisc transfer checkpoints=[tpp/featherweight,tpp/lightweight] task=tpp circuits=[runs/feather,runs/light]""",
    config="transfer",
    lists=("checkpoints", "circuits", "donor"),
    by_ranks=True,
    recorded=True,
    spreads=True,
    work=_work,
)
