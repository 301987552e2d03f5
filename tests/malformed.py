"""Malformed inputs by the hundred, from fixed seeds: files of a run with one thing wrong, and settings out of their bounds."""

import io
import json
import os
import random
import string
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from circuitdisc.checks import Bounds

WRONG = {  # kind of a JSON value -> values of other kinds
    str: [3, [], {}, None, True, 1.5],
    bool: ["true", 1, [], None, {}],
    int: ["3", [], {}, 1.5, None, "x" * 3000],
    float: ["0.5", [], {}, True, "nan"],
    list: [3, "x", {"a": 1}, None, True],
    dict: [3, "x", [1], None, True],
}
HOSTILE = {  # whole contents of a JSON file
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 50_000,
    "digits": '{"format": ' + "9" * 6000 + "}",
    "half a character": '{"format": "\\ud800"}',
    "empty": "",
    "nothing": "null",
    "number": "3",
    "text": '"circuit"',
    "list": "[]",
    "no keys": "{}",
    "zeros": "\x00" * 100,
    "a long line": '{"format": "' + "x" * 10_000_000 + '"}',
    "many values": "[" + "0," * 6_000_000 + "0]",
}


@dataclass
class Case:
    """One malformed input.

    Args:
        name: what is wrong, for the record.
        args: of the command; `{}` stands for a fresh folder with the good files.
        make: spoils the files in that folder.
    """

    name: str
    args: list[str]
    make: Callable[[Path], None] = field(default=lambda _: None)


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return lambda folder: void((folder / name).write_bytes(data))


def void(_: object) -> None:
    return None


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else than a file in the place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def no_files(name: str, needed: bool = True) -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield "a folder", replaced(name, Path.mkdir)
    yield "a pipe", replaced(name, os.mkfifo)
    yield "a device", replaced(name, lambda path: path.symlink_to("/dev/zero"))
    if needed:  # else it is as if there were none
        yield "a link to itself", replaced(name, lambda path: path.symlink_to(path))
    yield "a huge file", replaced(name, lambda path: void(path.write_bytes(b"")) or os.truncate(path, 2**40))


# --- JSON -----------------------------------------------------------------------------------------------------------------


def places(data: Any, spared: tuple[str, ...], at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand, but for those under names that may hold anything; of a list its first item stands for all."""
    if any(part in spared for part in at):
        return
    yield at
    inside = data.items() if isinstance(data, dict) else list(enumerate(data))[:1] if isinstance(data, list) else ()
    for key, value in inside:
        yield from places(value, spared, (*at, key))


def changed(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value replaced; `...` takes it out."""
    copy = json.loads(json.dumps(data))
    if not at:
        return value
    inside = copy
    for key in at[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[at[-1]]
    else:
        inside[at[-1]] = value
    return copy


def spoiled_json(
    data: Any, spared: tuple[str, ...], optional: tuple[str, ...], nullable: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """What is wrong, and the text."""
    for at in places(data, spared):
        value = data
        for key in at:
            value = value[key]
        words = ".".join(map(str, at)) or "all"
        for wrong in WRONG.get(type(value), [3, "x", []]):
            if wrong is None and (not at or at[-1] in nullable):
                continue
            if value is None and not isinstance(wrong, list):
                continue
            yield f"{words} is {str(wrong)[:20]!r}", json.dumps(changed(data, at, wrong))
        if at and isinstance(at[-1], str) and at[-1] not in optional:
            yield f"{words} is missing", json.dumps(changed(data, at, ...))


def truncated(text: str, n: int, generator: random.Random) -> Iterator[tuple[str, str]]:
    for _ in range(n):
        end = generator.randrange(1, len(text.rstrip()) - 1)
        yield f"cut after {end} bytes", text[:end]


# --- settings -------------------------------------------------------------------------------------------------------------


def typed(value: object) -> str:
    """As somebody would type it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**300:
        return "9" * 400
    return {True: "true"}.get(value, str(value)) if isinstance(value, bool) else str(value).replace(" ", "")


def bad_numbers(key: str, bounds: Bounds) -> Iterator[str]:
    for value in bounds.bad_values():
        if isinstance(value, dict):
            yield f"{key}={{a:1}}"
        else:
            yield f"{key}={typed(value)}"


ALPHABET = string.ascii_letters + string.digits + "äß中😀 ,:'\"[]{}()$\\/=+~*?!|&#@%^_-.<>"


def junk(generator: random.Random) -> str:
    """Some characters that somebody's keyboard gave."""
    return "".join(generator.choice(ALPHABET) for _ in range(generator.randrange(1, 40)))


# --- arrays ---------------------------------------------------------------------------------------------------------------


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def claims(shape: str, dtype: str = "<f8", content: bytes = b"\0" * 64) -> bytes:
    """An array whose header says what is not there."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


def spoiled_arrays(shape: tuple[int, int], generator: random.Random) -> Iterator[tuple[str, bytes]]:
    good = npz(edge_scores=npy(np.zeros(shape)))
    zeros = io.BytesIO()
    with (
        zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("edge_scores.npy", "w", force_zip64=True) as member,
    ):
        member.write(claims(f"({3 * 2**27},)", content=b""))
        for _ in range(3 * 2**6):
            member.write(bytes(2**24))
    yield "3 GiB of zeros in 3 MB", zeros.getvalue()
    yield "a header of 2**53 bytes", npz(edge_scores=claims(f"({2**50},)"))
    yield "a header of 2**80 bytes", npz(edge_scores=claims(f"({2**77},)"))
    yield "a negative shape", npz(edge_scores=claims("(-1, 8)"))
    yield "a shape of words", npz(edge_scores=claims("('a',)"))
    yield "an array of objects", npz(edge_scores=npy(np.array([{}, 3], dtype=object)))
    yield "an array of records", npz(edge_scores=npy(np.zeros(3, dtype=[("a", "f8")])))
    yield "an array of words", npz(edge_scores=npy(np.full(shape, "x")))
    yield "another shape", npz(edge_scores=npy(np.zeros((3, 4))))
    yield "whole numbers", npz(edge_scores=npy(np.zeros(shape, dtype=np.int8)))
    yield "no .npy", npz(edge_scores=b"hello")
    yield "no header", npz(edge_scores=b"\x93NUMPY\x01\x00\xff\xff{}")
    yield "a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"
    yield "empty", b""
    for _ in range(15):
        end = generator.randrange(1, len(good) - 25)
        yield f"cut after {end} bytes", good[:end]
