"""Work in units that a journal keeps: a call that was killed goes on with the units that are missing."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitdisc.errors import BadRun
from circuitdisc.runs import Journal
from circuitdisc.schemas import validate
from circuitdisc.tasks.base import Example


@dataclass
class _Finished:
    """A line of the journal after the first one."""

    unit: str
    found: Any


class Units:
    """What each unit of a call found, by name.

    Args:
        journal: those already in it are taken over; None keeps them in memory.
        settings: what two calls must share for the units of one to serve the other.

    Raises:
        BadRun: the journal is of a call with other settings.
    """

    def __init__(self, journal: Journal | None, settings: Mapping[str, Any]) -> None:
        self.journal = journal or Journal()
        lines, plain = self.journal.decisions, json.loads(json.dumps(settings))
        if not lines:
            self.journal.write(settings=plain)
            self.journal.mark("settings")
        elif lines[0].get("settings") != plain:
            raise BadRun("this was begun with other settings, examples or heads: choose another folder with out=")
        where = f"{self.journal.path}, unit"
        finished = [validate(_Finished, line, f"{where} {number}") for number, line in enumerate(lines[1:], start=1)]
        self.found: dict[str, Any] = {one.unit: one.found for one in finished}

    def get(self, unit: str) -> Any:
        """What a unit found; None if it was not done yet."""
        return self.found.get(unit)

    def put(self, unit: str, found: Any) -> None:
        """Keep what a unit found."""
        self.journal.write(unit=unit, found=found)
        self.journal.mark(unit)
        self.found[unit] = found


def fingerprint(examples: Sequence[Example]) -> str:
    """A few characters that tell these examples from others."""
    text = json.dumps([[one.clean, one.corrupted, one.answers, one.positions] for one in examples])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
