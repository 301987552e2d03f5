"""The incremental run: cut a few more edges into one receiver, and recompute only what that changes.

A `Removal` starts from the run of a circuit and is asked, for one receiver at a time, what the final residual would be if
more of its edges were cut. While receivers are visited in reverse topological order, every sender before the receiver still
has its clean value, so its input changes by (ablated_s - clean_s) for each edge cut; from there only live nodes that a changed
value reaches are recomputed. Queries, keys, values and patterns that did not change are reused; positions before the first
change are left alone.

Several candidates are tried at once, as rows: row i has candidates 0..i cut. Shape letters: C rows, B examples, T positions
(from `chunk.start` on in everything that changes), D residual width, K head width.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.graph import QKV, ComputationGraph, Node
from circuitdisc.models.components import Components
from circuitdisc.patching.circuit_run import CircuitRun
from circuitdisc.patching.prepared import Chunk


@dataclass
class _Trial:
    """What the tried cuts change: new inputs, q, k, v and patterns, and the change of what senders write."""

    receiver: int
    senders: list[int]
    inputs: dict[int, Float[Tensor, "C B T D"]] = field(default_factory=dict)
    qkv: dict[int, Float[Tensor, "C B T K"]] = field(default_factory=dict)
    patterns: dict[int, Float[Tensor, "C B T T2"]] = field(default_factory=dict)
    changes: dict[int, Float[Tensor, "C B T D"]] = field(default_factory=dict)


class IncrementalRemoval:
    """Edges cut one after the other from a circuit, on one chunk of examples.

    Args:
        mask: the circuit to start from: every sender before receiver `first` keeps all edges into its own receivers.
        first: index of the first receiver that will be visited; only it and later ones are remembered.
    """

    def __init__(
        self, components: Components, graph: ComputationGraph, chunk: Chunk, mask: Bool[np.ndarray, "R S"], first: int
    ) -> None:
        self.components, self.graph, self.chunk = components, graph, chunk
        self.mask = mask.copy()
        self.run = CircuitRun(components, graph, chunk, mask, record_from=first)
        self.state = self.run.state
        self.mask[~self.run.live_receivers] = False  # edges that lead nowhere would only be followed in vain
        self.start = chunk.start
        self.node_evaluations = self.run.node_evaluations
        self._trial: _Trial | None = None

    def residual(self) -> Float[Tensor, "1 N D"]:
        """The final residual at the readings, with all accepted cuts."""
        return self._at_readings(self.state.inputs[self.graph.n_receivers - 1])

    @torch.no_grad()
    def try_cuts(self, receiver: int, senders: list[int]) -> Float[Tensor, "C N D"]:
        """The final residual at the readings for every prefix of the cuts: row i has edges 0..i into `receiver` cut."""
        trial = _Trial(receiver, senders)
        live = torch.stack([self.state.values[sender][:, self.start :] for sender in senders])
        cuts = (self._ablated(senders) - live).cumsum(0)
        trial.inputs[receiver] = self.state.inputs[receiver][:, :, self.start :] + cuts
        self._propagate(trial)
        self._trial = trial
        final = self.graph.n_receivers - 1
        if final not in trial.inputs:
            return self.residual().expand(len(senders), -1, -1)
        return self._at_readings(self._full(self.state.inputs[final], trial.inputs[final]))

    def accept(self, n_cuts: int) -> None:
        """Keep the first `n_cuts` of the cuts just tried."""
        trial = self._trial
        assert trial is not None, "nothing was tried"
        self._trial = None
        if n_cuts == 0:
            return
        row = slice(n_cuts - 1, n_cuts)
        self.mask[trial.receiver, trial.senders[:n_cuts]] = False
        for receiver, new in trial.inputs.items():
            self.state.inputs[receiver] = self._full(self.state.inputs[receiver], new[row])
        for receiver, new in trial.qkv.items():
            self.state.qkv[receiver] = self._full(self.state.qkv[receiver], new[row])
        for sender, new in trial.patterns.items():
            self.state.patterns[sender] = self._full(self.state.patterns[sender], new[row])
        for sender, change in trial.changes.items():
            value = self.state.values[sender].clone()
            value[:, self.start :] += change[row.start]
            self.state.values[sender] = value

    def drop(self, receivers: list[int]) -> None:
        """Cut every edge into these receivers, whose node no longer reaches `logits`: nothing that is read changes."""
        self.mask[receivers] = False

    # --- what a cut changes ------------------------------------------------------------------------------------------

    def _propagate(self, trial: _Trial) -> None:
        """Recompute, in topological order, the live nodes that a changed value reaches."""
        graph = self.graph
        first = graph.receivers[trial.receiver].node
        if first.kind == "logits":
            return
        for node in graph.senders[graph.sender_index[first.name] :]:
            sender = graph.sender_index[node.name]
            if not self.mask[:, sender].any():
                continue
            receivers = graph.node_receivers[node.name]
            for receiver in receivers:
                self._change_input(trial, receiver)
            if any(receiver in trial.inputs for receiver in receivers):
                new = self._run_mlp(trial, node) if node.kind == "mlp" else self._run_head(trial, node)
                trial.changes[sender] = new - self.state.values[sender][:, self.start :]
        self._change_input(trial, graph.n_receivers - 1)

    def _change_input(self, trial: _Trial, receiver: int) -> None:
        """Add the changes of the kept senders of `receiver` to what it reads."""
        for sender, change in trial.changes.items():
            if self.mask[receiver, sender]:
                if receiver in trial.inputs:
                    trial.inputs[receiver].add_(change)
                else:
                    trial.inputs[receiver] = self.state.inputs[receiver][:, :, self.start :] + change

    def _run_mlp(self, trial: _Trial, node: Node) -> Float[Tensor, "C B T D"]:
        x = trial.inputs[self.graph.receiver_index[node.name]]
        self.node_evaluations += x.shape[0]
        return self.components.mlp(node.layer, x)

    def _run_head(self, trial: _Trial, node: Node) -> Float[Tensor, "C B T D"]:
        layer, heads = node.layer, [node.head]
        q, k, v = (self._read(trial, node, qkv) for qkv in ("q", "k", "v"))
        sender = self.graph.sender_index[node.name]
        pattern = self.state.patterns[sender][:, :, self.start :]
        if any(self.graph.receiver_index[f"{node.name}<{qkv}>"] in trial.qkv for qkv in ("q", "k")):
            assert self.run.frame is not None
            queries = q[None, :, :, self.start :]
            pattern = self.components.pattern(layer, queries, k[None], self.run.frame, self.start)[0]
            trial.patterns[sender] = pattern
        out = self.components.head_output(layer, heads, (pattern @ v)[None], self.run.frame, self.start)[0]
        self.node_evaluations += out.shape[0]
        return out

    def _read(self, trial: _Trial, node: Node, qkv: QKV) -> Float[Tensor, "C B T K"]:
        """The head's query, key or value at all positions; recomputed from `start` on if its input changed."""
        receiver = self.graph.receiver_index[f"{node.name}<{qkv}>"]
        if receiver in trial.inputs:
            x = trial.inputs[receiver][None]
            trial.qkv[receiver] = self.components.read(node.layer, qkv, [node.head], x, self.run.frame, self.start)[0]
            return self._full(self.state.qkv[receiver], trial.qkv[receiver])
        return self.state.qkv[receiver]

    # --- shapes ------------------------------------------------------------------------------------------------------

    def _ablated(self, senders: list[int]) -> Float[Tensor, "n B T D"]:
        ablated = self.chunk.ablated[senders]
        return ablated if ablated.shape[2] == 1 else ablated[:, :, self.start :]

    def _full(self, old: Float[Tensor, "1 B T X"], new: Float[Tensor, "C B T X"]) -> Float[Tensor, "C B T X"]:
        """`new` with the untouched positions before `start` put in front."""
        if self.start == 0:
            return new
        before = old[:, :, : self.start].expand(new.shape[0], -1, -1, -1)
        return torch.cat([before, new], dim=2)

    def _at_readings(self, residual: Float[Tensor, "C B T D"]) -> Float[Tensor, "C N D"]:
        return residual[:, self.chunk.batch.read_example, self.chunk.batch.read_position]
