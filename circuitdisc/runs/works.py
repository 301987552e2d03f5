"""What a folder holds that can be gone on with, and how: for `circuitdisc resume FOLDER`.

    for work in works_in(folder):
        work.job        discover, transfer, finetune, dcm, localise, score (a judgement), or one of a run's `USES`
        work.words      the command that goes on, with the folder where it lies now
        work.begun_in   the folder that relative names in the words start from

A run and a transfer say in their config.json all that they need; everything else says in its journal's first line which command
began it (`calls.py`). The words are data of whoever made the folder: one of the commands above with this
folder as its own, which goes through the command line's checks, and never through a shell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from circuitdisc.errors import BadFile, BadRun, shown
from circuitdisc.files import read_json
from circuitdisc.runs.journal import Journal

CONFIG, JOURNAL = "config.json", "journal.jsonl"
TRANSFER = "circuitdisc.transfer.settings"
"""The format that a transfer's config.json names."""
RESULTS = ("scores.json", "transfer.json", "result.json")
"""The last file of a search, of a transfer, and of other work that keeps a journal."""
USES = ("judgement.*", "stability", "certify", "rivals", "specificity", "backups", "mixtures", "positions")
PARTIAL = tuple(f"{name}.partial.jsonl" for name in USES)
"""Journals in a run's folder of jobs that use its circuit; each is removed when its job is done."""


@dataclass(frozen=True)
class Work:
    """A piece of work in a folder.

    Args:
        job: the command's name.
        words: the command that goes on with it.
        begun_in: the folder that relative names in the words start from.
    """

    job: str
    words: tuple[str, ...]
    begun_in: Path


def works_in(folder: Path) -> list[Work]:
    """The work in a folder: of a run first its search, then what uses its circuit and was killed.

    Raises:
        BadRun: there is none, or it does not say how it goes on.
    """
    if not folder.is_dir():
        raise BadRun(f"there is no run folder {folder}")
    works = list(_works(folder))
    if not works:
        raise BadRun(f"{folder} is not a run, nor other work that can be gone on with: it has neither {CONFIG} nor {JOURNAL}")
    return works


def _works(folder: Path) -> Iterator[Work]:
    place = str(folder.resolve())
    if (folder / CONFIG).exists():
        if is_transfer(folder):
            yield Work("transfer", ("circuitdisc", "transfer", f"out={place}"), Path.cwd())
            return
        yield Work("discover", ("circuitdisc", "resume", place), Path.cwd())
        by_words = {work.words: work for pattern in PARTIAL for path in sorted(folder.glob(pattern)) for work in _begun(path)}
        yield from by_words.values()
    elif (folder / JOURNAL).exists():
        if not (works := list(_begun(folder / JOURNAL))):
            raise BadRun(
                f"{folder / JOURNAL} does not say which command began it (a call from Python did, or an older circuitdisc): "
                "give the same call again, and it goes on"
            )
        yield from works


def is_finished(folder: Path) -> bool:
    """Whether work has left its result in a folder, and nothing there waits to be gone on with."""
    left = any(path for pattern in PARTIAL for path in folder.glob(pattern))
    return not left and any((folder / name).is_file() for name in RESULTS)


def is_transfer(folder: Path) -> bool:
    """Whether a folder's config.json is that of a transfer."""
    try:
        config = read_json(folder / CONFIG)
    except BadFile:
        return False
    return isinstance(config, dict) and config.get("format") == TRANSFER


@dataclass(frozen=True)
class _Call:
    """The command that a journal's first line names, as `calls.py` writes it."""

    job: Literal[
        "finetune", "dcm", "localise", "score", "stability", "certify", "rivals", "specificity", "backups", "mixtures",
        "positions",
    ]  # fmt: skip
    words: list[str]
    begun_in: str
    folder: str


def _begun(journal: Path) -> Iterator[Work]:
    """The work of a journal whose first line names the command that began it.

    Raises:
        BadRun: it names what is no command that goes on.
    """
    from circuitdisc.schemas import validate  # not at the top: the command line's help does without

    if (recorded := Journal.read(journal).call) is None:
        return
    call = validate(_Call, recorded, f"{journal}, the command that began it", error=BadRun)
    texts = (*call.words, call.begun_in, call.folder)
    if call.words[:2] != ["circuitdisc", call.job] or any("\0" in text for text in texts):
        raise BadRun(f"{journal} names {shown(call.words)} as the command that began it, which is no `circuitdisc {call.job}`")
    begun_in = Path(call.begun_in)
    words = moved(call.words, begun_in, Path(call.folder), journal.parent.resolve())
    yield Work(call.job, words, begun_in if begun_in.is_dir() else Path.cwd())


def moved(words: list[str], begun_in: Path, lay_in: Path, lies_in: Path) -> tuple[str, ...]:
    """The words of a command with its folder where that lies now; a folder that it had chosen itself is added."""
    now = [
        f"out={lies_in}" if word.startswith("out=") else str(lies_in) if (begun_in / word).resolve() == lay_in else word
        for word in words[2:]
    ]
    has_folder = any(word in (str(lies_in), f"out={lies_in}") for word in now)
    return (*words[:2], *now, *(() if has_folder else (f"out={lies_in}",)))
