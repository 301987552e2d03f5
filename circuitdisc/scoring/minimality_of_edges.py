"""Minimality edge by edge, of circuits of edges; see `minimality.py`."""

from circuitdisc.scoring.kind import ScoreCall, ScoreKind
from circuitdisc.scoring.minimality import Minimality, minimality, work_of


def _lacking(call: ScoreCall) -> str | None:
    return None if call.circuit.granularity == "edge" else ""


SCORE = ScoreKind(
    "minimality_of_edges",
    "is every edge of the circuit needed for something?",
    Minimality,
    lambda call: call.run(minimality, by="edge"),
    _lacking,
    work=lambda call: work_of(call, "edge"),
)
