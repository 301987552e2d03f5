"""Cells handed to Hydra's launchers: `launcher=joblib` on this machine, `launcher=submitit` on Slurm; else one by one.

A job of the launcher is a list of names, and the function that runs them; what became of a cell stands in its log
(`runs/cells.py`), so that a launcher need bring nothing back.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import chdir, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from circuitdisc.checks import Whole
from circuitdisc.errors import BadRun, BadSetting, CircuitdiscError, Stopped
from circuitdisc.jobs.config import check_option, compose, conf_dir, plain, read_overrides
from circuitdisc.jobs.queue import waiting_for_the_queue
from circuitdisc.jobs.spelling import in_quotes
from circuitdisc.runs import Cells, computing, handing_out, moved
from circuitdisc.runs.calls import current_call

CONFIG, LAUNCHER, PER_JOB = "cells", "launcher", "cells_per_job"
PLUGINS = {"joblib": ("hydra_joblib_launcher", "parallel"), "submitit": ("hydra_submitit_launcher", "slurm")}
"""Launcher -> the module that it needs, and the extra with which it is installed."""


def launch_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What was typed for the launcher, and everything else."""
    own = [arg for arg in args if arg.partition("=")[0] in (LAUNCHER, PER_JOB) or arg.startswith(("hydra.", "hydra/"))]
    return own, [arg for arg in args if arg not in own]


def check_launch(words: Sequence[str]) -> tuple[str, int]:
    """The launcher that was asked for, and cells in each of its jobs.

    Raises:
        UnknownName, BadSetting: there is none, it is not installed, or a setting cannot be used.
    """
    overrides = read_overrides(words, CONFIG, "setting of the launcher")
    launcher = next((word.partition("=")[2] for word in reversed(overrides) if word.startswith(f"{LAUNCHER}=")), "serial")
    check_option(LAUNCHER, launcher)
    module, extra = PLUGINS.get(launcher, ("", ""))
    if module and find_spec(f"hydra_plugins.{module}") is None:
        raise BadSetting(f"launcher={launcher} needs a package that is not installed: pip install 'circuitdisc[{extra}]'")
    per_job = plain(compose(overrides, CONFIG))[PER_JOB]
    Whole(1, 100_000).check(PER_JOB, per_job)
    return launcher, per_job


def launch(work: str, folder: Path, names: Sequence[str], words: Sequence[str], more: str = "") -> None:
    """Have cells run, and wait until the launcher's jobs have ended.

    Args:
        work: the function `module:name` that runs some: of the folder, their names, and `more`.
        folder: where they lie.
        names: of the cells.
        words: what was typed for the launcher.
        more: plain text for the function.

    Raises:
        BadRun: the launcher could not start its jobs.
        Stopped: Ctrl-C.
    """
    launcher, per_job = check_launch(words)
    if launcher == "serial":
        resolve_name(work)(folder, names, more)
        return
    if (record := folder / "multirun.yaml").is_symlink():  # Hydra writes its settings there
        raise BadRun(f"{record} is a link to another place, and nothing is written through links: remove it")
    cells = Cells(folder)
    while names:
        batches = [names[at : at + per_job] for at in range(0, len(names), per_job)]
        listed = ",".join(f"[{','.join(map(in_quotes, batch))}]" for batch in batches)
        place = in_quotes(str(folder.resolve()))
        begun = {name: cells.state(name).begun for name in names}
        try:
            with waiting_for_the_queue() if launcher == "submitit" else nullcontext():
                _multirun(
                    [*words, f"hydra.sweep.dir={place}", f"+folder={place}", f"+work={work}", f"+names={listed}"]
                    + [f"+more={in_quotes(more)}"] * bool(more)
                )
            return
        except KeyboardInterrupt as stop:
            go_on = "jobs that Slurm has go on (scancel ends them); " if launcher == "submitit" else ""
            raise Stopped(f"{go_on}the same command goes on with the rest") from stop
        except BrokenExecutor:  # joblib gives up when one of its processes is killed; what nobody has begun goes on
            rest = [name for name in names if cells.state(name).begun == begun[name]]
            names = rest if len(rest) < len(names) else []


def _multirun(overrides: list[str]) -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None, "it was initialised"
            hydra.multirun(CONFIG, _job, overrides, with_log_configuration=False)
    except (BrokenExecutor, CircuitdiscError):
        raise
    except Exception as error:  # sbatch refuses, a plugin fails: what it says is for the user
        why = " ".join(str(error).split()) or "it does not say why"
        raise BadRun(f"the launcher failed: {type(error).__name__}: {why}") from error


def _job(config: Any) -> None:
    """A job of the launcher: some cells, one after the other."""
    from hydra.core.global_hydra import GlobalHydra

    from circuitdisc.jobs.notes import as_notes

    place = GlobalHydra.instance()
    launcher, place.hydra = place.hydra, None  # the cells read settings of their own
    try:
        with as_notes():  # a launcher may have begun another process for the job
            resolve_name(config.work)(Path(config.folder), list(config.names), config.get("more", ""))
    finally:
        place.hydra = launcher


# --- units of one call ----------------------------------------------------------------------------------------------------


@contextmanager
def units_handed_out(words: Sequence[str]) -> Iterator[None]:
    """Commands inside hand their units to the launcher that was asked for; without words they compute them."""
    if not words or check_launch(words)[0] == "serial":
        yield
        return

    def hand_out(journal: Path, names: Sequence[str]) -> None:
        folder = journal.parent
        call = current_call(folder)
        assert call is not None, "a command that hands out units is recorded"
        begun_in = Path(call["begun_in"])
        command = moved(call["words"], begun_in, folder.resolve(), folder.resolve())
        print(f"circuitdisc: {len(names)} cells of {folder}: `circuitdisc status {folder}` lists them", file=sys.stderr)
        launch(
            "circuitdisc.jobs.spread:compute_units", folder, names, words, shlex.join([str(begun_in), journal.name, *command])
        )

    with handing_out(hand_out):
        yield


def compute_units(folder: Path, names: Sequence[str], more: str) -> None:
    """Run a command up to its units, and compute some of these.

    Args:
        more: the folder that it was typed in, the name of its journal, and its words.
    """
    from circuitdisc.jobs.registry import REGISTRY

    begun_in, journal, _, *words = shlex.split(more)
    name = max((name for name in REGISTRY.names if words[: len(name.split())] == name.split()), key=len)
    args = words[len(name.split()) :]
    options = {arg: "" for arg in args if arg.startswith("-")}
    rest = [arg for arg in args if arg not in options and not arg.startswith("progress=")]
    try:
        with computing(folder / journal, names), chdir(begun_in):
            REGISTRY.get(name)([*rest, "progress=false"], options)
    except Exception as error:  # whatever it is: before it came to its units
        cells = Cells(folder)
        for unit in names:
            with cells.claim(unit) as state:
                if state is not None:
                    cells.begin(unit)
                    print(f"circuitdisc: {unit}: {cells.fail(unit, error)}", file=sys.stderr)
