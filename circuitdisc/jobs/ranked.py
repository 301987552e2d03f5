"""Commands under `torchrun`: every process does the work, and the first one alone writes and speaks.

    torchrun --nproc-per-node 4 -m circuitdisc discover model=gpt2 task=ioi

The others have a copy of the run's folder for themselves, made of the first one's bytes and thrown away at the end, so that
runs, journals and pages know nothing of ranks, and the folder need not lie on a disk that all machines share. Commands that do
not spread their work are done by the first process alone.

Light to import: torch is loaded where a command spreads its work.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun, RanksLost
from circuitdisc.files import size_words

INTERRUPTED, BAD_INPUT = 130, 2
MOST_BYTES = 2**32
FAILED, SAID, SPEAKER = "failed", "said", "speaker"
"""Where ranks leave for each other the sentence of one that failed, that the first has spoken, and who speaks in its place."""
PATIENCE = timedelta(seconds=5)


@dataclass
class _Joined:
    """This process among those of the call, once they have found each other.

    Args:
        store: of torch.distributed: a table that outlives each of them.
        copies: folders of the first process, by where this one has its own copy.
        at_work: False once the command is over.
    """

    rank: int
    store: Any
    copies: dict[Path, Path] = field(default_factory=dict)
    at_work: bool = True


_joined: _Joined | None = None
_n_commands = 0  # that this process has taken part in


def place() -> tuple[int, int] | None:
    """This process's rank, and how many there are, where torchrun has started several."""
    n = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    return (int(os.environ["RANK"]), n) if n > 1 else None


def speaks() -> bool:
    """Whether this process is the one that people hear."""
    return (place() or (0, 1))[0] == 0


def is_split(args: Sequence[str]) -> bool:
    """Whether a command's arguments split its model over processes, so that all of them have its work."""
    return any(arg.removeprefix("model.").startswith(("parallel.tensor=", "parallel=")) for arg in args)


@contextmanager
def ranked(spreads: bool) -> Iterator[bool]:
    """Take part in a command; yields whether this process has any of its work.

    Args:
        spreads: whether the command spreads its work, or its model is split; else it is the first process's.
    """
    here = place()
    if here is None:
        yield True
    elif not spreads:
        n = os.environ.pop("WORLD_SIZE")  # so that nothing in it waits for the others, who have left
        try:
            yield here[0] == 0
        finally:
            os.environ["WORLD_SIZE"] = n
    elif _joined is not None and _joined.at_work:  # a command within a command
        yield True
    else:
        with _joining(*here):
            yield True


@contextmanager
def by_first() -> Iterator[bool]:
    """Work of the first process alone, within a command that spreads; yields whether this one has it."""
    from circuitdisc.engine.ranks import alone

    with alone():
        yield speaks()


@contextmanager
def _joining(rank: int, n: int) -> Iterator[None]:
    global _joined, _n_commands
    import torch
    from torch import distributed
    from torch._C._distributed_c10d import PrefixStore, TCPStore  # as torch.distributed offers them, with their types

    from circuitdisc.engine.ranks import join, spread_over

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    table = TCPStore(address, port, n, is_master=hosts)
    _n_commands += 1
    own = f"circuitdisc/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{_n_commands}"
    store = PrefixStore(own, table)
    signal.signal(signal.SIGTERM, _told_to_end)
    _joined = _Joined(rank, store)
    try:
        with _quiet(rank), spread_over(join(rank, n, PrefixStore("ranks", store))):
            yield
        distributed.destroy_process_group()
    finally:
        _joined.at_work = False
        for copy in _joined.copies:
            shutil.rmtree(copy.parent, ignore_errors=True)


def _told_to_end(*_: object) -> None:
    """torchrun ends the processes that are left when one has died; one that is ending already goes on with that."""
    if sys.exc_info()[0] is None:
        raise RanksLost((place() or (0, 1))[1])


@contextmanager
def _quiet(rank: int) -> Iterator[None]:
    if rank == 0:
        yield
        return
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


# --- the folder -----------------------------------------------------------------------------------------------------------


def own_folder(folder: Path) -> Path:
    """The folder that this process writes: the first process's is the call's, the others have a copy of it as it is now.

    Raises:
        BadRun: it holds more than is ever copied.
    """
    if _joined is None or not _joined.at_work:
        return folder
    from circuitdisc.engine.ranks import ranks

    everyone = ranks().everyone
    if everyone.n == 1:  # within work of the first process alone
        return folder
    head, _, content = everyone.broadcast(_packed(folder) if _joined.rank == 0 else b"").partition(b"\n")
    if _joined.rank == 0:
        return folder
    named = json.loads(head)
    copy = Path(tempfile.mkdtemp(prefix="circuitdisc-")) / folder.name
    _joined.copies[copy] = Path(named["folder"])
    if named["files"] is not None:
        copy.mkdir()
    for name, size in named["files"] or ():
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[:size])
        content = content[size:]
    return copy


def _packed(folder: Path) -> bytes:
    """A line that names the folder's files with their sizes, and their bytes; locks and links are left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name[0] != ".")
    if (size := sum(path.stat().st_size for path in paths)) > MOST_BYTES:
        raise BadRun(f"{folder} holds {size_words(size)}, too much to hand to the other processes: go on with one process")
    parts = [path.read_bytes() for path in paths]
    names = [[path.relative_to(folder).as_posix(), len(part)] for path, part in zip(paths, parts, strict=True)]
    head = {"folder": str(folder), "files": names if folder.is_dir() else None}
    return b"\n".join([json.dumps(head).encode(), b"".join(parts)])


# --- the end --------------------------------------------------------------------------------------------------------------


def last_words(text: str, status: int) -> tuple[str, int]:
    """What this process says at the end of a call that failed, and its exit status: among several only one says it.

    The first process says its own sentence, or that of another whose end has ended it. Where it is the first that has died,
    one of the others speaks.
    """
    if _joined is None:
        return (text if speaks() else ""), status
    store = _joined.store
    with suppress(Exception):  # the table is gone with the machine that had it: say what there is to say
        if _joined.rank == 0:
            if status == INTERRUPTED and store.check([FAILED]):
                text, status = store.get(FAILED).decode(), BAD_INPUT
            store.set(SAID, "")
            return text, status
        if status == BAD_INPUT:
            store.set(FAILED, text)
        with suppress(RuntimeError):  # nobody has spoken
            store.wait([SAID], PATIENCE)
            return "", status
        if store.add(SPEAKER, 1) > 1:
            return "", status
    for copy, folder in _joined.copies.items():
        text = text.replace(str(copy), str(folder))
    return text, status


def leave(status: int) -> None:
    """End this process; of several, one that failed waits for no other."""
    if _joined is not None and status:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)
