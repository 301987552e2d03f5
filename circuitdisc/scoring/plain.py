"""Scores read back from their plain JSON: the inverse of their `to_dict`, by the types of their fields."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from circuitdisc.errors import BadFile

T = TypeVar("T")


def from_plain(kind: type[T], data: Any) -> T:
    """A score of this class. What `to_dict` adds to the fields is left out.

    Raises:
        BadFile: a field is missing or of the wrong kind.
    """
    try:
        return _read(kind, data)
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"not a {kind.__name__}: missing or malformed {error}") from error


def _read(kind: Any, data: Any) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        written = [one for one in fields(kind) if one.name in data or one.default is MISSING]  # a later version has more fields
        return kind(**{one.name: _read(hints[one.name], data[one.name]) for one in written})  # pyright: ignore[reportCallIssue]
    if origin is types.UnionType:
        (other,) = (one for one in inside if one is not type(None))
        return None if data is None else _read(other, data)
    if origin is tuple:
        return tuple(_read(inside[0], one) for one in data)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _read(inside[1], one) for name, one in data.items()}
    if getattr(kind, "array_type", None) is np.ndarray:
        return np.asarray(data, dtype=bool if "bool" in kind.dtypes else np.float64)
    return data
