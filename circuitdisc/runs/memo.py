"""Long work, unit by unit: each unit is written down when it is done, so that a call that was killed goes on where it was.

Numbers are written with all their digits, so that what went on is what was never stopped, bit for bit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from circuitdisc.identity import Identity
from circuitdisc.runs.journal import Journal

UNIT, VALUE = "unit", "value"


class Memo:
    """Finished units of one computation, by name.

    Args:
        journal: where they are kept: a file, or a journal that is open; None keeps them in memory.
        identity: what the units belong to.

    Raises:
        BadRun: the journal belongs to another computation, or cannot be written.
    """

    def __init__(self, journal: "Journal | str | Path | None", identity: Identity) -> None:
        self._own = not isinstance(journal, Journal)
        self._journal = journal if isinstance(journal, Journal) else Journal(None if journal is None else Path(journal))
        try:
            self._journal.bind(identity)
        except BaseException:
            self.close()
            raise
        self._done: dict[str, Any] = {
            line[UNIT]: line[VALUE] for line in self._journal.decisions if isinstance(line.get(UNIT), str) and VALUE in line
        }

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """A unit's value, plain JSON: that of an earlier start, or computed and written down."""
        if name not in self._done:
            value = compute()
            self._journal.write(**{UNIT: name, VALUE: value})
            self._journal.mark(name)
            self._done[name] = value
        return self._done[name]

    def close(self) -> None:
        """Close the journal, unless it was given open."""
        if self._own:
            self._journal.close()
