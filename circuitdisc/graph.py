"""The computation graph of a transformer: which sender may feed which receiver, as index arrays and as names.

Senders write to the residual stream and receivers read it (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"). Both are kept in topological order, so the senders that come before a receiver are always a prefix of the
list of senders: one number a receiver, `n_upstream`, holds the whole graph.

Names are those of EAP-IG and of the MIB benchmark: nodes `input`, `a9.h6`, `m2`, `logits`; edges `m2->a7.h0<v>`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Int

from circuitdisc.errors import GraphMismatch, nearest, shown

NodeKind = Literal["input", "tok_embed", "pos_embed", "head", "mlp", "logits"]
QKV = Literal["q", "k", "v"]

MOST_PLACES = 2**27
"""Receivers x senders of the largest graph: some masks of it, of a byte a place, stay below 1 GiB."""

_NODE = re.compile(r"a(?P<layer>[0-9]{1,9})\.h(?P<head>[0-9]{1,9})|m(?P<mlp>[0-9]{1,9})|input|tok_embed|pos_embed|logits")


class Node(NamedTuple):
    """One node of the graph. `layer` and `head` are -1 where a node has none."""

    kind: NodeKind
    layer: int = -1
    head: int = -1

    @property
    def name(self) -> str:
        if self.kind == "head":
            return f"a{self.layer}.h{self.head}"
        if self.kind == "mlp":
            return f"m{self.layer}"
        return self.kind

    @classmethod
    def parse(cls, name: str) -> "Node":
        """The node with this name, in whatever graph; where there is a graph, ask it (`parse_node`, `parse_head`).

        Raises:
            GraphMismatch: nodes are not written like this.
        """
        match = _NODE.fullmatch(name)
        if match is None:
            raise GraphMismatch(f"{shown(name)} is not a node; nodes are written like input, a0.h0, m0 and logits")
        if match["head"] is not None:
            return cls("head", int(match["layer"]), int(match["head"]))
        return cls("mlp", int(match["mlp"])) if match["mlp"] is not None else cls(cast(NodeKind, name))


class Receiver(NamedTuple):
    """An input that reads the residual stream: a node, and for a head which of its three inputs."""

    node: Node
    qkv: QKV | None = None

    @property
    def name(self) -> str:
        return f"{self.node.name}<{self.qkv}>" if self.qkv else self.node.name

    @property
    def kind(self) -> str:
        """`q`, `k`, `v`, `mlp` or `logits`."""
        return self.qkv or self.node.kind


class Edge(NamedTuple):
    """sender -> receiver."""

    sender: Node
    receiver: Receiver

    @property
    def name(self) -> str:
        return f"{self.sender.name}->{self.receiver.name}"


@dataclass(frozen=True)
class ComputationGraph:
    """All the edges of one model.

    Args:
        n_layers: transformer blocks.
        n_heads: query heads per block. Under grouped-query attention every query head has a k and a v input of its own,
            as in MIB, so that an edge into `a3.h5<k>` touches head 5 alone.
        has_mlp: False for attention-only models.
        parallel: attention and MLP of a block read the same residual (GPT-NeoX), so that no head feeds its own block's MLP.
        split_embeddings: `tok_embed` and `pos_embed` as two senders in place of `input`.
        d_model: width of the residual stream, where it is known. Edges do not depend on it: graphs of two widths are equal.
    """

    n_layers: int
    n_heads: int
    has_mlp: bool = True
    parallel: bool = False
    split_embeddings: bool = False
    d_model: int | None = field(default=None, compare=False)
    NEEDED: ClassVar[tuple[str, ...]] = ("n_layers", "n_heads", "has_mlp", "parallel", "split_embeddings")
    """Keys that a file must have: a default would make another graph of it without a word."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise GraphMismatch(f"{name}={shown(size)} of a graph must be a whole number from 0")
        n_senders = 1 + self.split_embeddings + self.n_layers * (self.n_heads + self.has_mlp)
        n_receivers = self.n_layers * (3 * self.n_heads + self.has_mlp) + 1
        if n_senders * n_receivers > MOST_PLACES:
            raise GraphMismatch(
                f"a graph of {shown(self.n_layers)} layers x {shown(self.n_heads)} heads has {n_senders:,} senders and "
                f"{n_receivers:,} receivers, more than are handled here (80 layers x 64 heads are)"
            )

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        """Senders in topological order: embedding, then per block its heads and its MLP. Length S."""
        nodes = [Node("tok_embed"), Node("pos_embed")] if self.split_embeddings else [Node("input")]
        for layer in range(self.n_layers):
            nodes += [Node("head", layer, head) for head in range(self.n_heads)]
            if self.has_mlp:
                nodes.append(Node("mlp", layer))
        return tuple(nodes)

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """Receivers in topological order: per block all q, all k, all v, the MLP; then `logits`. Length R."""
        receivers: list[Receiver] = []
        for layer in range(self.n_layers):
            receivers += [Receiver(Node("head", layer, head), qkv) for qkv in ("q", "k", "v") for head in range(self.n_heads)]
            if self.has_mlp:
                receivers.append(Receiver(Node("mlp", layer)))
        return (*receivers, Receiver(Node("logits")))

    @cached_property
    def n_upstream(self) -> Int[np.ndarray, "R"]:
        """How many senders come before each receiver: receiver r may read senders 0 .. n_upstream[r]-1."""
        n_embed = 2 if self.split_embeddings else 1
        per_layer = self.n_heads + self.has_mlp
        counts = []
        for receiver in self.receivers:
            layer = self.n_layers if receiver.kind == "logits" else receiver.node.layer
            own_heads = self.n_heads if receiver.kind == "mlp" and not self.parallel else 0
            counts.append(n_embed + layer * per_layer + own_heads)
        return np.array(counts)

    @cached_property
    def edge_mask(self) -> Bool[np.ndarray, "R S"]:
        """True where receiver r may read sender s."""
        mask = np.arange(self.n_senders)[None, :] < self.n_upstream[:, None]
        mask.setflags(write=False)
        return mask

    @property
    def n_senders(self) -> int:
        return len(self.senders)

    @property
    def n_receivers(self) -> int:
        return len(self.receivers)

    @cached_property
    def n_edges(self) -> int:
        return int(self.n_upstream.sum())

    @cached_property
    def sender_index(self) -> dict[str, int]:
        """Position of each sender, by name."""
        return {node.name: index for index, node in enumerate(self.senders)}

    @cached_property
    def receiver_index(self) -> dict[str, int]:
        """Position of each receiver, by name."""
        return {receiver.name: index for index, receiver in enumerate(self.receivers)}

    @cached_property
    def heads(self) -> dict[str, tuple[int, int]]:
        """Name of each head, layer by layer -> its layer and number."""
        return {node.name: (node.layer, node.head) for node in self.senders if node.kind == "head"}

    @cached_property
    def node_receivers(self) -> dict[str, tuple[int, ...]]:
        """The receivers that feed each node (three for a head, one for an MLP or `logits`, none for an embedding)."""
        feeding: dict[str, list[int]] = {node.name: [] for node in (*self.senders, Node("logits"))}
        for index, receiver in enumerate(self.receivers):
            feeding[receiver.node.name].append(index)
        return {name: tuple(indices) for name, indices in feeding.items()}

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Receivers at the same place in the residual stream, in topological order: a block's q, k, v; its MLP; `logits`."""
        places: dict[tuple[int, bool], list[int]] = {}
        for index, receiver in enumerate(self.receivers):
            layer = self.n_layers if receiver.kind == "logits" else receiver.node.layer
            places.setdefault((layer, receiver.kind == "mlp"), []).append(index)
        return tuple(tuple(group) for group in places.values())

    def edge(self, receiver: int, sender: int) -> Edge:
        """The edge at row `receiver`, column `sender` of an edge mask."""
        return Edge(self.senders[sender], self.receivers[receiver])

    def edge_name(self, receiver: int, sender: int) -> str:
        return self.edge(receiver, sender).name

    def parse_edge(self, name: str) -> tuple[int, int]:
        """Receiver and sender index of an edge name such as `m2->a7.h0<v>`.

        Raises:
            GraphMismatch: the name is not an edge of this graph.
        """
        sender_name, _, receiver_name = name.partition("->")
        sender, receiver = self.sender_index.get(sender_name), self.receiver_index.get(receiver_name)
        if sender is None or receiver is None or not self.edge_mask[receiver, sender]:
            raise GraphMismatch(
                f"'{name}' is not an edge of this graph ({self.describe()}); edges are written like input->a0.h0<q>"
            )
        return receiver, sender

    def parse_head(self, name: object) -> tuple[int, int]:
        """Layer and number of a head such as `a7.h0`.

        Raises:
            GraphMismatch: it is not a head of this graph; the nearest ones are named.
        """
        if str(name) not in self.heads:
            raise self._unknown(str(name), "head", self.heads, "a0.h0")
        return self.heads[str(name)]

    def parse_node(self, name: object) -> Node:
        """The node with this name: a sender, or `logits`.

        Raises:
            GraphMismatch: it is not a node of this graph; the nearest ones are named.
        """
        if str(name) not in self.node_receivers:
            raise self._unknown(str(name), "node", self.node_receivers, "input, a0.h0, m0 and logits")
        return Node.parse(str(name))

    def _unknown(self, name: str, kind: str, known: Iterable[str], written: str) -> GraphMismatch:
        near = nearest(name, known)
        offer = f". Did you mean {' or '.join(near)}?" if near else ""
        return GraphMismatch(
            f"{shown(name)} is not a {kind} of this graph ({self.describe()}); {kind}s are written like {written}{offer}"
        )

    def describe(self) -> str:
        """The graph in a few words, for messages."""
        extras = [] if self.has_mlp else ["no MLP"]
        extras += ["parallel blocks"] if self.parallel else []
        extras += ["token and position embedding apart"] if self.split_embeddings else []
        words = f"{self.n_layers} layers x {self.n_heads} heads"
        return f"{words}, {', '.join(extras)}" if extras else words

    def to_dict(self) -> dict[str, int | bool]:
        width = {} if self.d_model is None else {"d_model": self.d_model}
        return {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "has_mlp": self.has_mlp,
            "parallel": self.parallel,
            "split_embeddings": self.split_embeddings,
            **width,
        }


def heads_where(mask: Bool[np.ndarray, "L H"]) -> list[str]:
    """Names of the heads at which a mask of layers and heads is True, layer by layer."""
    return [Node("head", layer, head).name for layer, head in np.argwhere(mask).tolist()]
