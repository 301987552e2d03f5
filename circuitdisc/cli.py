"""The command line, on Typer: names, options, help and the shell's completion. What a command does is its job's (`jobs/`).

Settings are `key=value` words that Hydra reads, so that Typer sees them as free arguments. Light to import: torch and Hydra are
loaded only by the commands that need them.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from circuitdisc import __version__
from circuitdisc.errors import CircuitdiscError, RanksLost, Stopped, UnknownName, tidy
from circuitdisc.jobs.heads import GROUP as HEADS
from circuitdisc.jobs.help import completions, group_help, job_help, main_help
from circuitdisc.jobs.job import Job
from circuitdisc.jobs.notes import as_notes
from circuitdisc.jobs.output import JSON, as_json
from circuitdisc.jobs.ranked import BAD_INPUT, INTERRUPTED, last_words, leave, speaks
from circuitdisc.jobs.registry import REGISTRY, TASKS, hides_own
from circuitdisc.progress import hidden
from circuitdisc.terminal import fitted, fitted_help

GROUPS = {"heads": HEADS, "tasks": TASKS}
"""What commands of two words have in common, by the first."""
SETTINGS = {"help_option_names": ["-h", "--help"], "ignore_unknown_options": True, "allow_extra_args": True}
QUIET, SHORT = ("--quiet", "-q"), {"--multirun": ["-m"]}

UNREADABLE: type[Exception] = typer.BadParameter.__mro__[2]  # pyright: ignore[reportAssignmentType]
"""What the parser of options raises: ClickException, which Typer has from Click or, of late, from a copy within itself."""

Work = Callable[[], None]
"""What is left to do once the words are understood."""


class _Command(TyperCommand):
    """A command whose help is ours."""

    def get_help(self, ctx: typer.Context) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - a context of click's
        return fitted_help(job_help(REGISTRY.get(_full_name(ctx))))


class _Group(TyperGroup):
    """Commands with our help; an unknown one gets the nearest names."""

    def get_help(self, ctx: Any) -> str:
        group = str(ctx.info_name)
        return fitted_help(main_help() if ctx.parent is None else group_help(group, GROUPS.get(group, "")))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            what, where = ("command", "") if ctx.parent is None else (f"tool of {ctx.info_name}", f" {ctx.info_name}")
            raise UnknownName(what, args[0], self.commands, f"`circuitdisc{where} --help` describes them.")
        return super().resolve_command(ctx, args)


def _full_name(ctx: Any) -> str:
    """`heads roles`: a command's name below the program's."""
    return ctx.command_path.partition(" ")[2]


def _app() -> typer.Typer:
    """All commands of the registry; those of other packages are imported when they are called."""
    settings: dict[str, Any] = {"cls": _Group, "context_settings": SETTINGS, "rich_markup_mode": None}
    app = typer.Typer(name="circuitdisc", pretty_exceptions_enable=False, **settings)
    app.callback()(_program)
    groups: dict[str, typer.Typer] = {}
    for name in REGISTRY.names:
        if hides_own(name):
            continue  # `circuitdisc list commands` says why
        group, _, tool = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(**settings)
            app.add_typer(groups[group], name=group)
        place = groups[group] if group else app
        place.command(tool, cls=_Command, context_settings=SETTINGS)(_typed(name))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"circuitdisc {__version__}")
        raise typer.Exit


def _program(version: bool = typer.Option(False, "--version", "-V", is_eager=True, callback=_print_version)) -> None:
    """Options of the program itself."""


def _typed(name: str) -> Callable[..., Work]:
    """A command as a function that Typer calls with the words of the command line."""

    def complete(incomplete: str) -> list[str]:
        try:
            return list(completions(REGISTRY.get(name), incomplete))
        except CircuitdiscError:  # it cannot be used; a call says why
            return []

    def command(ctx: typer.Context, words: list[str] = typer.Argument(None, autocompletion=complete)) -> Work:  # noqa: B008
        job, args = REGISTRY.get(name), [*(words or []), *ctx.args]
        known = {flag: option for option in job.flags for flag in _spellings(option)}
        options, rest, quiet, json = dict[str, str](), list[str](), False, False
        while args:
            flag, equals, value = (arg := args.pop(0)).partition("=")
            if arg in QUIET:
                quiet = True
            elif arg == JSON and JSON not in known:
                json = True
            elif flag in known:
                option, _, takes_value = known[flag].partition(" ")
                options[option] = args.pop(0) if takes_value and not equals and args else value
            elif arg.startswith("-"):
                raise UnknownName("option", flag, [*known, *QUIET, JSON, "--help"], "Settings are written key=value.")
            else:
                rest.append(arg)
        if quiet and job.config is not None and not any(arg.startswith("progress=") for arg in rest):
            rest.append("progress=false")
        return partial(_work, job, rest, options, quiet, json)

    return command


def _spellings(option: str) -> list[str]:
    """How an option may be typed: `--name`, and its letter if it has one."""
    name = option.partition(" ")[0]
    return [name, *SHORT.get(name, [])]


def _work(job: Job, args: list[str], options: dict[str, str], quiet: bool, json: bool) -> None:
    with as_notes(quiet), hidden(quiet), _nothing_on_stdout() if json else nullcontext():
        text = job(args, options)
    if speaks():
        print(as_json(job.name, text) if json else fitted(text))


@contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """What libraries and other processes print goes to stderr: it is no part of the result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        work = typer.main.get_command(_app()).main(args, prog_name="circuitdisc", standalone_mode=False)
        if callable(work):  # else the help or the version was printed
            work()
        return 0
    except CircuitdiscError as error:
        return _end(f"circuitdisc: {error}", BAD_INPUT)
    except KeyboardInterrupt as stop:
        what = str(stop) if isinstance(stop, Stopped | RanksLost) else "nothing was kept"
        return _end(f"\ncircuitdisc: stopped; {what}", INTERRUPTED)
    except BrokenPipeError:
        raise
    except UNREADABLE as error:
        return _end(f"circuitdisc: {' '.join(str(error).split())}", BAD_INPUT)
    except OSError as error:
        return _end(f"circuitdisc: {tidy(f'{error.strerror or error}: {error.filename or str()}')}", BAD_INPUT)


def _end(text: str, status: int) -> int:
    """Say why the command ends, once among all processes of a call; returns the exit status."""
    text, status = last_words(text, status)
    if text:
        print(text, file=sys.stderr)
    return status


def run() -> None:
    """Entry point of the console command."""
    try:
        leave(main())
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        sys.stdout = None
        sys.exit(0)


if __name__ == "__main__":
    run()
