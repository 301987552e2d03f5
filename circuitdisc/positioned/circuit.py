"""A positioned circuit: the edges of a graph that are kept, each at some spans of a prompt.

A *unit* is an edge at a span. What a receiver reads at a token of span p are the senders that are kept into it at p. Attention
moves information on to later tokens: a unit into a head's key or value at p serves what the head writes wherever it is asked
for and may look at p; one into its query serves what the head writes at p itself.

Shape letters: P spans, R receivers, S senders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.errors import BadFile, GraphMismatch, shown
from circuitdisc.files import Filed
from circuitdisc.graph import MOST_PLACES, ComputationGraph
from circuitdisc.identity import Identity
from circuitdisc.results import SHOWN, Row, Shown
from circuitdisc.schemas import AblationSection, check_format, validate
from circuitdisc.tasks.spans import Spans

FORMAT = "circuitdisc.positioned_circuit"
WHERE = "not a positioned circuit"
Mask = Bool[np.ndarray, "P R S"]


@dataclass(frozen=True, eq=False)
class PositionedCircuit(Filed, Shown):
    """A subset of a graph's edges at each span.

    Args:
        graph: the graph that the edges belong to.
        spans: of the prompts.
        mask: True where the edge from sender s into receiver r is kept at span p.
        provenance: where it came from.
    """

    graph: ComputationGraph
    spans: Spans
    mask: Mask
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        mask, shape = np.array(self.mask, dtype=bool), (len(self.spans), *self.graph.edge_mask.shape)
        if mask.shape != shape:
            raise GraphMismatch(
                f"a mask of shape {mask.shape} does not fit {shape[0]} spans of {self.graph.describe()}: {shape}"
            )
        if (mask & ~self.graph.edge_mask).any():
            raise GraphMismatch("the mask keeps an edge whose sender does not come before its receiver")
        mask.setflags(write=False)
        object.__setattr__(self, "mask", mask)

    @classmethod
    def from_circuit(cls, circuit: Circuit, spans: Spans) -> "PositionedCircuit":
        """Every edge of a circuit kept at all spans."""
        check_size(circuit.graph, spans)
        return cls(circuit.graph, spans, np.repeat(circuit.mask[None], len(spans), 0), circuit.provenance)

    @classmethod
    def from_edges(cls, graph: ComputationGraph, spans: Spans, edges: Mapping[str, Sequence[str]]) -> "PositionedCircuit":
        """The circuit of edges by name, each at the spans that it names.

        Raises:
            BadFile: there is no such span.
            GraphMismatch: an edge is not one of the graph, or graph and spans are larger than is handled.
        """
        check_size(graph, spans)
        mask = np.zeros((len(spans), *graph.edge_mask.shape), dtype=bool)
        place = {name: index for index, name in enumerate(spans.names)}
        for edge, names in edges.items():
            if unknown := [name for name in names if name not in place]:
                raise BadFile(f"{shown(edge)} is kept at {shown(unknown[0])}, which is none of the spans")
            mask[[place[name] for name in names], *graph.parse_edge(edge)] = True
        return cls(graph, spans, mask)

    # --- what is in it ----------------------------------------------------------------------------------------------

    @property
    def n_units(self) -> int:
        """Edges, each counted as often as it has spans."""
        return int(self.mask.sum())

    def __len__(self) -> int:
        return self.n_units

    @property
    def n_edges(self) -> int:
        """Edges that are kept at one span or more."""
        return int(self.mask.any(0).sum())

    def flat(self) -> Circuit:
        """The circuit of the edges that are kept anywhere."""
        return Circuit(self.graph, np.logical_or.reduce(self.mask), self.provenance)

    def at(self, span: str) -> Circuit:
        """The circuit of the edges that are kept at a span.

        Raises:
            GraphMismatch: there is no such span.
        """
        return Circuit(self.graph, self.mask[self._index(span)], self.provenance)

    def nodes(self, span: str) -> list[str]:
        """Names of the nodes that write or read at a span."""
        return self.at(span).nodes()

    def edge_spans(self) -> dict[str, list[str]]:
        """Name of each kept edge -> the spans at which it is kept; receivers in topological order."""
        return {
            self.graph.edge_name(int(receiver), int(sender)): [
                name for name, kept in zip(self.spans.names, self.mask[:, receiver, sender], strict=True) if kept
            ]
            for receiver, sender in np.argwhere(self.mask.any(0))
        }

    def table(self, most: int | None = None) -> list[Row]:
        """A row an edge: its name, and where it is kept.

        Args:
            most: rows; None: all.
        """
        kept = list(self.edge_spans().items())[:most]
        return [{"edge": edge, **{name: name in at for name in self.spans.names}} for edge, at in kept]

    def _first_rows(self) -> tuple[list[Row], int]:
        return self.table(SHOWN), self.n_edges

    def __repr__(self) -> str:
        return f"PositionedCircuit({self.n_units:,} units: {self.n_edges:,} edges at {len(self.spans)} spans)"

    def _index(self, span: str) -> int:
        if span not in self.spans.names:
            raise GraphMismatch(f"{shown(span)} is none of the spans ({', '.join(self.spans.names)})")
        return self.spans.names.index(span)

    # --- set algebra ------------------------------------------------------------------------------------------------

    def _other_mask(self, other: "PositionedCircuit") -> Mask:
        if self.graph != other.graph or self.spans != other.spans:
            raise GraphMismatch("the circuits belong to different graphs or spans")
        return other.mask

    def _derived(self, mask: Mask) -> "PositionedCircuit":
        return PositionedCircuit(self.graph, self.spans, mask)

    def __or__(self, other: "PositionedCircuit") -> "PositionedCircuit":
        return self._derived(self.mask | self._other_mask(other))

    def __and__(self, other: "PositionedCircuit") -> "PositionedCircuit":
        return self._derived(self.mask & self._other_mask(other))

    def __sub__(self, other: "PositionedCircuit") -> "PositionedCircuit":
        return self._derived(self.mask & ~self._other_mask(other))

    def __le__(self, other: "PositionedCircuit") -> bool:
        return not (self.mask & ~self._other_mask(other)).any()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PositionedCircuit) or self.graph != other.graph or self.spans != other.spans:
            return False
        return bool((self.mask == other.mask).all())

    def __hash__(self) -> int:
        return hash((self.graph, self.spans, self.mask.tobytes()))

    # --- paths ------------------------------------------------------------------------------------------------------

    def prune(self) -> "PositionedCircuit":
        """Without the units that no answer can see (`live_units`). The logits do not change."""
        return replace(self, mask=live_units(self.graph, self.spans, self.mask))

    # --- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        spans = {"roles": self.spans.roles, "names": self.spans.names, "read": self.spans.read, "sees": dict(self.spans.sees)}
        return {
            "format": FORMAT,
            "version": 1,
            "graph": self.graph.to_dict(),
            "spans": spans,
            "n_units": self.n_units,
            "edges": self.edge_spans(),
            "provenance": self.provenance.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PositionedCircuit":
        """The inverse of `to_dict`.

        Raises:
            BadFile: a key is missing or of the wrong kind.
            GraphMismatch: an edge is not one of the graph, or graph and spans are larger than is handled.
        """
        check_format(data, FORMAT, WHERE)
        given = validate(_PositionedFile, data, WHERE, closed=True)
        circuit = cls.from_edges(given.graph, given.spans, given.edges)
        if given.n_units != circuit.n_units:
            raise BadFile(f"{WHERE}: it says that it has {given.n_units:,} units, and names {circuit.n_units:,}")
        if given.provenance.ablation:
            validate(AblationSection, given.provenance.ablation, f"{WHERE}: its provenance's ablation")
        Identity.from_dict(given.provenance.identity)  # raises if there is something else in its place
        return replace(circuit, provenance=given.provenance)


@dataclass
class _PositionedFile:
    """What a positioned circuit's file holds."""

    format: str
    version: int
    graph: ComputationGraph
    spans: Spans
    n_units: int
    edges: dict[str, list[str]]
    provenance: Provenance


def check_size(graph: ComputationGraph, spans: Spans) -> None:
    """Refuse what has more places than a mask can have.

    Raises:
        GraphMismatch: it has.
    """
    n_places = len(spans) * graph.n_receivers * graph.n_senders
    if n_places > MOST_PLACES:
        raise GraphMismatch(
            f"{len(spans)} spans of {graph.describe()} have {n_places:,} places for units, over {MOST_PLACES:,}: "
            "name fewer roles"
        )


def live_units(graph: ComputationGraph, spans: Spans, mask: Mask) -> Mask:
    """The units that an answer may see: those whose receiver's node writes, at a span where it may matter, what is kept on.

    From `logits`, which are read at the spans of answers, backwards. What is left out changes no logit; what is left in may
    still change none (a query of a token that can look at itself alone).
    """
    senders = np.zeros((len(spans), graph.n_senders), dtype=bool)
    receivers = np.zeros((len(spans), graph.n_receivers), dtype=bool)
    receivers[:, -1] = spans.is_read
    for sender in reversed(range(graph.n_senders)):  # every receiver of a sender is decided before the sender is
        senders[:, sender] = (mask[:, :, sender] & receivers).any(1)
        first, *keys_values = graph.node_receivers[graph.senders[sender].name] or (None,)
        if first is not None:
            receivers[:, first] = senders[:, sender]
            receivers[:, keys_values] = (senders[:, sender] @ spans.looks_at)[:, None]
    return mask & receivers[:, :, None]
