"""A job's folder: free or its own, seen to be writable before anything is computed, and written by one process at a time."""

import json
import os
import shlex
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from circuitdisc.errors import BadFile, BadRun, BusyFolder, RanksLost, Stopped
from circuitdisc.files import read_json, remove, write_json
from circuitdisc.runs.shares import is_of_a_share

LOCK, WRITER = ".lock", ".writer.json"
"""The file that is locked, and the one that says by whom; both are removed when the writer is done."""

_writing: dict[Path, tuple[int, int]] = {}
"""Folder -> the thread of this process that writes in it, and how often it has asked."""


def check_free(folder: Path) -> None:
    """A new run may go into this folder: it does not exist, or is empty.

    Raises:
        BadRun: it is taken, or cannot be looked at.
    """
    try:
        taken = folder.exists() and (not folder.is_dir() or not _is_empty(folder))
    except OSError as error:
        raise BadRun(f"cannot make the run folder {folder}: {error.strerror}") from error
    if taken:
        what = "`circuitdisc resume` continues it" if (folder / "config.json").exists() else "it is not empty"
        raise BadRun(f"the run folder {folder} already exists ({what}): choose another with out=, or remove it")


def _is_empty(folder: Path) -> bool:
    return all(path.name in (LOCK, WRITER) for path in folder.iterdir())


@contextmanager
def writing(folder: Path, wait: float = 0) -> Iterator[None]:
    """Be the only process that writes in a folder. The lock of a process that has died does not count.

    Args:
        wait: seconds to wait for another process.

    Raises:
        BusyFolder: another process (or thread) writes in it; the message says which, where and since when.
        BadRun: the folder cannot be written.
    """
    import filelock  # not at the top: the command line's help does without

    place, thread = folder.resolve(), threading.get_ident()
    if is_of_a_share(place):  # the process that handed it out writes there, and waits
        yield
        return
    holder, times = _writing.get(place, (thread, 0))
    if times and holder == thread:
        _writing[place] = (thread, times + 1)
        try:
            yield
        finally:
            _writing[place] = (thread, times)
        return
    lock = filelock.FileLock(place / LOCK, timeout=wait, blocking=wait > 0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        by = writer_of(place)
        raise BusyFolder(f"{folder} is being written by {by}: wait until it is done, or stop it", folder) from error
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadRun(f"cannot write in the folder {folder}: {why}. Choose another with out=, or free some space") from error
    _writing[place] = (thread, 1)
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(place / WRITER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        del _writing[place]
        with suppress(OSError):
            (place / WRITER).unlink(missing_ok=True)
        with suppress(OSError):  # while it is locked: who waits for this file sees that it is gone, and makes another
            (place / LOCK).unlink(missing_ok=True)
        lock.release()


def writer_of(folder: Path) -> str:
    """The process that writes in a folder, in words."""
    try:
        writer = read_json(folder / WRITER)
        return f"process {int(writer['pid'])} on {str(writer['host'])[:80]} since {str(writer['since'])[:40]}"
    except (BadFile, TypeError, KeyError, ValueError, json.JSONDecodeError):
        return "another process"  # it has just begun, or is just ending


def is_written(folder: Path) -> bool:
    """Whether a process writes in a folder: one of this machine is looked for, one of another is believed."""
    try:
        writer = read_json(folder / WRITER)
    except BadFile:
        return (folder / WRITER).exists()  # it has just begun
    return not isinstance(writer, dict) or may_run(writer.get("pid"), writer.get("host"))


def may_run(pid: object, host: object) -> bool:
    """Whether a process runs, as far as can be seen from here."""
    if host != socket.gethostname():
        return True  # it cannot be asked
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def workspace(folder: Path, keep: Callable[[], bool] | None = None) -> Iterator[None]:
    """Work in a folder, which is made, locked, and so seen to be writable before anything is computed.

    A folder that was new or empty is left as it was found if an error, or Ctrl-C, ends the work and nothing is worth keeping.

    Args:
        keep: whether what lies in the folder is worth keeping; None: anything is.

    Raises:
        BadRun: the folder cannot be made or written, or another process writes in it.
    """
    if is_of_a_share(folder.resolve()):
        yield
        return
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        is_new = bool(made) or _is_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRun(f"cannot make the run folder {folder}: {error.strerror}. Choose another with out=") from error
    try:
        with writing(folder):
            try:
                yield
            except BaseException:
                if is_new and not (_has_something(folder) if keep is None else keep()):
                    for path in folder.iterdir():
                        remove(path)
                raise
    except BaseException:
        for path in made:  # the innermost first; those that hold something stay
            with suppress(OSError):
                path.rmdir()
        raise


def _has_something(folder: Path) -> bool:
    return not _is_empty(folder)


@contextmanager
def stoppable(command: str | Sequence[str], kept: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Say after Ctrl-C what goes on with the work.

    Args:
        command: that goes on with it.
        kept: whether there is something to go on with.

    Raises:
        Stopped: the user has stopped the work.
    """
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt as stop:
        line = command if isinstance(command, str) else shlex.join(command)
        why = f"{stop}; " if isinstance(stop, RanksLost) else ""
        raise Stopped(why + (f"`{line}` goes on where it was" if kept() else "nothing was kept")) from stop


def with_out(command: str, folder: Path) -> str:
    """A command with the folder that it has chosen itself, so that the same line goes on with the work in it."""
    words = shlex.split(command)
    return command if any(word.startswith("out=") for word in words) else shlex.join([*words, f"out={folder}"])
