"""One job layer for every command: what is declared once, and the one runner.

A command is a `Job`: its name, its help, its settings (conf/NAME.yaml) and what it does. The runner reads the settings through
Hydra, sets torch's threads, and calls it. A job that computes one result and leaves a folder says what it `leaves`, and its
`find` computes the result; the runner then makes and locks the folder, keeps the journal with which a killed call goes on, and
writes the record, the arrays and the page.

Light to import: torch and Hydra are loaded when a job runs.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from circuitdisc.checks import THREADS
from circuitdisc.errors import BadRun, BadSetting, shown
from circuitdisc.jobs.config import DISCOVER, Config, common_keys, groups_of, own_keys
from circuitdisc.jobs.output import Output, as_output
from circuitdisc.jobs.ranked import is_split, own_folder, place, ranked, speaks

if TYPE_CHECKING:
    from circuitdisc.pages.description import Description
    from circuitdisc.results import Result
    from circuitdisc.runs import Journal

ARRAYS, JOURNAL = "arrays.npz", "journal.jsonl"
LOG = "log="
MULTIRUN = "--multirun"
SEVERAL = "every combination of comma-separated values, for example seed=0,1,2; launcher=joblib or launcher=submitit runs them"


def described_in(place: str) -> "Callable[[Any], Description]":
    """What describes a result: a function, as `module:name`, that is imported when it is called."""
    return lambda result: resolve_name(place)(result)


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """The folder that a call leaves.

    Args:
        heading: of its page.
        words: of the folder's name, before date and time.
        described_by: what describes the result: a function of the job's own, or a module of circuitdisc.pages.
        format: that the record names; None: the result's own keys stand beside the record's.
        result, page: names of the files.
        resumes: whether the call keeps a journal, so that the same command goes on where it was killed.
    """

    heading: str
    words: Callable[["Call"], Sequence[str]]
    described_by: "str | Callable[[Any], Description]"
    format: str | None = None
    result: str = "result.json"
    page: str = "report.html"
    resumes: bool = False


@dataclass(frozen=True)
class Answer:
    """What a job that leaves a folder has computed.

    Args:
        result: one that the job's `described_by` knows.
        subject: the models and the task, in a line.
        notes: what a reader must know of the task, in sentences.
        record: keys of the record beside, or in place of, those of the call.
    """

    result: "Result"
    subject: str
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command.

    Args:
        name: as it is typed, for example `heads roles`.
        summary: a line of `circuitdisc --help`.
        text: more, for the command's own help.
        arguments: what stands before the settings, for example `RUN`.
        options: flags beside `key=value`, with a line of help each; `--name WORD` takes a value.
        config: name of its configuration in conf/, or the path of a YAML file of another package; None: it has no settings.
        lists: own settings that may be written `a,b,c`, without brackets.
        variants: the same command with an option that gives it other settings, for its help.
        by_ranks: whether it spreads its work over processes that torchrun has started; else the first of them does it.
        recorded: whether journals that it begins say its words, with which `circuitdisc resume` goes on.
        spreads: whether its units may be handed to a launcher (`Memo.spread`), or the option with which they may; then it is
            recorded, too.
        own_words: whether it reads all that is typed itself, `launcher=` included.
        work: what it does; returns what is printed, as an `Output` with what `--json` prints. None for a job with `find`.
        find: computes the result of a job that `leaves` a folder.
    """

    name: str
    summary: str = ""
    text: str = ""
    arguments: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    config: Config | None = None
    lists: tuple[str, ...] = ()
    variants: tuple["Job", ...] = ()
    by_ranks: bool = False
    recorded: bool = False
    spreads: bool | str = False
    own_words: bool = False
    work: Callable[["Call"], str] | None = None
    find: "Find | None" = None
    leaves: Leaves | None = None

    def __call__(self, args: Sequence[str], options: Mapping[str, str] | None = None) -> str:
        """The one runner.

        Args:
            args: what was typed after the command, without options.
            options: flags that were typed, with their values.

        Returns:
            What the command prints.

        Raises:
            CircuitdiscError: bad input.
            Stopped: Ctrl-C; it says what goes on.
        """
        from circuitdisc.tracking import NONE, log_result, tracked

        logs = [arg.partition("=")[2] for arg in args if arg.startswith(LOG) and not self.own_words]
        with ranked(self.by_ranks or is_split(args)) as has_work:
            if not has_work:
                return ""
            args = [arg for arg in args if not (logs and arg.startswith(LOG))]
            name = (logs[-1] if logs else None) if speaks() else NONE
            with tracked(name, self.name, args, runs_others=MULTIRUN in (options or {})):
                text = self._run(args, dict(options or {}))
                log_result(as_output(text).data.get("result"))
            return text

    def _run(self, args: Sequence[str], options: dict[str, str]) -> str:
        if MULTIRUN in options:
            from circuitdisc.jobs.multirun import multirun

            _refuse_torchrun("-m runs many calls")
            return multirun(self, args)
        launcher, args = ([], list(args)) if self.own_words else self._for_launcher(args, options)
        call = Call(self, tuple(args), options)
        if not self.recorded:
            return self._do(call)
        from circuitdisc.jobs.spread import units_handed_out
        from circuitdisc.runs.calls import recorded

        if launcher:
            _refuse_torchrun("a launcher runs parts of a call")
        with recorded(self.name, call.words), units_handed_out(launcher):
            return self._do(call)

    @property
    def flags(self) -> Mapping[str, str]:
        """All options: its own, and -m of a command that leaves a folder of its own, and takes settings alone."""
        several = self.config is not None and not self.arguments and "out" in own_keys(self.config)
        return {**self.options, **({MULTIRUN: SEVERAL} if several else {})}

    def _for_launcher(self, args: Sequence[str], options: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """What was typed for a launcher, and everything else.

        Raises:
            BadSetting: the command has nothing to hand out.
        """
        from circuitdisc.jobs.spread import launch_words

        launcher, rest = launch_words(args)
        if launcher and not (self.spreads is True or self.spreads in options):
            these = f"those of {self.spreads}" if self.spreads else "nothing: leave it out"
            these = "several calls with -m" if MULTIRUN in self.flags else these
            raise BadSetting(f"{launcher[0]} is for cells, and of `circuitdisc {self.name}` these are {these}")
        return launcher, rest

    def _do(self, call: "Call") -> str:
        if self.work is not None:
            return self.work(call)
        assert self.find is not None, "a job has work, or finds what it leaves"
        return call.leave(self.find)


Find = Callable[["Call", Path, "Journal | None"], Answer]
"""Computes what a call leaves, in its folder and with its journal, if it keeps one."""


def _refuse_torchrun(what: str) -> None:
    if place() is not None:
        raise BadSetting(f"{what}, and torchrun spreads one call: leave out one of the two (docs/scale.md)")


class Call:
    """One call of a job: what was typed, and, once `settings` is asked for, what it says."""

    def __init__(self, job: Job, args: tuple[str, ...], options: Mapping[str, str] | None = None) -> None:
        self.job, self.args, self.options = job, args, options or {}
        self.started = datetime.now().astimezone()
        self._settings: dict[str, Any] | None = None

    @property
    def words(self) -> list[str]:
        """What was typed."""
        options = [word for flag, value in self.options.items() for word in (flag, value) if word]
        return ["circuitdisc", *self.job.name.split(), *self.args, *options]

    @property
    def command(self) -> str:
        """The line that was typed."""
        return shlex.join(self.words)

    @property
    def given(self) -> set[str]:
        """Keys that were typed."""
        return {arg.partition("=")[0] for arg in self.args if "=" in arg}

    @property
    def settings(self) -> dict[str, Any]:
        """All settings: a section for each group, and own and common ones beside them.

        Raises:
            UnknownName: there is no such setting.
            BadSetting: it cannot be read.
        """
        if self._settings is None:
            self._settings = self.read(self.args)
        return self._settings

    def read(self, args: Sequence[str]) -> dict[str, Any]:
        """Settings from these arguments; torch gets its threads."""
        from circuitdisc.jobs.config import compose, plain, read_overrides

        name = self.job.config
        assert name is not None, "only a job with a configuration has settings"
        what = "setting" if name == DISCOVER else f"setting of {self.job.name}"
        settings = plain(compose(read_overrides(args, name, what, self.job.lists), name))
        check_call(settings)
        return settings

    @property
    def own(self) -> dict[str, Any]:
        """The job's own settings: neither groups nor those of every command."""
        common = set(common_keys(self.config)) | {"out"}
        return {key: self.settings[key] for key in own_keys(self.config) if key not in common}

    @property
    def config(self) -> Config:
        assert self.job.config is not None, "only a job with a configuration has settings"
        return self.job.config

    @property
    def shared(self) -> dict[str, Any]:
        """`seed`, `memory` and `progress`, as most functions take them."""
        return {key: self.settings[key] for key in ("seed", "memory", "progress")}

    @property
    def metric(self) -> str | None:
        return self.settings["metric"].get("name")

    @property
    def model_settings(self) -> dict[str, Any]:
        """How models are loaded, without which."""
        settings = {key: value for key, value in self.settings["model"].items() if key != "name"}
        if any(key.rpartition(".")[0].endswith("parallel") for key in self.given):
            return settings
        return {key: value for key, value in settings.items() if key != "parallel"}  # as it was before there was one

    @property
    def model_name(self) -> str:
        return str(self.settings["model"]["name"])

    @property
    def task_name(self) -> str:
        """The task's name in a folder's name: its file's, if it is one of the user's own."""
        task = self.settings["task"]
        return Path(str(task.get("path") or task["name"])).stem

    @property
    def task_words(self) -> str:
        """What the task is called where people read it."""
        from circuitdisc.wording import task_words

        return task_words(self.settings["task"])

    @property
    def groups(self) -> dict[str, Any]:
        """The sections and the common settings, as a record keeps them."""
        return {key: self.settings[key] for key in (*groups_of(self.config), *common_keys(self.config))}

    def folder(self, words: Sequence[str]) -> Path:
        """`out`, or `runs/<word>_..._<date and time>`."""
        return own_folder(Path(self.settings["out"]) if self.settings["out"] else stamped_folder(*words))

    def leave(self, find: "Find") -> str:
        """Compute a result in the folder of this call, and write it; returns what is printed."""
        leaves = self.job.leaves
        assert leaves is not None, "the job says what it leaves"
        folder = self.folder(leaves.words(self))
        with (_journal_in if leaves.resumes else _new_folder)(self, folder, leaves) as journal:
            return _write(self, folder, leaves, find(self, folder, journal))

    def run_folder(self) -> Path:
        """The first argument, which is the folder of a run.

        Raises:
            BadRun: there is none.
        """
        if not self.args or self.args[0].startswith("-") or ("=" in self.args[0] and not Path(self.args[0]).is_dir()):
            raise BadRun(f"which run? `circuitdisc {self.job.name} RUN` takes the folder of a run")
        return own_folder(Path(self.args[0]))


def stamped_folder(*words: str) -> Path:
    """`runs/<word>_<word>_..._<date and time>`; a path counts as one word."""
    plain = [Path(word).as_posix().strip("./~").replace("/", "-") for word in words]
    return Path("runs") / "_".join([*plain, datetime.now().strftime("%Y-%m-%d_%H-%M-%S")])


def check_call(settings: Mapping[str, Any]) -> None:
    """Composed settings can be used; torch gets its threads.

    Raises:
        BadSetting, UnknownName: one cannot.
    """
    from circuitdisc.sections import check_sections

    if not isinstance(settings.get("out"), str | None):
        raise BadSetting(f"out={shown(settings['out'])} is not the name of a folder: write it as out='...'")
    check_sections(settings)
    set_threads(settings["threads"])


def set_threads(threads: int | None) -> None:
    """Tell torch how many threads to use; None leaves its own choice.

    Raises:
        BadSetting: it is not a whole number that torch can start.
    """
    if threads is None:
        return
    THREADS.check("threads", threads)
    import torch

    torch.set_num_threads(threads)


# --- the folder that a call leaves ----------------------------------------------------------------------------------------


def _write(call: Call, folder: Path, leaves: Leaves, answer: Answer) -> str:
    """Write what was found, then its page; returns what the command prints."""
    from circuitdisc.files import write_arrays, write_json
    from circuitdisc.jobs.registry import REGISTRY
    from circuitdisc.pages.description import describe, description_text, write_description
    from circuitdisc.runs import versions

    seconds = (datetime.now().astimezone() - call.started).total_seconds()
    record = {"command": call.command, **call.groups, "settings": call.own, **answer.record}
    record |= {"started": call.started.isoformat(timespec="seconds"), "seconds": round(seconds, 3)}
    record["versions"] = versions() | REGISTRY.versions(call.job.name)
    if arrays := answer.result.arrays():
        write_arrays(folder / ARRAYS, arrays)
    found = answer.result.to_dict()
    whole = {**found, **record} if leaves.format is None else _within(leaves.format, record, found)
    write_json(folder / leaves.result, whole)  # before the page is drawn, so that an error there loses nothing
    own = leaves.described_by
    if isinstance(own, str):
        import_module(f"circuitdisc.pages.{own}")  # registers how this kind of result is described
    description = (describe if isinstance(own, str) else own)(answer.result).noted(answer.notes)
    page = folder / leaves.page
    write_description(page, description, heading=leaves.heading, subject=answer.subject, settings=record)
    text = f"{answer.subject}\n\n{description_text(description)}\n\nfolder  {folder}\npage    {page}"
    return Output(text, {"folder": folder, "page": page, **description.said.data, "result": found})


def _within(format: str, record: Mapping[str, Any], result: Any) -> dict[str, Any]:
    return {"format": format, "version": 1, **record, "result": result}


@contextmanager
def _new_folder(call: Call, folder: Path, leaves: Leaves) -> Iterator[None]:
    """The folder of a call that computes all at once and writes at the end; made first, so that it is seen to be writable.

    Raises:
        BadRun: the folder is taken or cannot be written.
        Stopped: Ctrl-C.
    """
    from circuitdisc.runs import check_free, stoppable, workspace

    check_free(folder)
    with stoppable(call.command), workspace(folder):
        yield


@contextmanager
def _journal_in(call: Call, folder: Path, leaves: Leaves) -> Iterator["Journal"]:
    """The journal in the folder of a new call, or of one that was killed.

    A call that fails before it has found anything leaves nothing.

    Raises:
        BadRun: the folder holds something else, or a finished result; or another process writes in it.
        Stopped: Ctrl-C; it says what goes on.
    """
    from circuitdisc.runs import Journal, check_free, stoppable, with_out, workspace

    result = folder / leaves.result
    killed = (folder / JOURNAL).is_file() and not result.exists() and not (folder / "config.json").exists()
    if not killed:
        if result.exists():
            raise BadRun(f"the folder {folder} already exists and holds a result: choose another with out=, or remove it")
        check_free(folder)

    def kept() -> bool:
        return bool(Journal.read(folder / JOURNAL).decisions)

    with stoppable(with_out(call.command, folder), kept), workspace(folder, kept):
        journal = Journal(folder / JOURNAL)
        try:
            yield journal
        finally:
            journal.close()
