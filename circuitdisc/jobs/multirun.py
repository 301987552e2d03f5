"""`circuitdisc COMMAND -m`: every combination of comma-separated values, each a cell: a call with a folder of its own.

    FOLDER/NUMBER/         what a cell's call leaves
    FOLDER/NUMBER.error    the sentence of a cell that failed
    FOLDER/cells/          the list of cells, and the log of each (`runs/cells.py`)
    FOLDER/summary.csv     a line a cell

The same command again, or one with more values, runs what is not done. A cell is known by its settings, whatever its place in
the command; it is done if its log says so of the same version and of the same files. Where these differ, a search's
weights and examples are compared by their hashes, as by `circuitdisc resume`, and nothing is searched again.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun, BadSetting, Stopped
from circuitdisc.files import make_folder, read_json, remove, write_text
from circuitdisc.identity import Identity, hash_bytes, hash_file, in_words, package_version
from circuitdisc.jobs.config import DISCOVER, read_overrides
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output
from circuitdisc.jobs.spelling import in_quotes
from circuitdisc.jobs.spread import check_launch, launch, launch_words
from circuitdisc.plugins import versions_behind
from circuitdisc.runs import Cells, CellState, check_free
from circuitdisc.shipped import shipped_models

CONFIG, SCORES, SUMMARY = "config.json", "scores.json", "summary.csv"
BUDGETS = ("memory", "threads", "progress")
"""Settings that change no result."""
NOT_COMPARED = {*BUDGETS, "command", "started", "versions", "out"}
FILES_OF_A_FOLDER = 1000  # that are looked at
SMALL_BYTES = 2**24  # of a file that is read whole; of a larger one size and date are looked at
LISTED = 10  # cells that a sentence names


def multirun(job: Job, args: Sequence[str]) -> str:
    """Run every combination that is not done yet; returns a table of all.

    Raises:
        BadRun: some of the cells failed or were not finished.
        Stopped: Ctrl-C.
    """
    launcher, rest = launch_words(args)
    check_launch(launcher)
    assert job.config is not None, "only a command with settings has several of them"
    what = "setting" if job.name == DISCOVER else f"setting of {job.name}"
    overrides = read_overrides(rest, job.config, what, job.lists, multirun=True)
    folder = _folder(job, [override for override in overrides if override.startswith("out=")])
    combinations = _combinations([override for override in overrides if not override.startswith("out=")])
    cells = Cells(folder)
    make_folder(folder)
    with cells.listing():
        listed = dict(cells.read()[1]) if cells else {}
        names = {_key(words): name for name, words in listed.items()}
        own = dict[str, tuple[str, ...]]()
        for words in ((job.name, *combination) for combination in combinations):
            own[names.setdefault(_key(words), str(len(names)))] = words
        cells.enter(Call(job, tuple(args), {"--multirun": ""}).command, {**listed, **own})
    todo = [name for name, words in own.items() if not _is_done(cells, folder, name, words)]
    if len(own) > len(todo):
        print(f"circuitdisc: {len(own) - len(todo)} of {len(own)} cells of {folder} are done", file=sys.stderr)
    try:
        if todo:
            launch("circuitdisc.jobs.multirun:run_cells", folder, todo, launcher)
    except KeyboardInterrupt as stop:
        of_job = f"{stop}; " if isinstance(stop, Stopped) else ""
        raise Stopped(f"{of_job}finished jobs are in {folder}, and the same command with out={folder} goes on") from stop
    return _ended(folder, cells, list(own))


def _folder(job: Job, given: Sequence[str]) -> Path:
    value = given[-1].partition("=")[2] if given else "null"
    if value in ("", "null"):
        of_job = "" if job.name == DISCOVER else f"{job.name.replace(' ', '_')}_"
        return Path("runs") / f"{of_job}multirun_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([given[-1]])
    if override.is_sweep_override():
        raise BadSetting("out= is the folder of all cells: name one")
    return Path(str(getattr(override.value(), "text", override.value())))


def _combinations(overrides: list[str]) -> list[tuple[str, ...]]:
    """Every choice of one value of each setting, in the order in which they were typed."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise BadSetting(f"these settings cannot be read: {' '.join(str(error).split())}") from error
    return [tuple(words) for words in batch]


def _key(words: Iterable[str]) -> tuple[str, ...]:
    """What makes a cell the same: its command and its settings, without budgets."""
    return tuple(sorted(word for word in words if word.partition("=")[0] not in BUDGETS))


def _ended(folder: Path, cells: Cells, names: Sequence[str]) -> str:
    """The table of all cells, which is also left as a file."""
    from circuitdisc.jobs.collect import rows_of, short_table, table_csv

    rows = rows_of(folder)
    write_text(folder / SUMMARY, table_csv(rows))
    table = short_table(rows)
    states = [cells.state(name) for name in names]
    left = {status: [state.name for state in states if state.status == status] for status in ("failed", "running", "waiting")}
    if any(left.values()):
        print(table)
    if failed := left["failed"]:
        some = f"{', '.join(failed[:LISTED])}{', ...' if len(failed) > LISTED else ''}"
        raise BadRun(f"{len(failed)} of the jobs failed ({some}): their sentences are in {folder}/*.error")
    if unfinished := [*left["running"], *left["waiting"]]:
        raise BadRun(
            f"{len(unfinished)} of {len(names)} cells are not finished (another call runs them, or they were killed): "
            f"`circuitdisc status {folder}` lists them, and the same command with out={folder} goes on"
        )
    return Output(f"{table}\n\nfolder  {folder}\ntable   {folder / SUMMARY}", {"folder": folder, "runs": rows})


# --- in a job of the launcher -----------------------------------------------------------------------------------------------


def run_cells(folder: Path, names: Sequence[str], more: str = "") -> None:
    """Run those of some cells that are not done, and that no other process runs."""
    cells = Cells(folder)
    _, listed = cells.read()
    for name in names:
        words = listed[name]
        with cells.claim(name) as state:
            if state is None:
                print(f"circuitdisc: job {name} is run by another process", file=sys.stderr)
            elif not _is_done(cells, folder, name, words):
                _run_cell(cells, folder, name, words, state)


def _run_cell(cells: Cells, folder: Path, name: str, words: tuple[str, ...], before: CellState) -> None:
    clock, stamp, sentence = time.perf_counter(), _stamp(words), folder / f"{name}.error"
    try:
        if not before.begun and not (words[0] == DISCOVER and (folder / name / CONFIG).exists()):
            check_free(folder / name)  # what lies there is of no cell
        cells.begin(name)
        _call(folder / name, words, before)
    except Exception as error:  # whatever it is, it ends this cell alone
        why = cells.fail(name, error)
        print(f"circuitdisc: job {name}: {why}", file=sys.stderr)
        write_text(sentence, f"{why}\n")
        return
    sentence.unlink(missing_ok=True)
    seconds = time.perf_counter() - clock
    cells.finish(name, seconds, stamp=stamp)
    print(f"job {name} in {seconds:.1f} s: {' '.join(words[1:])}", flush=True)


def _call(out: Path, words: tuple[str, ...], before: CellState) -> None:
    """The call of a cell, or what is left of one that was killed."""
    from circuitdisc.jobs.registry import REGISTRY

    job, args = REGISTRY.get(words[0]), [*words[1:], f"out={in_quotes(str(out))}"]
    if job.name == DISCOVER and (out / CONFIG).exists():
        from circuitdisc.jobs.pipeline import resume

        _check_settings(out, Call(job, tuple(args)).settings)
        resume(out, progress="progress=false" not in map(str.lower, words))
        return
    has_result = (leaves := job.leaves) is not None and (out / leaves.result).exists()
    if has_result and before.finished:
        raise BadRun(f"{out} is of other files or another version of circuitdisc: remove it, and the same call makes it again")
    if has_result or job.name == DISCOVER or (leaves is not None and not leaves.resumes):
        remove(out)  # a kill has left it: of a search before anything was said in it
    job(args)


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """A run that was begun has the settings of its cell.

    Raises:
        BadRun: it has not; the message names the difference.
    """
    from circuitdisc.bound import at_home

    begun, now = read_json(out / CONFIG), at_home(settings)
    begun = dict(begun) if isinstance(begun, dict) else {}
    if now["scoring"].get("n_random") == "auto":  # the run has put a number in its place
        begun["scoring"] = {**dict(begun.get("scoring") or {}), "n_random": "auto"}
    own = [Identity(settings={key: value for key, value in each.items() if key not in NOT_COMPARED}) for each in (begun, now)]
    if different := own[0].differences(own[1]):
        raise BadRun(f"{out} was begun with {in_words(different)}: choose another folder with out=, or remove it")


# --- whether a cell is done ---------------------------------------------------------------------------------------------------


def _is_done(cells: Cells, folder: Path, name: str, words: tuple[str, ...]) -> bool:
    """Whether a cell's log says that it is done, of what it would be now, and what it has left is still there."""
    from circuitdisc.jobs.registry import REGISTRY

    state, job = cells.state(name), REGISTRY.get(words[0])
    last = SCORES if job.name == DISCOVER else job.leaves.result if job.leaves is not None else ""
    return state.status == "done" and (folder / name / last).exists() and state.stamp == _stamp(words)


def _stamp(words: Sequence[str]) -> str:
    """What shows at once that a cell would be the same: versions, the settings, and the files that these name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    settings = _key(words)
    overrides = OverridesParser.create().parse_overrides([word for word in settings if "=" in word])
    names = list(dict.fromkeys(name for override in overrides for name in _names(override.value())))
    parts = [package_version(), *versions_behind({words[0], *names}), *settings]
    for name in names:
        parts += _files(name)
    return hash_bytes("\n".join(parts).encode())


def _names(value: Any) -> Iterator[str]:
    """What may be a name in a setting's value: every text in it, whole, and what stands between its spaces, colons, ..."""
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _names(inner)
    elif isinstance(value, str):
        yield from (value, *re.split(r"[\s\[\]{},:'\"]+", value))


@cache
def _hash(path: Path, date: int) -> str:
    """Of a file that is read again where its date has changed."""
    return hash_file(path)


def _files(name: str) -> Iterator[str]:
    """The files behind a name: a file, a folder, or a model that ships with the package or is in the hub's cache."""
    path = shipped_models().get(name) or Path(name).expanduser()
    try:
        is_there = bool(name) and path.exists()
        if is_there:
            files = (
                [path] if path.is_file() else [each for each in islice(path.rglob("*"), FILES_OF_A_FOLDER) if each.is_file()]
            )
            for file in sorted(files):
                place, state = file.relative_to(path), file.stat()
                small = state.st_size <= SMALL_BYTES
                yield f"{place} {_hash(file, state.st_mtime_ns) if small else f'{state.st_size} {state.st_mtime_ns}'}"
    except OSError:  # no name of a file, or one that is being written
        return
    if not is_there and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not re.fullmatch(r"[\d.e-]*", name):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(name, CONFIG)
        except HFValidationError:
            return
        yield cached if isinstance(cached, str) else ""  # a path with the commit in it
