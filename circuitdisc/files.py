"""Reading and writing files so that nothing is half-written, no link is followed, and every failure is a sentence.

Everything that the package writes goes through `replacing`, `begin_file` or a folder of `fresh_folder`: bytes go into a new
file under a random name in the same folder (`O_EXCL`, so that a link or a file that lies there is never opened), reach the
disk, and take the wanted name by a rename, which replaces a link itself and not what it points to.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from circuitdisc.errors import BadFile, BadRun

if TYPE_CHECKING:
    import numpy as np


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        BadFile: the file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        BadFile: the file is missing or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise BadFile(f"{path} is not JSON (line {error.lineno}: {error.msg}); was it cut short?") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; one that exists is left as it is.

    Raises:
        BadRun: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRun(f"cannot make the folder {folder}: {error.strerror}") from error


def make_inner_folder(folder: Path) -> None:
    """Make a folder inside one that may come from a stranger: a link in its place is refused.

    Raises:
        BadRun: it is a link, or cannot be made.
    """
    if folder.is_symlink():
        raise BadRun(f"{folder} is a link to another place, and nothing is written through links: remove it")
    make_folder(folder)


def refuse_links(folder: Path) -> None:
    """Make sure that neither a folder nor anything below it is a link, since other libraries will write in it.

    Raises:
        BadRun: there is one; the message names it.
    """
    below = (Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    link = next((path for path in (folder, *below) if path.is_symlink()), None)
    if link is not None:
        raise BadRun(f"{link} is a link to another place, and nothing is written through links: remove it")


@contextmanager
def replacing(path: Path) -> "Iterator[IO[bytes]]":
    """A new file for the bytes of `path`, which it replaces once it is whole and on the disk.

    Raises:
        BadRun: the folder cannot be written or the disk is full; the target is left as it was.
    """
    try:
        file, beside = _fresh_file(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):  # a read-only disk refuses this, too
                beside.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def begin_file(path: Path, text: str) -> "IO[bytes]":
    """Replace a file by a new one with this text, and leave it open so that more can be written behind it.

    Raises:
        BadRun: the folder cannot be written or the disk is full; the target is left as it was.
    """
    try:
        file, beside = _fresh_file(path)
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):  # a full disk refuses the rest of the text
                file.close()
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return file


def _fresh_file(path: Path) -> "tuple[IO[bytes], Path]":
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(beside, flags, 0o666), "wb"), beside


def _cannot_write(path: Path, error: OSError) -> BadRun:
    return BadRun(f"cannot write {path}: {error.strerror or error}. Free some space or choose another folder")


def sync(path: Path) -> None:
    """Make sure that a file's bytes, or the names in a folder, are on the disk; file systems that cannot are left alone."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A new folder for what another library writes, which replaces `folder` once it is whole and on the disk.

    Raises:
        OSError: it cannot be made or put in its place; `folder` is left as it was.
    """
    for left in folder.parent.glob(f".{folder.name}.*.part"):  # what a kill has left
        remove(left)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
    beside.mkdir()
    try:
        yield beside
        for path in (*beside.rglob("*"), beside):
            sync(path)
        remove(folder)
        os.replace(beside, folder)
    except BaseException:
        remove(beside)
        raise
    sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link (never what it points to), as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        BadRun: the folder cannot be written or the disk is full; the target is left as it was.
    """
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, as `write_bytes` does.

    Raises:
        BadRun: the folder cannot be written, the disk is full, or the text is no UTF-8; the target is left as it was.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:  # a file name that is not UTF-8, in a configuration
        raise BadRun(f"cannot write {path}: a name in it is not UTF-8 ({error.reason})") from error
    write_bytes(path, data)


def write_json(path: Path, data: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_arrays(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write arrays by name as .npz, as `write_bytes` does."""
    import numpy as np

    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> "dict[str, np.ndarray]":
    """Arrays by name from an .npz file; nothing in it is executed.

    Raises:
        BadFile: the file is missing or is not one.
    """
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadFile(f"{path} holds no arrays ({error}); was it cut short?") from error
