"""How far a changed input reaches: which tokens of which nodes it can change, and which of them an answer can see.

Two sets of tokens for every node, both from the graph and the attention masks alone:

    needed   walk from the readings backwards over kept edges: a query is needed where its head's output is, keys and values
             wherever such a query may look
    changed  walk from the inputs that were set forwards: an output changes where the query does, and wherever a changed key or
             value is seen

Only tokens in both are computed again. A token is one position of one example, numbered b * T + t.

Shape letters: B examples, T positions, N tokens (B * T), R receivers, S senders, U tokens that change anywhere, P positions.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.graph import QKV, ComputationGraph, Node
from circuitdisc.models.components import Components


@dataclass(frozen=True)
class Tokens:
    """Some tokens of a chunk.

    Args:
        flat: their numbers. [n]
        slots: their places among the U tokens that change anywhere in the plan; None if they are all of these, in order. [n]
    """

    flat: Int[Tensor, "n"]
    slots: Int[Tensor, "n"] | None

    def __len__(self) -> int:
        return len(self.flat)


@dataclass(frozen=True)
class Read:
    """Receivers of one kind at one layer whose input changes, and where: the tokens of all of them together."""

    heads: tuple[int, ...]
    receivers: tuple[int, ...]
    tokens: Tokens


@dataclass(frozen=True)
class HeadsStep:
    """The heads of a layer to run again.

    Args:
        reads: the inputs that change, by kind.
        tokens: where the outputs change.
        positions: the queries' positions that hold those tokens, all examples alike. [P]
        rows: the tokens' places among (example, position) pairs, numbered b * P + p. [n]
    """

    layer: int
    heads: tuple[int, ...]
    senders: tuple[int, ...]
    reads: dict[QKV, Read]
    tokens: Tokens
    positions: Int[Tensor, "P"]
    rows: Int[Tensor, "n"]


@dataclass(frozen=True)
class MlpStep:
    """The MLP of a layer to run again, where its input changes."""

    layer: int
    sender: int
    receiver: int
    tokens: Tokens


@dataclass
class RerunPlan:
    """What has to run again after some inputs were set: where they change, the steps in order, and the readings.

    Args:
        n_changed: how many tokens change anywhere (U); the readings are among them.
        set_tokens: the tokens at which each receiver's input was set to something new.
        readings: the token of every reading, in the order of the readings.
        set_outputs: the same of senders whose output was set.
    """

    n_changed: int
    set_tokens: dict[int, Tokens]
    readings: Tokens
    steps: list[HeadsStep | MlpStep] = field(default_factory=list)
    set_outputs: dict[int, Tokens] = field(default_factory=dict)


class Reach:
    """Needed tokens of one circuit on one chunk, and plans for the cuts of its edges.

    Args:
        mask: the circuit, without edges that lead nowhere.
        first: the lowest receiver whose needed tokens will be asked for.
    """

    def __init__(
        self, components: Components, graph: ComputationGraph, chunk: Chunk, mask: Bool[np.ndarray, "R S"], first: int = 0
    ) -> None:
        assert chunk.frame is not None, "components need a frame"
        self.spec, self.graph, self.chunk, self.mask, self.first = components.spec, graph, chunk, mask, first
        self.shape = tuple(chunk.batch.clean.shape)
        self._allowed = {window: allowed.float().cpu().numpy() for window, allowed in chunk.frame.allowed.items()}
        self._seen: dict[tuple[int | None, bool, bytes], np.ndarray] = {}
        self.needed_in = np.zeros((graph.n_receivers, chunk.batch.clean.numel()), dtype=bool)
        self.needed_out = np.zeros((graph.n_senders, chunk.batch.clean.numel()), dtype=bool)
        self._find_needed()
        self._plans: dict[tuple[tuple[int, bytes, bytes], ...], RerunPlan | None] = {}

    # --- needed: from the readings backwards -------------------------------------------------------------------------

    @cached_property
    def readings(self) -> Int[np.ndarray, "n"]:
        """The token of every reading."""
        batch = self.chunk.batch
        return (batch.read_example * self.shape[1] + batch.read_position).cpu().numpy()

    def _find_needed(self) -> None:
        self.needed_in[-1, self.readings] = True
        for group in reversed(self.graph.groups[:-1]):
            if group[-1] < self.first:
                return
            nodes = list(dict.fromkeys(self.graph.receivers[receiver].node for receiver in group))
            senders = [self.graph.sender_index[node.name] for node in nodes]
            later = slice(group[-1] + 1, None)
            self.needed_out[senders] = _any(self.mask[later, senders].T, self.needed_in[later])
            for node, sender in zip(nodes, senders, strict=True):
                self._need_inputs(node, self.needed_out[sender])

    def _need_inputs(self, node: Node, needed: Bool[np.ndarray, "N"]) -> None:
        receivers = self.graph.node_receivers[node.name]
        self.needed_in[receivers[0]] = needed
        if node.kind == "head":
            self.needed_in[list(receivers[1:])] = self._seen_by(node.layer, needed)

    def _seen_by(self, layer: int, queries: Bool[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
        """Tokens that these queries may attend to."""
        return self._through_attention(layer, queries, forwards=False)

    def _seeing(self, layer: int, keys: Bool[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
        """Queries that may attend to these tokens."""
        return self._through_attention(layer, keys, forwards=True)

    def _through_attention(self, layer: int, tokens: Bool[np.ndarray, "N"], forwards: bool) -> Bool[np.ndarray, "N"]:
        """From keys to queries, or back. The heads of a layer mostly ask the same: each answer is kept."""
        window = self.spec.window[layer] if self.spec.window else None
        key = (window, forwards, tokens.tobytes())
        if key not in self._seen:
            allowed, rows = self._allowed[window], tokens.reshape(self.shape).astype(np.float32)
            found = np.matmul(allowed, rows[..., None]) if forwards else np.matmul(rows[:, None], allowed)
            self._seen[key] = found.reshape(-1) > 0
        return self._seen[key]

    def recomputed(self, sender: int) -> Int[np.ndarray, "n"]:
        """Tokens at which a sender is needed and may differ from its clean value."""
        return np.flatnonzero(self.needed_out[sender] & self.may_change)

    @cached_property
    def may_change(self) -> Bool[np.ndarray, "N"]:
        """Tokens at which a cut can change anything."""
        return self.chunk.may_change.reshape(-1).cpu().numpy()

    def input_key(self, receiver: int) -> tuple[bytes, bytes]:
        """Equal for receivers at one place that read the same."""
        return self.mask[receiver].tobytes(), self.needed_in[receiver].tobytes()

    def n_inputs(self, receivers: Collection[int]) -> int:
        """How many different inputs receivers at one place read."""
        return len({self.input_key(receiver) for receiver in receivers})

    # --- changed: from the inputs that were set forwards ------------------------------------------------------------------

    def plan(
        self, changed: Mapping[int, Bool[np.ndarray, "N"]], held: Mapping[int, Bool[np.ndarray, "N"]] | None = None
    ) -> RerunPlan | None:
        """What has to run again if the inputs of some receivers are set; None if no answer can see it.

        Args:
            changed: receiver -> tokens at which its input becomes another one.
            held: receiver -> tokens at which its input is set, whatever changes before it; None: those that change.
        """
        held = changed if held is None else held
        changed = {receiver: tokens & self.needed_in[receiver] for receiver, tokens in changed.items()}
        key = tuple((receiver, tokens.tobytes(), held[receiver].tobytes()) for receiver, tokens in sorted(changed.items()))
        if key not in self._plans:
            seen = any(tokens.any() for tokens in changed.values())
            self._plans[key] = self._make_plan(changed, held) if seen else None
        return self._plans[key]

    def plan_outputs(self, changed: Mapping[int, Bool[np.ndarray, "N"]], spent: Collection[int]) -> RerunPlan:
        """What has to run again if the outputs of some senders are set. Plans of sets of nodes seldom return: none is kept.

        Args:
            changed: sender -> tokens at which its output becomes another one.
            spent: those of them that need not run again, whatever they read.
        """
        return self._make_plan({}, {}, changed, spent)

    def _make_plan(
        self,
        changed: dict[int, np.ndarray],
        held: Mapping[int, np.ndarray],
        set_outputs: Mapping[int, np.ndarray] | None = None,
        spent: Collection[int] = (),
    ) -> RerunPlan:
        graph = self.graph
        set_outputs = set_outputs or {}
        outputs = dict(set_outputs)  # sender -> tokens at which it changes
        inputs: list[tuple[tuple[int, ...], dict[int, np.ndarray]]] = []  # group -> receiver -> the same
        for group in graph.groups[:-1]:
            read = self._changed_inputs(group, outputs)
            if spent:
                read = {one: tokens for one, tokens in read.items() if self._sender_of(one) not in spent}
            for receiver in changed.keys() & set(group):
                tokens = changed[receiver] | (read.pop(receiver, False) & ~held[receiver])
                read |= {receiver: tokens} if tokens.any() else {}
            if read:
                read = dict(sorted(read.items()))
                inputs.append((group, read))
                for sender, tokens in self._changed_outputs(read).items():
                    outputs[sender] = outputs[sender] | tokens if sender in outputs else tokens
        union = np.zeros(self.needed_in.shape[1], dtype=bool)
        union[self.readings] = True
        for tokens in (*changed.values(), *outputs.values(), *(tokens for _, read in inputs for tokens in read.values())):
            union |= tokens
        slots = np.cumsum(union) - 1
        make = _TokenMaker(slots, int(union.sum()), self.chunk.clean.device)
        set_tokens = {receiver: make(np.flatnonzero(tokens)) for receiver, tokens in changed.items()}
        plan = RerunPlan(int(union.sum()), set_tokens, make(self.readings))
        plan.set_outputs |= {sender: make(np.flatnonzero(tokens)) for sender, tokens in set_outputs.items()}
        for group, read in inputs:
            is_mlp = graph.receivers[group[0]].kind == "mlp"
            plan.steps.append(self._mlp_step(read, make) if is_mlp else self._heads_step(read, outputs, make))
        return plan

    def _sender_of(self, receiver: int) -> int:
        return self.graph.sender_index[self.graph.receivers[receiver].node.name]

    def _changed_inputs(self, group: tuple[int, ...], outputs: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        if not outputs:
            return {}
        kept = self.mask[np.ix_(group, list(outputs))]
        tokens = _any(kept, np.stack(list(outputs.values()))) & self.needed_in[list(group)]
        return {receiver: row for receiver, row in zip(group, tokens, strict=True) if row.any()}

    def _changed_outputs(self, read: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for receiver, tokens in read.items():
            node, qkv = self.graph.receivers[receiver]
            sender = self.graph.sender_index[node.name]
            reached = self._seeing(node.layer, tokens) if qkv in ("k", "v") else tokens
            found[sender] = found.get(sender, False) | (reached & self.needed_out[sender])
        return found

    def _mlp_step(self, read: dict[int, np.ndarray], make: "_TokenMaker") -> MlpStep:
        (receiver, tokens), = read.items()  # fmt: skip
        node = self.graph.receivers[receiver].node
        return MlpStep(node.layer, self.graph.sender_index[node.name], receiver, make(np.flatnonzero(tokens)))

    def _heads_step(self, read: dict[int, np.ndarray], outputs: dict[int, np.ndarray], make: "_TokenMaker") -> HeadsStep:
        graph, length = self.graph, self.shape[1]
        nodes = sorted({graph.receivers[receiver].node for receiver in read})
        senders = tuple(graph.sender_index[node.name] for node in nodes)
        reads: dict[QKV, Read] = {}
        for qkv in ("q", "k", "v"):
            chosen = tuple(receiver for receiver in read if graph.receivers[receiver].qkv == qkv)
            if chosen:
                heads = tuple(graph.receivers[receiver].node.head for receiver in chosen)
                tokens = np.logical_or.reduce([read[receiver] for receiver in chosen])
                reads[qkv] = Read(heads, chosen, make(np.flatnonzero(tokens)))
        tokens = np.flatnonzero(np.logical_or.reduce([outputs[sender] for sender in senders]))
        positions, place = np.unique(tokens % length, return_inverse=True)
        rows = (tokens // length) * len(positions) + place
        index = [torch.from_numpy(array).to(self.chunk.clean.device) for array in (positions, rows)]
        return HeadsStep(nodes[0].layer, tuple(node.head for node in nodes), senders, reads, make(tokens), *index)


@dataclass(frozen=True)
class _TokenMaker:
    """Token numbers to `Tokens`."""

    slot_of: Int[np.ndarray, "N"]
    n_changed: int
    device: torch.device

    def __call__(self, flat: Int[np.ndarray, "n"]) -> Tokens:
        slots = self.slot_of[flat]
        all_of_them = len(slots) == self.n_changed and bool((np.diff(slots) > 0).all())
        place = None if all_of_them else torch.from_numpy(slots).to(self.device)
        return Tokens(torch.from_numpy(flat).to(self.device), place)


def _any(which: Bool[np.ndarray, "n m"], sets: Bool[np.ndarray, "m N"]) -> Bool[np.ndarray, "n N"]:
    """For each row, the union of the chosen sets."""
    return np.stack([sets[chosen].any(0) for chosen in which])
