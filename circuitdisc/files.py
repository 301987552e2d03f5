"""Reading and writing files so that nothing is half-written, no link is followed, and every failure is a sentence.

Everything that the package writes goes through `replacing`, `begin_file` or a folder of `fresh_folder`: bytes go into a new
file under a random name in the same folder (`O_EXCL`, so that a link or a file that lies there is never opened), reach the
disk, and take the wanted name by a rename, which replaces a link itself and not what it points to.
"""

import json
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from circuitdisc.errors import BadFile, BadRun, GraphMismatch, shown

if TYPE_CHECKING:
    import numpy as np

TEXT_BYTES = 128 * 2**20  # of a text or JSON file; a graph of 1.6 million edges as EAP-IG writes it has 100 MiB
JSON_ITEMS = 5_000_000  # values in a JSON file
YAML_BYTES = 2**17
ARRAYS_BYTES = 2**28  # of the arrays in an .npz, for callers that cannot say what they expect
HEADERS = 2**20  # room for the headers of an .npz


def read_bytes(path: Path, most: int = TEXT_BYTES) -> bytes:
    """The content of a regular file; what is none (a device, a pipe, a folder) is not read.

    Args:
        most: bytes that it may have.

    Raises:
        BadFile: the file is missing, unreadable, too large or no regular one.
    """
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise BadFile(f"cannot read {path}: it is {_kind(about.st_mode)}, not a file")
        with open(path, "rb") as file:
            if about.st_size > most:
                size, allowed = size_words(about.st_size), size_words(most)
                raise BadFile(f"{path} has {size}, more than the {allowed} that a file of this kind may have")
            content = file.read(about.st_size + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise BadFile(f"cannot read {path}: {_why(error)}") from error
    if len(content) > about.st_size:
        raise BadFile(f"{path} has grown while it was read: is something writing it?")
    return content


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
    """The text of a UTF-8 file.

    Raises:
        BadFile: the file is missing, unreadable, too large, no regular one or not UTF-8.
    """
    try:
        text = read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} is not UTF-8 text (byte {error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(path: Path, most: int = TEXT_BYTES) -> Any:
    """Parse a JSON file.

    Raises:
        BadFile: the file is missing, too large or not JSON.
    """
    text = read_text(path, most)
    n_items = text.count(",") + text.count("[") + text.count("{")
    if n_items > JSON_ITEMS:
        raise BadFile(f"{path} holds {n_items:,} values or more; a file of circuitdisc has {JSON_ITEMS:,} at most")
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """What a JSON text says.

    Args:
        where: what messages call it.

    Raises:
        BadFile: it is not JSON, or nested or numbered beyond what Python reads.
    """
    try:
        data = json.loads(text)
        if "\\u" in text:  # half a surrogate pair, which JSON can spell and nothing can write again
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise BadFile(f"{where} is not JSON (line {error.lineno}: {error.msg}); was it cut short?") from error
    except RecursionError as error:
        raise BadFile(f"{where} is JSON that is nested too deeply to be read") from error
    except UnicodeEncodeError as error:
        raise BadFile(f"{where} is JSON with half a character (\\ud800 to \\udfff alone)") from error
    except ValueError as error:  # a whole number of more digits than Python reads
        raise BadFile(f"{where} is JSON with a number of too many digits") from error
    return data


def read_yaml(path: Path, most: int = YAML_BYTES) -> Any:
    """Parse a YAML file; nothing in it is executed, and aliases, which can stand for billions of values, are not followed.

    Raises:
        BadFile: the file is missing, too large or not plain YAML.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias (*name): write its value out")
            return super().compose_node(parent, index)

    text = read_text(path, most)
    try:
        return yaml.load(text, Loader=PlainLoader)
    except yaml.YAMLError as error:
        raise BadFile(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise BadFile(f"{path} is YAML that is nested too deeply to be read") from error
    except (ValueError, TypeError, OverflowError) as error:  # a date that does not exist, a number of too many digits
        raise BadFile(f"{path} is YAML with a value that cannot be read: {error}") from error


def size_words(n_bytes: float) -> str:
    """`3.2 GiB`, `14 MiB`, `96 bytes`: a size with a figure that says something, whatever it is."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:,.3g} {name}" if n_bytes < 1000 * unit else f"{n_bytes / unit:,.0f} {name}"
    return "1 byte" if n_bytes == 1 else f"{n_bytes:,.0f} bytes"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


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


def read_arrays(path: Path, most: int = ARRAYS_BYTES) -> "dict[str, np.ndarray]":
    """Arrays by name from an .npz file; nothing in it is executed, and nothing unpacked before its headers were read.

    Args:
        most: bytes that its arrays may take together.

    Raises:
        BadFile: the file is missing, is not one, or would take more memory.
    """
    import io
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path, most + HEADERS))) as file:
            members = file.infolist()
            total = sum(member.file_size for member in members)
            if total > most:
                raise BadFile(
                    f"{path} unpacks to {size_words(total)}, more than the {size_words(most)} that its arrays may take"
                )
            return {
                member.filename.removesuffix(".npy"): _read_array(file.read(member), member.filename, path)
                for member in members
            }
    except (ValueError, EOFError, RuntimeError, LookupError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise BadFile(f"{path} holds no arrays ({error}); was it cut short?") from error


def _read_array(content: bytes, name: str, path: Path) -> "np.ndarray":
    """One array of an .npz, by its own header, which must say what is there."""
    import io
    import math

    import numpy as np

    file = io.BytesIO(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read_header:
        raise ValueError(f"{shown(name)} is of another version")
    shape, fortran, dtype = read_header[version](file)
    if dtype.kind not in "biufU":
        raise BadFile(f"{path}: {shown(name)} is an array of {dtype.kind!r}, not of numbers")
    n_bytes = math.prod(shape) * dtype.itemsize
    if min((*shape, 0)) < 0 or n_bytes != len(content) - file.tell():
        raise BadFile(
            f"{path}: {shown(name)} says that it has {size_words(n_bytes)}, but {len(content) - file.tell():,} follow"
        )
    array = np.frombuffer(content, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if fortran else "C").copy()


class Filed:
    """What is kept as a JSON file of its own: `to_dict` gives it, and `from_dict` reads it."""

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, beside the target first, then renamed, so that a reader never sees half a file."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read its JSON file.

        Raises:
            BadFile: the file is missing, is not JSON, or is of something else.
        """
        try:
            return cls.from_dict(read_json(Path(path)))
        except (BadFile, GraphMismatch) as error:
            raise BadFile(f"{path}: {error}") from error
