"""How far a circuit can be believed, on its page and in its verdict.

Each has a schema, which is the result's own class, a part of the page, and its sentences of the verdict.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from circuitdisc.certainty.backups import Backups
from circuitdisc.certainty.mixtures import Mixtures
from circuitdisc.pages.backups import backups_part, backups_verdict
from circuitdisc.pages.mixtures import mixtures_part, mixtures_verdict
from circuitdisc.pages.scores.base import Part, reads
from circuitdisc.pages.verdict import Verdict


class ShownCertainty(NamedTuple):
    """How one of these results is shown.

    Args:
        kind: its class, the schema of its file.
        part: its part of the page.
        verdict: its sentences.
    """

    kind: Any
    part: Callable[[Any], Part]
    verdict: Callable[[Any], Verdict]

    def of(self, name: str, data: Mapping[str, Any]) -> tuple[Part, Verdict]:
        """Both, from what the file holds.

        Raises:
            BadFile: it is something else.
        """
        result = self.kind.from_dict(data)
        with reads(f"{name}.json", f"a file of {name}", f"circuitdisc {name} RUN"):
            return self.part(result), self.verdict(result)


SHOWN = {
    "backups": ShownCertainty(Backups, backups_part, backups_verdict),
    "mixtures": ShownCertainty(Mixtures, mixtures_part, mixtures_verdict),
}
"""Name of a command, and of its file, to how its result is shown."""
