"""A circuit: the edges of a computation graph that are kept, and where they came from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import islice
from typing import Any, Literal

import networkx as nx
import numpy as np
from jaxtyping import Bool

from circuitdisc.errors import BadFile, GraphMismatch
from circuitdisc.files import Filed
from circuitdisc.graph import ComputationGraph, Edge, heads_where
from circuitdisc.identity import Identity
from circuitdisc.results import SHOWN, Result, Row, Shown
from circuitdisc.schemas import AblationSection, check_format, validate

Granularity = Literal["edge", "head"]
FORMAT = "circuitdisc.circuit"


@dataclass(frozen=True, repr=False)
class Provenance(Result):
    """Where a circuit came from: everything that is needed to find it again."""

    model: str = ""
    task: str = ""
    ablation: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    algorithm: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a reader of the circuit must know, in sentences: said wherever the circuit is shown."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """The weights, examples and settings that it was found with, by hash (`identity.py`); empty where they are not known."""


@dataclass(frozen=True, eq=False)
class Circuit(Filed, Shown):
    """A subset of a graph's edges.

    Args:
        graph: the graph that the edges belong to.
        mask: True where the edge from sender s into receiver r is kept.
        provenance: where it came from.
        granularity: `edge`, or `head` for a circuit that keeps or drops whole heads (and every other sender).
        groups: named groups of heads, for circuits that were built group by group (path patching in rounds).
    """

    graph: ComputationGraph
    mask: Bool[np.ndarray, "R S"]
    provenance: Provenance = field(default_factory=Provenance)
    granularity: Granularity = "edge"
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=bool)
        if mask.shape != self.graph.edge_mask.shape:
            raise GraphMismatch(
                f"an edge mask of shape {mask.shape} does not fit the graph ({self.graph.describe()}), "
                f"which needs {self.graph.edge_mask.shape}"
            )
        if (mask & ~self.graph.edge_mask).any():
            raise GraphMismatch("the edge mask keeps an edge whose sender does not come before its receiver")
        mask.setflags(write=False)
        object.__setattr__(self, "mask", mask)

    # --- ways to make one -------------------------------------------------------------------------------------------

    @classmethod
    def full(cls, graph: ComputationGraph) -> "Circuit":
        """Every edge kept."""
        return cls(graph, graph.edge_mask)

    @classmethod
    def empty(cls, graph: ComputationGraph) -> "Circuit":
        """Every edge cut."""
        return cls(graph, np.zeros_like(graph.edge_mask))

    @classmethod
    def from_edges(cls, graph: ComputationGraph, names: Iterable[str]) -> "Circuit":
        """The circuit of the edges with these names."""
        mask = np.zeros_like(graph.edge_mask)
        for name in names:
            mask[graph.parse_edge(name)] = True
        return cls(graph, mask)

    @classmethod
    def from_heads(cls, graph: ComputationGraph, heads: Iterable[str]) -> "Circuit":
        """The head circuit that keeps these heads (`a3.h1`), and every embedding and MLP, with all edges among them."""
        kept = {index for index, node in enumerate(graph.senders) if node.kind != "head"}
        for name in heads:
            graph.parse_head(name)
            kept.add(graph.sender_index[name])
        mask = graph.edge_mask.copy()
        for sender, node in enumerate(graph.senders):
            if sender not in kept:
                mask[:, sender] = False
                mask[list(graph.node_receivers[node.name]), :] = False
        return cls(graph, mask, granularity="head")

    @classmethod
    def from_nodes(cls, graph: ComputationGraph, names: Iterable[str], keep_mlps: bool = False) -> "Circuit":
        """The circuit of all edges among these nodes (`a3.h1`, `m2`), the embeddings and `logits`.

        Args:
            keep_mlps: also keep every MLP, as a head circuit does.
        """
        always = {node.name for node in graph.senders if node.kind not in ("head", "mlp")} | {"logits"}
        kept = always | {node.name for node in graph.senders if keep_mlps and node.kind == "mlp"}
        kept |= {graph.parse_node(name).name for name in names}
        senders = np.array([node.name in kept for node in graph.senders], dtype=bool)
        receivers = np.array([receiver.node.name in kept for receiver in graph.receivers], dtype=bool)
        return cls(graph, graph.edge_mask & receivers[:, None] & senders[None, :])

    def as_head_circuit(self) -> "Circuit":
        """The head circuit of this circuit's heads: every embedding and MLP is kept, and all edges among the kept nodes."""
        return replace(Circuit.from_heads(self.graph, self.heads()), provenance=self.provenance)

    def with_provenance(self, provenance: Provenance) -> "Circuit":
        return replace(self, provenance=provenance)

    # --- what is in it ----------------------------------------------------------------------------------------------

    @property
    def n_edges(self) -> int:
        return int(self.mask.sum())

    def __len__(self) -> int:
        return self.n_edges

    def edges(self) -> Iterator[Edge]:
        """The kept edges, receivers in topological order."""
        for receiver, sender in np.argwhere(self.mask):
            yield self.graph.edge(int(receiver), int(sender))

    def edge_names(self) -> list[str]:
        return [edge.name for edge in self.edges()]

    def table(self, most: int | None = None) -> list[Row]:
        """A row an edge that is kept: its name, its two nodes, and the input that it goes into.

        Args:
            most: rows; None: all.
        """
        return [
            {
                "edge": edge.name,
                "sender": edge.sender.name,
                "receiver": edge.receiver.node.name,
                "input": edge.receiver.qkv or edge.receiver.kind,
            }
            for edge in islice(self.edges(), most)
        ]

    def _drawn(self) -> str:
        """Its explorer: of a page, which is above this floor."""
        return import_module("circuitdisc.pages.inline").explore(self)._repr_html_() if self.n_edges else ""

    def _first_rows(self) -> tuple[list[Row], int]:
        return self.table(SHOWN), self.n_edges

    def __contains__(self, edge_name: str) -> bool:
        return bool(self.mask[self.graph.parse_edge(edge_name)])

    def nodes(self) -> list[str]:
        """Names of the nodes that a kept edge touches, in topological order."""
        touched = {edge.sender.name for edge in self.edges()} | {edge.receiver.node.name for edge in self.edges()}
        order = [node.name for node in self.graph.senders] + ["logits"]
        return [name for name in order if name in touched]

    def heads(self) -> list[str]:
        """Names of the attention heads whose output a kept edge carries."""
        return heads_where(kept_heads(self.graph, self.mask))

    # --- set algebra ------------------------------------------------------------------------------------------------

    def _other_mask(self, other: "Circuit") -> Bool[np.ndarray, "R S"]:
        if self.graph != other.graph:
            raise GraphMismatch(
                f"the circuits belong to different graphs: {self.graph.describe()} and {other.graph.describe()}"
            )
        return other.mask

    def _derived(self, mask: Bool[np.ndarray, "R S"]) -> "Circuit":
        return Circuit(self.graph, mask)

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._derived(self.mask | self._other_mask(other))

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._derived(self.mask & self._other_mask(other))

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._derived(self.mask & ~self._other_mask(other))

    def __xor__(self, other: "Circuit") -> "Circuit":
        return self._derived(self.mask ^ self._other_mask(other))

    def __invert__(self) -> "Circuit":
        """The complement: every edge of the graph that this circuit cuts."""
        return self._derived(self.graph.edge_mask & ~self.mask)

    def __le__(self, other: "Circuit") -> bool:
        return not (self.mask & ~self._other_mask(other)).any()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and bool((self.mask == other.mask).all())

    def __repr__(self) -> str:
        n_heads = self.graph.n_layers * self.graph.n_heads
        came = self.provenance
        origin = f", {came.algorithm} on {came.model}, task {came.task}" if came.algorithm else ""
        return f"Circuit({self.n_edges:,} of {self.graph.n_edges:,} edges, {len(self.heads())} of {n_heads} heads{origin})"

    def __hash__(self) -> int:
        return hash((self.graph, self.mask.tobytes()))

    def jaccard(self, other: "Circuit") -> float:
        """Shared edges over all edges of the two; 1 for two empty circuits."""
        union = int((self.mask | self._other_mask(other)).sum())
        return int((self.mask & other.mask).sum()) / union if union else 1.0

    # --- paths ------------------------------------------------------------------------------------------------------

    def live_senders(self) -> Bool[np.ndarray, "S"]:
        """True for each sender with a path of kept edges to `logits`."""
        return live_senders(self.graph, self.mask)

    def reached_senders(self) -> Bool[np.ndarray, "S"]:
        """True for each sender that a path of kept edges from an embedding reaches (embeddings are reached)."""
        graph = self.graph
        reached = np.array([node.kind not in ("head", "mlp") for node in graph.senders])
        for sender, node in enumerate(graph.senders):
            receivers = list(graph.node_receivers[node.name])
            if receivers:
                reached[sender] = bool((self.mask[receivers] & reached).any())
        return reached

    def prune(self, unreached: bool = False) -> "Circuit":
        """Without the edges that lead nowhere: those into a node with no path to `logits`. The logits do not change.

        Args:
            unreached: also drop edges out of nodes that no path from an embedding reaches. Under resample ablation this
                changes nothing either (such a node computes its corrupted value), except where a norm after attention
                holds its clean scale; under zero and mean ablation it may.
        """
        mask = self.mask & live_receivers(self.graph, self.mask)[:, None]
        if unreached:
            mask = mask & self.reached_senders()[None, :]
            mask = mask & live_receivers(self.graph, mask)[:, None]
        return replace(self, mask=mask)

    def paths(self, source: str = "input", target: str = "logits", limit: int | None = None) -> Iterator[list[str]]:
        """Simple paths of node names from `source` to `target`, shortest first.

        Args:
            limit: longest path in edges; None for any length. The number of paths grows fast with it.
        """
        simple = nx.DiGraph(self.to_networkx())
        for name in (source, target):
            self.graph.parse_node(name)
        if source not in simple or target not in simple:
            return iter(())
        return iter(sorted(nx.all_simple_paths(simple, source, target, cutoff=limit), key=len))

    def to_networkx(self) -> nx.MultiDiGraph:
        """The circuit for networkx: nodes by name with `kind`, `layer`, `head`; one keyed edge for each of q, k, v.

        Layers and heads are -1 where a node has none, so that networkx's writers (GraphML, GEXF, GML) accept them.
        """
        graph = nx.MultiDiGraph()
        kept = set(self.nodes())
        for node in (*self.graph.senders, self.graph.receivers[-1].node):
            if node.name in kept:
                graph.add_node(node.name, kind=node.kind, layer=node.layer, head=node.head)
        for edge in self.edges():
            key = edge.receiver.qkv or edge.receiver.kind
            graph.add_edge(edge.sender.name, edge.receiver.node.name, key=key, input=key, name=edge.name)
        return graph

    # --- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": 1,
            "graph": self.graph.to_dict(),
            "granularity": self.granularity,
            "n_edges": self.n_edges,
            "edges": self.edge_names(),
            "groups": {name: list(heads) for name, heads in self.groups.items()},
            "provenance": self.provenance.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Circuit":
        """The inverse of `to_dict`.

        Raises:
            BadFile: a key is missing or of the wrong kind.
            GraphMismatch: an edge or a head is not one of the graph.
        """
        check_format(data, FORMAT, "not a circuit")
        given = validate(_CircuitFile, data, "not a circuit", closed=True)
        circuit = cls.from_edges(given.graph, given.edges)
        if given.n_edges is not None and given.n_edges != circuit.n_edges:
            raise BadFile(f"not a circuit: it says that it has {given.n_edges:,} edges, and names {circuit.n_edges:,}")
        if given.provenance.ablation:
            validate(AblationSection, given.provenance.ablation, "not a circuit: its provenance's ablation")
        Identity.from_dict(given.provenance.identity)  # raises if there is something else in its place
        for name in (head for heads in given.groups.values() for head in heads):
            if name not in given.graph.heads:
                raise GraphMismatch(f"'{name}' in its groups is not a head of this graph ({given.graph.describe()})")
        return replace(circuit, provenance=given.provenance, granularity=given.granularity, groups=given.groups)


@dataclass
class _CircuitFile:
    """What a circuit's file holds; a key that is not known might change what the edges mean."""

    format: str
    version: int
    graph: ComputationGraph
    granularity: Granularity
    edges: list[str]
    provenance: Provenance
    n_edges: int | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)


def kept_heads(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"]) -> Bool[np.ndarray, "L H"]:
    """Which heads a circuit keeps: those whose output at least one edge carries."""
    senders = [graph.sender_index[name] for name in graph.heads]
    return mask[:, senders].any(axis=0).reshape(graph.n_layers, graph.n_heads)


def live_senders(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"]) -> Bool[np.ndarray, "S"]:
    """True for each sender with a path of kept edges to `logits`."""
    return live_nodes(graph, mask)[0]


def live_receivers(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"]) -> Bool[np.ndarray, "R"]:
    """True for each receiver whose node has a path of kept edges to `logits` (`logits` itself is live)."""
    return live_nodes(graph, mask)[1]


def live_nodes(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"]) -> tuple[Bool[np.ndarray, "S"], Bool[np.ndarray, "R"]]:
    """`live_senders` and `live_receivers`."""
    senders = np.zeros(graph.n_senders, dtype=bool)
    receivers = np.zeros(graph.n_receivers, dtype=bool)
    receivers[-1] = True
    for sender in reversed(range(graph.n_senders)):  # every receiver of a sender is decided before the sender is
        senders[sender] = (mask[:, sender] & receivers).any()
        receivers[list(graph.node_receivers[graph.senders[sender].name])] = senders[sender]
    return senders, receivers
