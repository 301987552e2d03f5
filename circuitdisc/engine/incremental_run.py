"""The incremental run: set the inputs of some receivers of a circuit, and recompute only what that changes.

An `IncrementalRun` starts from the run of a circuit. Some inputs are then set to something new (an edge was cut, a path was
patched); from there only live nodes that a changed value reaches are recomputed, and of these only the tokens that an answer
can see (`reach.py`). Queries, keys, values and patterns that did not change are reused. Several changes are tried at once, as
rows.

Shape letters: C rows, B examples, T positions, N tokens (B * T), n some of them, U those that change anywhere, Nr readings,
h heads, P query positions, D residual width, K head width, S senders, R receivers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.circuit_run import CircuitRun, NodeState
from circuitdisc.engine.reach import HeadsStep, MlpStep, Read, RerunPlan, Tokens
from circuitdisc.graph import QKV, ComputationGraph
from circuitdisc.models.components import Components


@dataclass(frozen=True)
class SetInput:
    """A receiver's input, set to something new.

    Args:
        tokens: where it differs from its old value.
        rows: what it is there. [C, n, D]
        held: where it is set at all: there nothing that changes before it counts. None: nothing does change before it. [N]
        old_norm: the receiver's norm keeps the scale of the old input where it is held.
    """

    tokens: Tokens
    rows: Float[Tensor, "C n D"]
    held: Bool[Tensor, "N"] | None = None
    old_norm: bool = False


@dataclass
class Trial:
    """Inputs that were set, and what they change: inputs, q, k, v, patterns and outputs, each with the tokens it has.

    Args:
        set_inputs: receiver -> its new input.
        plan: what has to run again.
        n_rows: how many changes are tried at once (C).
        changes: sender -> new minus old output, among the tokens that change anywhere. [C, U, D]
    """

    set_inputs: dict[int, SetInput]
    plan: RerunPlan
    n_rows: int
    inputs: dict[int, tuple[Tokens, Float[Tensor, "C n D"]]] = field(default_factory=dict)
    qkv: dict[int, tuple[Tokens, Float[Tensor, "C n K"]]] = field(default_factory=dict)
    patterns: dict[int, tuple[Int[Tensor, "P"], Float[Tensor, "C B P T"]]] = field(default_factory=dict)
    changes: dict[int, Float[Tensor, "C U D"]] = field(default_factory=dict)
    outputs: dict[int, tuple[Tokens, Float[Tensor, "C n D"]]] = field(default_factory=dict)
    total: Float[Tensor, "C U D"] | None = None  # sum of the first `n_added` changes
    n_added: int = 0


class IncrementalRun:
    """The run of a circuit on one chunk of examples, ready to be run again with some inputs set.

    Args:
        mask: the circuit.
        first: index of the first receiver whose input may be set; only it and later ones are remembered.
        beside: edges that will be tried as additions to the circuit.
    """

    def __init__(
        self,
        components: Components,
        graph: ComputationGraph,
        chunk: Chunk,
        mask: Bool[np.ndarray, "R S"],
        first: int,
        beside: Bool[np.ndarray, "R S"] | None = None,
    ) -> None:
        self.components, self.graph, self.chunk = components, graph, chunk
        self.run = CircuitRun(components, graph, chunk, mask, record_from=first, beside=beside)
        self.reach = self.run.reach
        if beside is not None:  # what may be needed is that of all edges; what a change reaches goes by the circuit's
            self.reach.mask = mask.copy()
        self.mask = self.reach.mask  # one mask for both; what tokens are needed can only shrink as edges go
        self.node_evaluations = self.run.node_evaluations
        state, n_tokens = self.run.state, chunk.batch.clean.numel()
        self._inputs = {receiver: x.reshape(n_tokens, -1) for receiver, x in state.inputs.items()}
        self._qkv = {receiver: x.reshape(n_tokens, -1) for receiver, x in state.qkv.items()}
        self._patterns = {sender: pattern[0] for sender, pattern in state.patterns.items()}
        self._values = {sender: value.reshape(n_tokens, -1) for sender, value in state.values.items()}
        self.run.state = NodeState()  # so that what is written anew is not kept twice

    def tensors(self) -> Iterator[Tensor]:
        """What is kept for the next runs, the chunk's own values among it."""
        for values in (self._inputs, self._qkv, self._patterns, self._values):
            yield from values.values()
        yield from self.run.difference.tensors()

    def residual(self) -> Float[Tensor, "1 Nr D"]:
        """The final residual at the readings, with nothing set."""
        return self._inputs[self.graph.n_receivers - 1][self._readings][None]

    def inputs_at(self, receiver: int, tokens: Int[Tensor, "n"]) -> Float[Tensor, "n D"]:
        """What a receiver reads at these tokens, with nothing set."""
        return self._inputs[receiver][tokens]

    def run_again(self, trial: Trial) -> Float[Tensor, "C Nr D"]:
        """The final residual at the readings with the trial's inputs set."""
        for step in trial.plan.steps:
            if isinstance(step, MlpStep):
                self._run_mlp(trial, step)
            else:
                self._run_heads(trial, step)
        return self._read_inputs(trial, (self.graph.n_receivers - 1,), trial.plan.readings)[0]

    # --- what changes ----------------------------------------------------------------------------------------------

    def _run_mlp(self, trial: Trial, step: MlpStep) -> None:
        x = self._read_inputs(trial, (step.receiver,), step.tokens)
        like = self._like(trial, (step.receiver,), step.tokens, x)
        output = self.components.mlp(step.layer, x[0], None if like is None else like[0])
        self._write(trial, step.sender, step.tokens, output)

    def _run_heads(self, trial: Trial, step: HeadsStep) -> None:
        """The layer's heads in two batches: those whose pattern changes, and those that only read other values."""
        for qkv, read in step.reads.items():
            self._read_heads(trial, step.layer, qkv, read)
        turned = {head for qkv in ("q", "k") if qkv in step.reads for head in step.reads[qkv].heads}
        for looks_elsewhere in (True, False):
            chosen = [pair for pair in zip(step.heads, step.senders, strict=True) if (pair[0] in turned) == looks_elsewhere]
            if chosen:
                heads, senders = [head for head, _ in chosen], [sender for _, sender in chosen]
                self._attend(trial, step, heads, senders, looks_elsewhere)

    def _read_heads(self, trial: Trial, layer: int, qkv: QKV, read: Read) -> None:
        x = self._read_inputs(trial, read.receivers, read.tokens)
        like = self._like(trial, read.receivers, read.tokens, x)
        frame = self.run.frame.at(read.tokens.flat)
        like = None if like is None else like[:, :, None]
        new = self.components.read(layer, qkv, read.heads, x[:, :, None], frame, like)[:, :, 0]
        trial.qkv |= {receiver: (read.tokens, row) for receiver, row in zip(read.receivers, new, strict=True)}

    def _attend(self, trial: Trial, step: HeadsStep, heads: list[int], senders: list[int], looks_elsewhere: bool) -> None:
        layer, positions = step.layer, step.positions
        if looks_elsewhere:
            q, k = self._full(trial, step, "q", heads)[..., positions, :], self._full(trial, step, "k", heads)
            pattern = self.components.pattern(layer, heads, q, k, self.run.frame, positions)
            trial.patterns |= {sender: (positions, row) for sender, row in zip(senders, pattern, strict=True)}
        else:
            pattern = torch.stack([self._patterns[sender][:, positions] for sender in senders])[:, None]
        z = (pattern @ self._full(trial, step, "v", heads)).flatten(2, 3)[:, :, None, step.rows]  # [h, C, 1, n, K]
        outputs = self.components.head_output(layer, heads, z, self.run.frame.at(step.tokens.flat))[:, :, 0]
        for sender, output in zip(senders, outputs, strict=True):
            self._write(trial, sender, step.tokens, output)

    def _full(self, trial: Trial, step: HeadsStep, qkv: QKV, heads: list[int]) -> Float[Tensor, "h C B T K"]:
        """These heads' queries, keys or values at all tokens: the old ones, with what was recomputed written over them."""
        receivers = [self.graph.receiver_index[f"a{step.layer}.h{head}<{qkv}>"] for head in heads]
        full = torch.stack([self._qkv[receiver] for receiver in receivers])[:, None]
        if any(receiver in trial.qkv for receiver in receivers):
            full = full.repeat(1, trial.n_rows, 1, 1)
            for row, receiver in zip(full, receivers, strict=True):
                if receiver in trial.qkv:
                    tokens, new = trial.qkv[receiver]
                    row[:, tokens.flat] = new
        return full.unflatten(2, self.reach.shape)

    def _write(self, trial: Trial, sender: int, tokens: Tokens, output: Float[Tensor, "C n D"]) -> None:
        """Remember a sender's new output, and its change among the tokens that change anywhere."""
        share = len(tokens) / self.chunk.n_tokens
        self.node_evaluations += trial.n_rows * share
        change = output - self._values[sender][tokens.flat]
        if tokens.slots is not None:
            wide = change.new_zeros(trial.n_rows, trial.plan.n_changed, change.shape[-1])
            wide[:, tokens.slots] = change
            change = wide
        trial.outputs[sender], trial.changes[sender] = (tokens, output), change

    # --- what a receiver reads ---------------------------------------------------------------------------------------

    def _read_inputs(self, trial: Trial, receivers: tuple[int, ...], tokens: Tokens) -> Float[Tensor, "h C n D"]:
        """The new inputs of receivers at the same place; receivers with equal edges and equal needs read the same."""
        rows: dict[tuple[bytes, bytes, int], Float[Tensor, "C n D"]] = {}
        for receiver in receivers:
            own = receiver if receiver in trial.set_inputs else -1
            key = (*self.reach.input_key(receiver), own)
            if key not in rows:
                rows[key] = self._new_input(trial, receiver, tokens)
            trial.inputs[receiver] = tokens, rows[key]
        if len(rows) == 1:
            return next(iter(rows.values()))[None]
        return torch.stack([trial.inputs[receiver][1] for receiver in receivers])

    def _new_input(self, trial: Trial, receiver: int, tokens: Tokens) -> Float[Tensor, "C n D"]:
        """What a receiver reads: what it was set to where it is held, else its old input and what changed before it."""
        given = trial.set_inputs.get(receiver)
        if given is not None and torch.equal(given.tokens.flat, tokens.flat):
            return given.rows
        old = self._inputs[receiver][tokens.flat]
        change = self._sum_of_changes(trial, self.mask[receiver], tokens)
        x = old.expand(trial.n_rows, -1, -1) if change is None else old + change
        if given is None:
            return x
        x = x.clone()
        if given.held is not None and change is not None:
            held = given.held[tokens.flat]
            x[:, held] = old[held]
        place = tokens.flat.new_full((len(self._inputs[receiver]),), -1)
        place[given.tokens.flat] = torch.arange(len(given.tokens), device=place.device)
        place = place[tokens.flat]
        x[:, place >= 0] = given.rows[:, place[place >= 0]]
        return x

    def _like(
        self, trial: Trial, receivers: tuple[int, ...], tokens: Tokens, x: Float[Tensor, "h C n D"]
    ) -> Float[Tensor, "h C n D"] | None:
        """Inputs whose norms are used in place of those of x: the old ones where a set input keeps its norm; None: x itself."""
        given = {row: trial.set_inputs[one] for row, one in enumerate(receivers) if one in trial.set_inputs}
        if not any(one.old_norm for one in given.values()):
            return None
        like = x.clone()
        for row, one in given.items():
            held = slice(None) if one.held is None else one.held[tokens.flat]
            like[row][:, held] = self._inputs[receivers[row]][tokens.flat][held]
        return like

    def _sum_of_changes(self, trial: Trial, kept: Bool[np.ndarray, "S"], tokens: Tokens) -> Float[Tensor, "C n D"] | None:
        """Sum of the kept senders' changes: added up one by one, or the sum of all less the cut ones if these are fewer."""
        chosen = [sender for sender in trial.changes if kept[sender]]
        if not chosen:
            return None
        cut = [sender for sender in trial.changes if not kept[sender]]
        if len(cut) + 1 < len(chosen):
            summed = _at(self._total(trial), tokens)
            for sender in cut:
                summed = summed - _at(trial.changes[sender], tokens)
            return summed
        summed = _at(trial.changes[chosen[0]], tokens)
        for sender in chosen[1:]:
            summed = summed + _at(trial.changes[sender], tokens)
        return summed

    def _total(self, trial: Trial) -> Float[Tensor, "C U D"]:
        for change in list(trial.changes.values())[trial.n_added :]:
            trial.total = change.clone() if trial.total is None else trial.total.add_(change)
        trial.n_added = len(trial.changes)
        assert trial.total is not None, "something has changed"
        return trial.total

    @property
    def _readings(self) -> Int[Tensor, "Nr"]:
        batch = self.chunk.batch
        return batch.read_example * self.reach.shape[1] + batch.read_position


def _at(change: Float[Tensor, "C U D"], tokens: Tokens) -> Float[Tensor, "C n D"]:
    return change if tokens.slots is None else change[:, tokens.slots]
