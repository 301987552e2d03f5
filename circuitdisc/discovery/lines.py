"""What the lines of each search's journal hold, so that a search goes on from lines of its own kind alone.

A line is known by one of its keys. A journal of another algorithm, or with a line that somebody changed, is refused before a
search takes anything over from it, and before a page draws it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitdisc.errors import BadRun, CircuitdiscError, shown
from circuitdisc.graph import ComputationGraph
from circuitdisc.schemas import AnyFloat, validate

Value = AnyFloat | list[AnyFloat]
"""The metric; of a joint search, that of each checkpoint."""


@dataclass
class DeadNode:
    """A receiver whose node has no path to `logits`."""

    dead: str
    edges: int


@dataclass
class EdgeDecision:
    """An edge that was tried."""

    edge: str
    kept: bool
    metric: Value


@dataclass
class EdgeScore:
    """An edge that was cut alone."""

    edge: str
    metric: AnyFloat
    score: AnyFloat


@dataclass
class HeadDecision:
    """A head that was tried, or restored."""

    head: str
    layer: int
    kept: bool
    metric: Value
    baseline: Value | None = None
    restored: bool = False


@dataclass
class RankingLine:
    """The order of the edges that a search by groups goes through."""

    ranking: str
    checksum: int


@dataclass
class Start:
    """The metric that a search begins with."""

    start: str
    metric: AnyFloat


@dataclass
class GroupTest:
    """A group of edges that was tried."""

    group: int
    kept: bool
    metric: AnyFloat


@dataclass
class StartCircuit:
    """The circuit that a search begins with."""

    start: str
    checksum: int
    metric: AnyFloat


@dataclass
class Flips:
    """The metric with each edge into a receiver alone cut, or put back, by sender."""

    flips: str
    values: dict[str, AnyFloat]


@dataclass
class Addition:
    """Edges that were put back together."""

    added: list[str]
    metric: AnyFloat


@dataclass
class Left:
    """So many edges that are left after a cut of several."""

    left: int
    metric: AnyFloat


@dataclass
class Swap:
    """The edge that was cut, and the one that was put in its place."""

    swapped: list[str]


@dataclass
class SizeRun:
    """A circuit of so many best edges, on the examples set apart for `target=`."""

    size: int
    metric: AnyFloat
    share: AnyFloat


@dataclass
class TargetSize:
    """The size that was chosen, with its interval, and the circuit after its repair."""

    target: float
    size: int
    low: int
    high: int
    edges: int
    share: AnyFloat
    repair: str


@dataclass
class HeadEffect:
    """What a head's paths change."""

    absolute: float
    relative: float | None
    standard_error: float | None


@dataclass
class PathRound:
    """A round of path patching."""

    round: str
    plan: dict[str, Any]
    receivers: list[str]
    found: list[str]
    effects: dict[str, HeadEffect]
    clean: float | None = None
    n: int | None = None


@dataclass
class TrainingStep:
    """Where the training of a mask stood."""

    step: int
    loss: float
    edges: float


# algorithm -> the key that a line is known by -> its schema; an algorithm that is not here keeps no journal
LINES: dict[str, dict[str, type]] = {
    "acdc": {"ranking": RankingLine, "dead": DeadNode, "edge": EdgeDecision},
    "bisect": {"ranking": RankingLine, "start": Start, "group": GroupTest, "dead": DeadNode, "edge": EdgeDecision},
    "refine": {
        "ranking": RankingLine,
        "start": StartCircuit,
        "flips": Flips,
        "added": Addition,
        "group": GroupTest,
        "left": Left,
        "swapped": Swap,
    },
    "exact": {"edge": EdgeScore, "target": TargetSize, "size": SizeRun},  # the target's line has a size, too
    "head_ablation": {"head": HeadDecision},
    "path_patching": {"round": PathRound},
    "edge_pruning": {"step": TrainingStep},
    "subnetwork_probing": {"step": TrainingStep},
    "soft_topk": {"step": TrainingStep},
}


def check_lines(algorithm: str, graph: ComputationGraph, lines: Sequence[Mapping[str, Any]], where: object = None) -> None:
    """Every line of a journal is one that this algorithm writes, on this graph.

    Args:
        lines: the decisions; those of an algorithm that is not listed here are let through, since it replays them itself.
        where: the journal's path, for messages.

    Raises:
        BadRun: one is not; the message says which, and what is wrong with it.
    """
    kinds = LINES.get(algorithm)
    if kinds is None:
        return
    for number, line in enumerate(lines, start=1):
        place = f"{where or 'the journal'}, decision {number}"
        key = next((key for key in kinds if key in line), None)
        if key is None:
            known = " or ".join(f"'{one}'" for one in kinds)
            raise BadRun(
                f"{place}: it has the keys {shown(list(line))}, and a decision of {algorithm} has {known}: the journal is of "
                "another search, or was changed; start again in a new folder"
            )
        decision: Any = validate(kinds[key], line, place, error=BadRun, remedy="start again in a new folder")
        try:
            _check_names(graph, decision)
        except CircuitdiscError as error:
            raise BadRun(f"{place}: {error}") from error


def _check_names(graph: ComputationGraph, line: Any) -> None:
    if isinstance(line, EdgeDecision | EdgeScore):
        graph.parse_edge(line.edge)
    elif isinstance(line, Addition | Swap):
        for name in line.added if isinstance(line, Addition) else line.swapped:
            graph.parse_edge(name)
    elif isinstance(line, Flips):
        for sender in line.values:
            graph.parse_edge(f"{sender}->{line.flips}")
    elif isinstance(line, DeadNode) and line.dead not in graph.receiver_index:
        raise BadRun(f"{shown(line.dead)} is not a receiver of this graph ({graph.describe()})")
    elif isinstance(line, HeadDecision | PathRound):
        names = [line.head] if isinstance(line, HeadDecision) else [*line.found, *line.effects]
        for name in names:
            graph.parse_head(name)
