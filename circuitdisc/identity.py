"""What a computation belongs to: all weights of its models, its examples, the settings that matter, the package's version.

    weights    the model's weights, its configuration     a hash of every byte of every parameter and buffer; of its switches
    examples   the train examples, ...                    a hash of prompts, answers, positions, groups and roles, in order
    settings   algorithm, ablation, metric, seed, ...     as plain JSON
    version    of circuitdisc, and of the package that an algorithm comes from

Whatever is resumed, reused or compared carries one. Two that differ are told apart by a sentence that names the difference.
Budgets (memory, threads, progress bars) are no part of it: they change results by rounding at most. Nor are names: a model
that has moved to another folder is the same model, and another one under the same name is not.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from circuitdisc import __version__
from circuitdisc.errors import BadFile, shorten
from circuitdisc.files import size_words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from circuitdisc.circuit import Circuit
    from circuitdisc.models.model import Model
    from circuitdisc.tasks.base import Example

WEIGHTS, CONFIGURATION = "weights of the model", "configuration of the model"
LEAF = 4 << 20
"""Bytes that are hashed at a time; part of the hash, so that it does not depend on the number of threads."""
NAMED_BYTES = 2**30  # of a file that a setting names: scores of edges, a plan; it is read whole for its hash
SHOWN = 4
"""Differences that a sentence names."""


def package_version() -> str:
    """The version of the circuitdisc that runs, which need not be the one that is installed."""
    return __version__


@dataclass(frozen=True)
class Identity:
    """What a computation belongs to.

    Args:
        weights: what -> hash, where the keys are words for a sentence: `weights of the model`.
        examples: what -> hash: `train examples`.
        settings: those that matter, as plain JSON; sections may be nested.
        version: of circuitdisc.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(default_factory=package_version)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", json.loads(json.dumps(dict(self.settings), default=str)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "weights": dict(self.weights),
            "examples": dict(self.examples),
            "settings": dict(self.settings),
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: object) -> "Identity | None":
        """The inverse of `to_dict`; None where a file of an older version has none.

        Raises:
            BadFile: there is something else in its place.
        """
        if data is None or data == {}:
            return None
        parts: Any = data if isinstance(data, Mapping) else {}
        tables = all(isinstance(parts.get(part), Mapping) for part in _PARTS)
        if not tables or not all(isinstance(value, str) for part in ("weights", "examples") for value in parts[part].values()):
            raise BadFile(
                f"its identity is no table of hashes ({', '.join(_PARTS)}), so that what it belongs to is not known: the file "
                "is damaged"
            )
        return cls(**{part: dict(parts[part]) for part in _PARTS}, version=str(parts.get("version", "unknown")))

    def with_packages(self, versions: Mapping[str, str]) -> "Identity":
        """The same, of these versions of other packages, too: those whose algorithm, metric or score is used."""
        return replace(self, version=", ".join([self.version, *(f"{name} {version}" for name, version in versions.items())]))

    @property
    def digest(self) -> str:
        """All of it in a few characters."""
        return _digest([json.dumps(self.to_dict(), sort_keys=True).encode()])

    def differences(
        self, other: "Identity", parts: Iterable[str] = ("weights", "examples", "settings", "version"), but: Iterable[str] = ()
    ) -> list[str]:
        """What differs, in words: this one's value first, then the other's.

        Args:
            parts: what is compared.
            but: sections of the settings that may differ.
        """
        parts, differences = set(parts), list[str]()
        for part in ("weights", "examples"):
            mine, theirs = getattr(self, part), getattr(other, part)
            if part in parts:
                differences += [
                    f"other {what}" for what in dict.fromkeys((*mine, *theirs)) if mine.get(what) != theirs.get(what)
                ]
        if "settings" in parts:
            for name, mine, theirs in _unequal(self.settings, other.settings, ""):
                if name.partition(".")[0] not in but:
                    differences.append(f"another {name} ({_shown(mine)}, now {_shown(theirs)})")
        if "version" in parts and self.version != other.version:
            differences.append(f"another version of circuitdisc ({self.version}, now {other.version})")
        return differences


_PARTS = ("weights", "examples", "settings")


def in_words(differences: Sequence[str]) -> str:
    """The first few differences, for a sentence."""
    more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return ", ".join(differences[:SHOWN]) + more


def identity_of(
    model: "Model",
    examples: Mapping[str, "Sequence[Example]"],
    settings: Mapping[str, Any],
    circuit: "Circuit | None" = None,
) -> Identity:
    """The identity of a computation on one model.

    Args:
        examples: what they are, as `train examples` -> examples.
        settings: those that matter.
        circuit: the circuit that is scored, if there is one.
    """
    more = {} if circuit is None else {"circuit": hash_circuit(circuit)}
    return Identity(
        {WEIGHTS: hash_weights(model.module), CONFIGURATION: hash_configuration(model)},
        {what: hash_examples(some) for what, some in examples.items()},
        {**settings, **more},
    )


def hash_model(model: "Model") -> str:
    """Weights and configuration in one hash."""
    return _digest([hash_weights(model.module).encode(), hash_configuration(model).encode()])


# --- weights --------------------------------------------------------------------------------------------------------------

_known: "WeakKeyDictionary[nn.Module, tuple[Any, str]]" = WeakKeyDictionary()


def hash_weights(module: "nn.Module") -> str:
    """A hash of all bytes of all parameters and buffers, with their names, shapes and types.

    Computed once for a module: again only where a tensor was replaced or changed since. One whose weights are spread over
    devices and disk (`models/spread.py`) was hashed before.
    """
    if known := vars(module).get("weights_hash"):
        return known
    tensors = list(_tensors(module))
    stamp = [_stamp(tensor) for _, tensor in tensors]
    known = _known.get(module)
    if known is None or known[0] != stamp:
        known = _known[module] = (stamp, _hash_tensors(_tensors(module, getattr(module, "runs_as", None))))
    return known[1]


def _tensors(module: "nn.Module", runs_as: Any = None) -> "Iterator[tuple[str, Tensor]]":
    """All tensors with their names; a name for one that came before (tied weights) has none.

    Args:
        runs_as: the precision in which weights run that stay in their files, in the files' own.
    """
    first: dict[int, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            earlier = first.setdefault(id(tensor), name)
            name, tensor = (name, tensor) if earlier == name else (f"{name} is {earlier}", tensor.reshape(-1)[:0])
            yield name, tensor if runs_as is None or named == module.named_buffers else tensor.to(runs_as)


def _stamp(tensor: "Tensor") -> tuple[Any, ...]:
    """What a change of a tensor nearly always changes: its place, torch's count of changes, and a few of its values.

    The values are there for changes through `.data`, which torch does not count.
    """
    flat = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // 16)] if tensor.is_contiguous() else None
    sample = () if flat is None else tuple(map(repr, flat.tolist()))
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, tuple(tensor.shape), sample


def _hash_tensors(tensors: "Iterable[tuple[str, Tensor]]") -> str:
    """A hash over hashes of pieces, which are spread over the cores."""
    import torch

    total = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, tensor in tensors:
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat: Any = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
            data = memoryview(flat)
            pieces = [data[at : at + LEAF] for at in range(0, len(data), LEAF)]
            for digest in _spread(pool, pieces):
                total.update(digest)
    return total.hexdigest()


def _spread(pool: ThreadPoolExecutor, pieces: Sequence[memoryview]) -> Iterable[bytes]:
    """The pieces' hashes, in order."""
    if len(pieces) > 1:
        try:
            return list(pool.map(_hash_piece, pieces))
        except RuntimeError:  # the machine allows no more threads
            pass
    return map(_hash_piece, pieces)


def _hash_piece(piece: memoryview) -> bytes:
    return hashlib.blake2b(piece, digest_size=32).digest()


def hash_configuration(model: "Model") -> str:
    """A hash of what a model computes with its weights: its graph and its switches."""
    # without what Hugging Face notes beside: where it was read from, by what, and how it is run
    plain = model.backend.configuration()
    switches = {key: value for key, value in plain.items() if not key.startswith("_") and key not in _VOLATILE}
    what = [model.architecture, model.graph.to_dict(), switches]
    return _digest([json.dumps(what, sort_keys=True, default=str).encode()])


_VOLATILE = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures", "name_or_path")


# --- examples, circuits, files --------------------------------------------------------------------------------------------


def hash_examples(examples: "Iterable[Example]") -> str:
    """A hash of everything in the examples but their text for people, in their order."""
    return _digest(_line(example) for example in examples)


def _line(example: "Example") -> bytes:
    parts = {entry.name: getattr(example, entry.name) for entry in fields(example) if entry.name not in ("text", "source")}
    parts = {name: dict(part) if isinstance(part, Mapping) else part for name, part in parts.items()}
    return json.dumps(parts, sort_keys=True, default=str).encode() + b"\n"


def hash_circuit(circuit: "Circuit") -> str:
    """A hash of a circuit's graph and edges."""
    about = json.dumps([circuit.graph.to_dict(), circuit.granularity, sorted(circuit.mask.shape)], sort_keys=True)
    return _digest([about.encode(), circuit.mask.tobytes()])


def with_contents(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a file's name is replaced by a hash of what is in it: scores, a plan.

    Raises:
        BadFile: a file is larger than any that a setting names.
    """
    contents = dict(settings)
    for name, value in settings.items():
        path = Path(value) if isinstance(value, str) and Path(value).suffix else None
        if path is None or not path.is_file():
            continue
        if (size := path.stat().st_size) > NAMED_BYTES:
            raise BadFile(f"{path} has {size_words(size)}; a file that a setting names has {size_words(NAMED_BYTES)} at most")
        contents[name] = f"a file with hash {hash_file(path)}"
    return contents


def hash_file(path: Path) -> str:
    """A hash of a file's bytes."""
    total = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(LEAF):
            total.update(piece)
    return total.hexdigest()


def hash_bytes(data: bytes) -> str:
    """A hash of bytes."""
    return _digest([data])


def _digest(pieces: Iterable[bytes]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


# --- sentences ------------------------------------------------------------------------------------------------------------


def _unequal(mine: Any, theirs: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys((*mine, *theirs)):
            yield from _unequal(mine.get(key), theirs.get(key), f"{name}.{key}" if name else str(key))
    elif mine != theirs:
        yield name, mine, theirs


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), 40)
