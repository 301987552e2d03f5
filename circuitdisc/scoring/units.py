"""A long score, unit by unit: each is written to a journal when it is done, so that a killed score goes on where it was.

The first line of the journal says what the units belong to: settings, model, examples. Numbers are written with all their
digits, so that a score that went on is that of one that was never stopped, bit for bit.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadRun
from circuitdisc.models.model import Model
from circuitdisc.runs import Journal
from circuitdisc.schemas import validate
from circuitdisc.tasks.base import Task

UNIT, VALUE, OF = "unit", "value", "of"


@dataclass
class _Finished:
    """A line of the journal after the first one."""

    unit: str
    value: Any


class Units:
    """Finished units of one computation.

    Args:
        path: the journal; None keeps nothing.
        of: what the units depend on, as plain JSON.

    Raises:
        BadRun: the journal belongs to another computation, or cannot be written.
    """

    def __init__(self, path: str | Path | None, of: Mapping[str, Any]) -> None:
        self._journal = Journal(Path(path)) if path is not None else Journal()
        lines, asked = self._journal.decisions, json.loads(json.dumps(of))
        if lines and lines[0].get(OF) != asked:
            self._journal.close()
            raise BadRun(_another(Path(path or ""), lines[0].get(OF), asked))
        if not lines:
            self._journal.write(**{OF: asked})
            self._journal.mark("begun")
        finished = [validate(_Finished, line, f"{path}, unit {number}") for number, line in enumerate(lines[1:], start=1)]
        self._done = {one.unit: one.value for one in finished}

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """A unit's value, plain JSON: that of the journal, or computed and written down."""
        if name not in self._done:
            value = compute()
            self._journal.write(**{UNIT: name, VALUE: value})
            self._journal.mark(name)
            self._done[name] = value
        return self._done[name]

    def close(self) -> None:
        self._journal.close()


def _another(path: Path, found: Any, asked: Mapping[str, Any]) -> str:
    known = found if isinstance(found, Mapping) else {}
    differing = sorted(name for name in {*known, *asked} if known.get(name) != asked.get(name))
    return (
        f"{path} holds the beginning of another computation, with another {', '.join(differing)}: "
        "go on with the settings that it was begun with, or remove it (or name another) to start afresh"
    )


def identity(model: Model, task: Task, circuit: Circuit | None = None) -> dict[str, str]:
    """Short digests of a model's weights, a task's examples and a circuit: what a finished unit depends on but for settings."""
    sums = [float(one.detach().double().sum()) for one in model.module.parameters()]
    digests = {"model": _digest([model.name, sums]), "examples": _digest([repr(task.train), repr(task.heldout)])}
    if circuit is not None:
        digests["circuit"] = _digest([circuit.granularity, np.packbits(circuit.mask).tobytes().hex()])
    return digests


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
