"""The run of a circuit: only live nodes are computed, and each reads its kept senders live and its cut ones ablated.

    input of receiver r = constants + sum of ablated senders before r + sum over kept edges s -> r of (live_s - ablated_s)

MLPs, which cost most, run only at the tokens that an answer can see and a cut can change (`reach.py`); elsewhere their clean
value stands in, which nothing that counts reads.

Shape letters: S senders, R receivers, B examples, T positions, D residual width, K head width, N readings.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.circuit import live_nodes
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.reach import Reach
from circuitdisc.engine.written import Written
from circuitdisc.graph import QKV, ComputationGraph
from circuitdisc.models.components import Components
from circuitdisc.models.frame import Frame


@dataclass
class NodeState:
    """What a run leaves behind, for the incremental runs that start from it. Row axis C is 1.

    Args:
        inputs: receiver index -> what it reads. [1, B, T, D]
        qkv: receiver index -> the head's query, key or value. [1, B, T, K]
        patterns: sender index of a head -> its attention pattern. [1, B, T, T2]
        values: sender index -> what it writes, for live senders. [B, T, D]
    """

    values: dict[int, Float[Tensor, "B T D"]] = field(default_factory=dict)
    inputs: dict[int, Float[Tensor, "1 B T D"]] = field(default_factory=dict)
    qkv: dict[int, Float[Tensor, "1 B T K"]] = field(default_factory=dict)
    patterns: dict[int, Float[Tensor, "1 B T T2"]] = field(default_factory=dict)


class CircuitRun:
    """One run of one circuit on one chunk.

    Args:
        record_from: keep inputs, q, k, v and patterns of live receivers from this index on; None keeps only the last input.
        beside: edges that may be put into the circuit afterwards: their senders are computed, too.
    """

    def __init__(
        self,
        components: Components,
        graph: ComputationGraph,
        chunk: Chunk,
        mask: Bool[np.ndarray, "R S"],
        record_from: int | None = None,
        beside: Bool[np.ndarray, "R S"] | None = None,
    ) -> None:
        assert chunk.frame is not None, "components need a frame"
        self.components, self.graph, self.chunk, self.mask = components, graph, chunk, mask
        self.frame: Frame = chunk.frame
        self.record_from = graph.n_receivers if record_from is None else record_from
        seen = mask if beside is None else mask | beside
        self.live_senders, self.live_receivers = live_nodes(graph, seen)
        self.reach = Reach(components, graph, chunk, seen & self.live_receivers[:, None])
        self.unchanged = _unchanged_senders(graph, self._kept_everywhere())
        self.state = NodeState()
        self.node_evaluations = 0.0
        self.difference = self._begin_writing()
        self._run()

    def _kept_everywhere(self) -> Bool[np.ndarray, "R S"]:
        """Edges that carry the live value at all tokens."""
        return self.mask

    def _begin_writing(self) -> Written:
        return Written(np.flatnonzero(self.live_senders), self.chunk.clean[0])

    def _what_is_kept(self, receiver: int) -> bytes:
        """Equal for receivers at one place that read the same."""
        return self.mask[receiver].tobytes()

    def _sums(self, receivers: list[int], n_upstream: int) -> Float[Tensor, "n B T D"]:
        return self.difference.sums(self.mask[receivers], n_upstream)

    @property
    def residual(self) -> Float[Tensor, "B T D"]:
        """The final residual that `logits` reads."""
        return self.state.inputs[self.graph.n_receivers - 1][0]

    @torch.no_grad()
    def _run(self) -> None:
        graph, n_embed = self.graph, int(self.graph.n_upstream[0])
        for sender in range(n_embed):
            self._write(sender, self.chunk.clean[sender])
        for layer in range(graph.n_layers):
            self._run_heads(layer)
            if graph.has_mlp:
                self._run_mlp(layer)
        self._read_inputs([graph.n_receivers - 1], self.components.constant_before(graph.n_layers))

    def _write(self, sender: int, value: Float[Tensor, "B T D"]) -> None:
        self.state.values[sender] = value
        if sender in self.difference:
            self.difference.write(sender, value, self.chunk.ablated[sender])

    def _read_inputs(
        self, receivers: list[int], constant: Float[Tensor, "D"]
    ) -> tuple[Float[Tensor, "m B T D"], Int[np.ndarray, "n"]]:
        """What receivers at the same place in the residual stream read: the different inputs, and which of them each reads."""
        n_upstream = int(self.graph.n_upstream[receivers[0]])
        places: dict[bytes, int] = {}
        which = np.array([places.setdefault(self._what_is_kept(receiver), len(places)) for receiver in receivers])
        _, first = np.unique(which, return_index=True)
        x = self._sums([receivers[row] for row in first], n_upstream)
        x += constant + self.chunk.ablated_before(n_upstream)
        for row, receiver in zip(which, receivers, strict=True):
            if receiver >= self.record_from or receiver == self.graph.n_receivers - 1:
                self.state.inputs[receiver] = x[row][None]
        return x, which

    def _run_heads(self, layer: int) -> None:
        graph, index = self.graph, self.graph.sender_index
        heads = []
        for head in range(graph.n_heads):
            sender = index[f"a{layer}.h{head}"]
            recorded = graph.receiver_index[f"a{layer}.h{head}<v>"] >= self.record_from
            if self.live_senders[sender] and self.unchanged[sender] and not recorded:
                self._write(sender, self.chunk.clean[sender])
            elif self.live_senders[sender]:
                heads.append(head)
        if not heads:
            return
        q, k, v = self._read_qkv(layer, heads)
        pattern = self.components.pattern(layer, heads, q, k, self.frame)
        outputs = self.components.head_output(layer, heads, pattern @ v, self.frame)
        self.node_evaluations += len(heads)
        for row, head in enumerate(heads):
            sender = index[f"a{layer}.h{head}"]
            self._write(sender, outputs[row, 0])
            if graph.receiver_index[f"a{layer}.h{head}<v>"] >= self.record_from:
                self.state.patterns[sender] = pattern[row]

    def _read_qkv(self, layer: int, heads: list[int]) -> list[Float[Tensor, "n 1 B T K"]]:
        kinds: tuple[QKV, ...] = ("q", "k", "v")
        receivers = [[self.graph.receiver_index[f"a{layer}.h{head}<{qkv}>"] for head in heads] for qkv in kinds]
        x, which = self._read_inputs([one for own in receivers for one in own], self.components.constant_before(layer))
        read = []
        for qkv, own, rows in zip(kinds, receivers, which.reshape(3, -1), strict=True):
            alike = (rows == rows[0]).all()  # one input for all heads broadcasts; else each head gets its own
            inputs = x[rows[0]][None] if alike else x[torch.from_numpy(rows)]
            read.append(self.components.read(layer, qkv, heads, inputs[:, None], self.frame))
            for row, receiver in enumerate(own):
                if receiver >= self.record_from:
                    self.state.qkv[receiver] = read[-1][row]
        return read

    def _run_mlp(self, layer: int) -> None:
        sender, receiver = self.graph.sender_index[f"m{layer}"], self.graph.receiver_index[f"m{layer}"]
        if not self.live_senders[sender]:
            return
        if self.unchanged[sender] and receiver < self.record_from:
            self._write(sender, self.chunk.clean[sender])
            return
        x = self._read_inputs([receiver], self.components.constant_before(layer, mlp=True))[0][0]
        value, tokens = self.chunk.clean[sender], self.reach.recomputed(sender)
        if len(tokens) and not self.unchanged[sender]:
            value = value.clone()
            flat = torch.from_numpy(tokens).to(value.device)
            value.flatten(0, 1)[flat] = self.components.mlp(layer, x.flatten(0, 1)[flat])
            self.node_evaluations += len(tokens) / self.chunk.n_tokens
        self._write(sender, value)


def _unchanged_senders(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"]) -> Bool[np.ndarray, "S"]:
    """True for each sender that no cut edge can influence: its clean value needs no computing."""
    unchanged = np.zeros(graph.n_senders, dtype=bool)
    for sender, node in enumerate(graph.senders):
        unchanged[sender] = all(
            bool((mask[receiver] & unchanged)[: graph.n_upstream[receiver]].all())
            for receiver in graph.node_receivers[node.name]
        )
    return unchanged
