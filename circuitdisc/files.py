"""Reading and writing files so that nothing is half-written and every failure is a sentence."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def write_text(path: Path, text: str) -> None:
    """Write beside the target, then rename into place, so that a reader never sees half a file.

    Raises:
        BadRun: the folder cannot be written or the disk is full; the target is left as it was.
    """
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):  # a read-only disk refuses this, too
            beside.unlink(missing_ok=True)
        raise BadRun(f"cannot write {path}: {error.strerror}. Free some space or choose another folder") from error
    except UnicodeEncodeError as error:  # a file name that is not UTF-8, in a configuration
        beside.unlink(missing_ok=True)
        raise BadRun(f"cannot write {path}: a name in it is not UTF-8 ({error.reason})") from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_arrays(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write arrays by name as .npz, beside the target first, then renamed.

    Raises:
        BadRun: the folder cannot be written or the disk is full.
    """
    import numpy as np

    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise BadRun(f"cannot write {path}: {error.strerror}. Free some space or choose another folder") from error


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
