"""The command line of `circuitdisc transfer`."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.settings import asks_for_help, help_text, parse, set_threads, stamped_folder, task_word

PAGE = "transfer.html"
GROUPS = ("model", "task", "algorithm", "ablation", "metric")
LISTS = ("checkpoints", "circuits", "donor")
FOLDER = "runs/transfer_<task>_<algorithm>_<date and time>"
WHAT = """Finds the circuit of every checkpoint (or takes circuits that are given) and scores each on each of them, on search
and on held-out examples, with intervals and random circuits of equal size; what the circuits share; what is kept, gained and
lost along the ladder. Leaves transfer.json, arrays.npz, transfer.html, and a file for every circuit and every cell: the same
command again, or `circuitdisc transfer out=FOLDER` alone, goes on with a call that was killed.

  circuitdisc transfer checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight,tpp/welterweight] task=tpp \\
      algorithm=head_ablation metric=accuracy task.n_heldout=3000 joint=true donor=[tpp/lightweight:tpp/welterweight]
  circuitdisc transfer checkpoints=[tpp/featherweight,tpp/lightweight] task=tpp circuits=[runs/feather,runs/light]"""


def transfer_command(args: Sequence[str]) -> str:
    """`circuitdisc transfer` with these arguments; returns what it prints.

    Raises:
        CircuitdiscError: bad input. Nothing is left behind unless something had been found; then the call can go on.
    """
    if asks_for_help(args):
        return help_text("transfer", WHAT, "transfer", GROUPS, folder=FOLDER)
    if named := next((arg for arg in args if arg.startswith(("model=", "model.name="))), None):
        raise BadSetting(f"transfer runs several models, not {named}: name them in checkpoints=[...]")
    config = parse("transfer", "transfer", args, GROUPS, LISTS)
    set_threads(config["threads"])
    if not config["settings"]["checkpoints"]:
        return _go_on(config, args)
    return _begin(config, shlex.join(["circuitdisc", "transfer", *args]))


def _go_on(config: Mapping[str, Any], args: Sequence[str]) -> str:
    """Go on with the transfer in `out`, whose settings are known."""
    from circuitdisc.checkpoints.transfer.transfer import resume_transfer
    from circuitdisc.runs import stoppable

    more = [arg for arg in args if arg.partition("=")[0] not in ("out", "progress", "threads")]
    if not config["out"] or more:
        raise BadSetting(
            "which checkpoints? Give the ladder in its order, as in checkpoints=[tpp/base,tpp/lightweight], or out=FOLDER "
            "alone to go on with a transfer that was begun there"
        )
    folder = Path(config["out"])
    command = f"circuitdisc transfer out={shlex.quote(str(folder))}"
    with stoppable(command, lambda: True):
        return _finish(folder, resume_transfer(folder, config["progress"]), command)


def _begin(config: Mapping[str, Any], command: str) -> str:
    from circuitdisc.checkpoints.transfer.transfer import transfer
    from circuitdisc.runs import is_transfer, stoppable

    own = dict(config["settings"])
    algorithm = dict(config["algorithm"])
    name = algorithm.pop("name")
    folder = Path(config["out"]) if config["out"] else stamped_folder("transfer", task_word(config), name)
    donor = own.pop("donor") or ()
    with stoppable(f"circuitdisc transfer out={shlex.quote(str(folder))}", lambda: is_transfer(folder)):
        found = transfer(
            own.pop("checkpoints"),
            config["task"],
            name,
            out=folder,
            donor="all" if donor == ["all"] else donor,
            ablation=config["ablation"],
            metric=config["metric"].get("name"),
            model_settings={key: value for key, value in config["model"].items() if key != "name"},
            seed=config["seed"],
            memory=config["memory"],
            progress=config["progress"],
            **own,
            **algorithm,
        )
        return _finish(folder, found, command)


def _finish(folder: Path, found: Any, command: str) -> str:
    from circuitdisc.pages.transfer import transfer_text, write_transfer
    from circuitdisc.runs import writing

    with writing(folder):
        write_transfer(folder / PAGE, found, command)
    return f"{transfer_text(found)}\n\nfolder  {folder}\npage    {folder / PAGE}"
