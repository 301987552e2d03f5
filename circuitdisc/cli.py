"""The command line. Light to import: torch and Hydra are loaded only by the commands that need them."""

import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from circuitdisc.errors import (
    MOST_IN_A_NOTE,
    BadRun,
    BadSetting,
    CircuitdiscError,
    CircuitdiscWarning,
    Stopped,
    UnknownName,
    tidy,
)

HELP = """circuitdisc: find the part of a transformer that does a task, and prove how good it is.

usage:
  circuitdisc discover [key=value ...]     find a circuit, score it, write a report
  circuitdisc score RUN [key=value ...]    score a run's circuit again (other settings are printed, not saved)
  circuitdisc score RUN --all              also completeness, minimality, hypothesis tests, and a verdict in words
  circuitdisc score --scores FILE [...]    scores of edges that another tool has written; needs model= and task=
  circuitdisc stability RUN [n_samples=..] the run's search again on bootstrap samples of its examples
  circuitdisc export RUN FILE.json         a run's circuit and scores as EAP-IG and the MIB benchmark read them [prune=true]
  circuitdisc report RUN                   write a run's report.html again
  circuitdisc resume RUN                   go on with a run that was killed
  circuitdisc compare RUN_A RUN_B [...]    what the circuits of two runs share, and what their heads do
  circuitdisc finetune model=BASE task=... a ladder of checkpoints: all weights, low-rank, or chosen heads alone
  circuitdisc baselines checkpoints=[..]   how well checkpoints do a task, and what they have forgotten
  circuitdisc transfer checkpoints=[A,...] the circuit of each checkpoint, scored on every one of them
  circuitdisc drift checkpoints=[A,B,...]  how heads change along a ladder: attention, roles, weights, what they add
  circuitdisc cmap base=A tuned=B [...]    cross-model patching: which parts carry what fine-tuning changed
  circuitdisc heads TOOL [key=value ...]   heads and neurons one by one: roles, attention, logits, effects, knockout, neurons
  circuitdisc dcm [key=value ...]          what heads carry: masks that make a patched model say what a desideratum asks for
  circuitdisc localise [key=value ...]     a few heads edited, learned or swept, and what held-out examples make of it
  circuitdisc list models|tasks|algorithms|ablations|metrics

examples:
  circuitdisc discover model=tpp/lightweight task=tpp algorithm=acdc algorithm.threshold=0.01 ablation=mean
  circuitdisc discover model=gpt2 task=prompts.jsonl ablation=resample out=runs/mine
  circuitdisc discover -m model=tpp/featherweight,tpp/lightweight algorithm=acdc,head_ablation

`circuitdisc discover --help` lists every setting. RUN is a run's folder."""

BAD_INPUT, INTERRUPTED = 2, 130
# commands with a file of their own: commands/NAME.py with NAME_command(args) -> text
LATER = ("baselines", "cmap", "compare", "dcm", "drift", "finetune", "heads", "localise", "stability", "transfer")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"circuitdisc {version('circuitdisc')}")
        return 0
    commands = {
        "discover": _discover,
        "score": _score,
        "report": _report,
        "resume": _resume,
        "list": _list,
        "export": _export,
    } | {name: partial(_later, name) for name in LATER}
    try:
        if args[0] not in commands:
            raise UnknownName("command", args[0], commands, "`circuitdisc --help` lists them.")
        with _notes():
            return commands[args[0]](args[1:])
    except CircuitdiscError as error:
        print(f"circuitdisc: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        what = str(stop) if isinstance(stop, Stopped) else "nothing was kept"
        print(f"\ncircuitdisc: stopped; {what}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"circuitdisc: {tidy(f'{error.strerror or error}: {error.filename or str()}')}", file=sys.stderr)
        return BAD_INPUT


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings of ours as lines for people, each text once, without the file and line that Python puts before it.

    How a warning is written is exchanged, not how it is shown, so that a caller who records warnings still gets them.
    """
    python, said = warnings.formatwarning, set[str]()

    def written(message: Any, category: type[Warning], *place: Any, **line: Any) -> str:
        if not issubclass(category, CircuitdiscWarning):
            return python(message, category, *place, **line)
        text = tidy(" ".join(str(message).split()), MOST_IN_A_NOTE)
        if text in said:
            return ""
        said.add(text)
        return f"circuitdisc: note: {text}\n"

    warnings.formatwarning = written
    try:
        yield
    finally:
        warnings.formatwarning = python


# --- discover ------------------------------------------------------------------------------------------------------------


def _discover(args: list[str]) -> int:
    from circuitdisc.jobs.config import check_overrides, compose, discover_help, rewrite

    if {"-h", "--help"} & set(args):
        print(discover_help())
        return 0
    flags = [arg for arg in args if arg.startswith("-")]
    multirun = bool({"-m", "--multirun"} & set(flags))
    unknown = [flag for flag in flags if flag not in ("-m", "--multirun")]
    if unknown:
        raise UnknownName("option", unknown[0], ["--multirun", "--help"], "Settings are written key=value.")
    overrides = rewrite([arg for arg in args if not arg.startswith("-")])
    check_overrides(overrides)
    if multirun:
        return _multirun(overrides)
    return run_job(compose(overrides), ["circuitdisc", "discover", *args])


def _multirun(overrides: list[str]) -> int:
    """Every combination, by Hydra's sweeper and launcher; jobs may run in other processes."""
    import hydra

    from circuitdisc.jobs.config import conf_dir

    given = next((override.partition("=")[2] for override in reversed(overrides) if override.startswith("out=")), "")
    folder = given if given not in ("", "null") else f"runs/multirun_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    overrides = [*(one for one in overrides if not one.startswith("out=")), f"out={folder}", f"hydra.sweep.dir={folder}"]
    if (record := Path(folder, "multirun.yaml")).is_symlink():  # Hydra writes its settings there
        raise BadRun(f"{record} is a link to another place, and nothing is written through links: remove it")
    sys.argv = ["circuitdisc", "--multirun", *overrides]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(_sweep_job)()
    except KeyboardInterrupt as stop:
        of_job = f"of the job at work: {stop}; " if isinstance(stop, Stopped) else ""
        raise Stopped(f"{of_job}finished jobs are in {folder}, and those after it were not begun") from stop
    return BAD_INPUT if any(Path(folder).glob("*.error")) else 0


def _sweep_job(config: Any) -> None:
    """One job of a multirun. A bad one does not end the others: it leaves its sentence in `<number>.error`."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    number, command = hydra_config.job.num, ["circuitdisc", "discover", *hydra_config.overrides.task]
    try:
        with _notes():  # a launcher may have begun another process for the job
            run_job(config, command, number)
    except CircuitdiscError as error:
        print(f"circuitdisc: job {number}: {error}", file=sys.stderr)
        from circuitdisc.files import make_folder, write_text

        make_folder(Path(config.out))  # a job that leaves nothing takes the folder with it
        write_text(Path(config.out, f"{number}.error"), f"{error}\n")


def run_job(config: Any, command: list[str], number: int | None = None) -> int:
    """One job of `circuitdisc discover`, from Hydra's configuration.

    Args:
        command: what the user typed, for the record.
        number: the job's number in a multirun, whose folder `out` is; the job gets a folder in it.
    """
    from circuitdisc.jobs.config import plain
    from circuitdisc.jobs.settings import check_call, set_threads

    composed = plain(config)
    sections = check_call(composed)
    set_threads(composed["threads"])
    sections["command"] = shlex.join(command)
    sections["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
    from circuitdisc.jobs.discover import default_folder, start

    folder = Path(composed["out"]) if composed["out"] else default_folder(sections)
    print(start(sections, folder if number is None else folder / str(number)).summary)
    return 0


# --- commands on a run ---------------------------------------------------------------------------------------------------


def _one_run(command: str, args: list[str]) -> Path:
    if not args or args[0].startswith("-"):
        raise BadRun(f"which run? `circuitdisc {command} RUN` takes the folder of a run")
    return Path(args[0])


def _score(args: list[str]) -> int:
    if any(arg.partition("=")[0] == "--scores" for arg in args):
        from circuitdisc.jobs.scores_file import scores_file_command

        print(scores_file_command(args))
        return 0
    folder = _one_run("score", args)
    from circuitdisc.jobs.config import check_overrides, parse_changes, rewrite

    overrides = rewrite([arg for arg in args[1:] if arg != "--all"])
    check_overrides(overrides)
    if "--all" in args:
        from circuitdisc.jobs.judge import judge

        print(judge(folder, parse_changes(overrides), command=shlex.join(["circuitdisc", "score", *args])).text())
        if not overrides:
            from circuitdisc.jobs.discover import write_page

            print(f"\nreport  {write_page(folder)}")
        return 0
    from circuitdisc.circuit import Circuit
    from circuitdisc.jobs.discover import CIRCUIT, rescore
    from circuitdisc.pages import scores_table

    scores = rescore(folder, parse_changes(overrides))
    print(scores_table(scores, circuit=Circuit.load(folder / CIRCUIT)))
    return 0


def _report(args: list[str]) -> int:
    folder = _one_run("report", args)
    from circuitdisc.jobs.discover import write_page

    print(write_page(folder))
    return 0


def _resume(args: list[str]) -> int:
    folder = _one_run("resume", args)
    from circuitdisc.checkpoints.transfer.store import is_transfer

    if is_transfer(folder):
        return _later("transfer", [f"out={folder}"])
    from circuitdisc.jobs.discover import resume

    print(resume(folder).summary)
    return 0


def _export(args: list[str]) -> int:
    folder = _one_run("export", args)
    switches = {"prune=true": True, "prune=false": False}
    prune = [switches[arg] for arg in args[1:] if arg in switches]
    files = [arg for arg in args[1:] if arg not in switches]
    if len(files) != 1 or not files[0].endswith(".json") or len(prune) > 1:
        raise BadSetting(
            "which file? `circuitdisc export RUN FILE.json` writes the run's circuit and scores there; prune=true leaves out "
            "the edges that EAP-IG drops before it evaluates a circuit"
        )
    from circuitdisc.jobs.discover import export

    print(export(folder, Path(files[0]), prune=bool(prune and prune[0])))
    return 0


def _later(name: str, args: list[str]) -> int:
    """Run a command of `circuitdisc/commands/`, and print what it gives."""
    from importlib import import_module

    print(getattr(import_module(f"circuitdisc.jobs.{name}"), f"{name}_command")(args))
    return 0


def _list(args: list[str]) -> int:
    kinds = ("models", "tasks", "algorithms", "ablations", "metrics")
    if len(args) != 1 or args[0] not in kinds:
        raise UnknownName("list", " ".join(args), kinds, "`circuitdisc list tasks`, for example.")
    from circuitdisc.pages.tables import text_table

    print(text_table(("name", "what it is"), _rows(args[0])))
    return 0


def _rows(kind: str) -> list[tuple[str, str]]:
    if kind == "models":
        from circuitdisc.shipped import described_models

        return described_models()
    if kind == "tasks":
        from circuitdisc.tasks.registry import REGISTRY as registry
    elif kind == "algorithms":
        from circuitdisc.discovery.registry import REGISTRY as registry
    elif kind == "ablations":
        from circuitdisc.ablation.registry import REGISTRY as registry
    else:
        from circuitdisc.metrics import REGISTRY as registry
    return registry.described()


def run() -> None:
    """Entry point of the console command."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        sys.stdout = None
        sys.exit(0)


if __name__ == "__main__":
    run()
