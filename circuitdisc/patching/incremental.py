"""The incremental run: cut a few more edges into one receiver, and recompute only what that changes.

An `IncrementalRemoval` starts from the run of a circuit and is asked, for one receiver at a time, what the final residual would
be if more of its edges were cut. Its input changes by (ablated_s - live_s) for each edge cut; from there only live nodes that
a changed value reaches are recomputed, and of these only the tokens that an answer can see (`reach.py`). Queries, keys,
values and patterns that did not change are reused.

Several candidates are tried at once, as rows: row i has candidate i cut, and those before it that are not spared.

Shape letters: C rows, B examples, T positions, N tokens (B * T), n some of them, U those that change anywhere, Nr readings,
h heads, P query positions, D residual width, K head width, S senders, R receivers.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.graph import QKV, ComputationGraph
from circuitdisc.models.components import Components
from circuitdisc.patching.circuit_run import CircuitRun
from circuitdisc.patching.prepared import Chunk
from circuitdisc.patching.reach import HeadsStep, MlpStep, Plan, Tokens


@dataclass
class _Trial:
    """What the tried cuts change: new inputs, q, k, v and patterns, each with the tokens it has, and senders' changes."""

    receiver: int
    senders: list[int]
    spared: Bool[np.ndarray, "n"]
    row_of: Int[np.ndarray, "n"]  # the row that shows candidate i; -1 where nothing has changed by then
    plan: Plan | None = None
    n_rows: int = 0
    inputs: dict[int, tuple[Tokens, Float[Tensor, "C n D"]]] = field(default_factory=dict)
    qkv: dict[int, tuple[Tokens, Float[Tensor, "C n K"]]] = field(default_factory=dict)
    patterns: dict[int, tuple[Int[Tensor, "P"], Float[Tensor, "C B P T"]]] = field(default_factory=dict)
    changes: dict[int, Float[Tensor, "C U D"]] = field(default_factory=dict)
    outputs: dict[int, tuple[Tokens, Float[Tensor, "C n D"]]] = field(default_factory=dict)
    total: Float[Tensor, "C U D"] | None = None  # sum of the first `n_added` changes
    n_added: int = 0


class IncrementalRemoval:
    """Edges cut one after the other from a circuit, on one chunk of examples.

    Args:
        mask: the circuit to start from.
        first: index of the first receiver that will be visited; only it and later ones are remembered. Cuts are accepted from
            the last receiver backwards, so that the senders of a receiver have not changed when it is visited.
    """

    def __init__(
        self, components: Components, graph: ComputationGraph, chunk: Chunk, mask: Bool[np.ndarray, "R S"], first: int
    ) -> None:
        self.components, self.graph, self.chunk = components, graph, chunk
        self.run = CircuitRun(components, graph, chunk, mask, record_from=first)
        self.reach = self.run.reach
        self.mask = self.reach.mask  # one mask for both; what tokens are needed can only shrink as edges go
        self.node_evaluations = self.run.node_evaluations
        state, n_tokens = self.run.state, chunk.batch.clean.numel()
        self._inputs = {receiver: x.reshape(n_tokens, -1) for receiver, x in state.inputs.items()}
        self._qkv = {receiver: x.reshape(n_tokens, -1) for receiver, x in state.qkv.items()}
        self._patterns = {sender: pattern[0] for sender, pattern in state.patterns.items()}
        self._values = {sender: value.reshape(n_tokens, -1) for sender, value in state.values.items()}
        self._own: set[tuple[int, int]] = set()  # what was copied and may be written to: the rest is shared
        self._changed: dict[int, np.ndarray] = {}
        self._trial: _Trial | None = None

    def residual(self) -> Float[Tensor, "1 Nr D"]:
        """The final residual at the readings, with all accepted cuts."""
        return self._inputs[self.graph.n_receivers - 1][self._readings][None]

    @torch.no_grad()
    def try_cuts(self, receiver: int, senders: list[int], spared: Bool[np.ndarray, "C"]) -> Float[Tensor, "C Nr D"]:
        """The final residual at the readings when edges into `receiver` are cut.

        Args:
            spared: False for the edges that are cut in the rows behind their own, too.
        """
        changed = [self._changed_by(sender) & self.reach.needed_in[receiver] for sender in senders]
        seen = np.array([tokens.any() for tokens in changed])
        row = np.cumsum(seen) - 1
        last_cut = np.maximum.accumulate(np.where(seen & ~spared, row, -1))
        trial = self._trial = _Trial(receiver, senders, spared, np.where(seen, row, last_cut))
        if not seen.any():  # no answer sees what these cuts change
            return self.residual().expand(len(senders), -1, -1)
        plan = trial.plan = self.reach.plan(receiver, np.logical_or.reduce(changed))
        assert plan is not None, "a seen change has a plan"
        trial.n_rows = int(seen.sum())
        cuts = torch.stack([self._cut(sender, plan.cut) for sender, counts in zip(senders, seen, strict=True) if counts])
        stays = torch.from_numpy(~spared[seen]).to(cuts)[:, None, None]
        cuts = cuts + (cuts * stays).cumsum(0) - cuts * stays
        trial.inputs[receiver] = plan.cut, self._inputs[receiver][plan.cut.flat] + cuts
        for step in plan.steps:
            if isinstance(step, MlpStep):
                self._run_mlp(trial, step)
            else:
                self._run_heads(trial, step)
        final = self._final(trial, plan)
        rows = torch.cat([final, self.residual()])  # row -1: nothing changed
        return rows[torch.from_numpy(trial.row_of).to(rows.device)]

    def accept(self, cuts: list[int]) -> None:
        """Cut some of the candidates just tried for good: the row of the last one has all of them cut, and no other."""
        trial = self._trial
        assert trial is not None, "nothing was tried"
        self._trial = None
        if not cuts:
            return
        assert cuts[:-1] == np.flatnonzero(~trial.spared[: cuts[-1]]).tolist(), "no row has just these cut"
        self.mask[trial.receiver, [trial.senders[index] for index in cuts]] = False
        row = int(trial.row_of[cuts[-1]])
        if row < 0:
            return
        for receiver, (tokens, new) in trial.inputs.items():
            self._writable(0, self._inputs, receiver)[tokens.flat] = new[row]
        for receiver, (tokens, new) in trial.qkv.items():
            self._writable(1, self._qkv, receiver)[tokens.flat] = new[row]
        for sender, (positions, new) in trial.patterns.items():
            self._writable(2, self._patterns, sender)[:, positions] = new[row]
        for sender, (tokens, new) in trial.outputs.items():
            self._writable(3, self._values, sender)[tokens.flat] = new[row]

    def drop(self, receivers: list[int]) -> None:
        """Cut every edge into these receivers, whose node no longer reaches `logits`: nothing that is read changes."""
        self.mask[receivers] = False

    # --- the cut receiver --------------------------------------------------------------------------------------------

    def _changed_by(self, sender: int) -> Bool[np.ndarray, "N"]:
        """Tokens at which a sender's ablated value differs from its live one."""
        if sender not in self._changed:
            differs = self.run.difference[sender].ne(0).any(-1) & self.chunk.may_change
            self._changed[sender] = differs.reshape(-1).cpu().numpy()
        return self._changed[sender]

    def _cut(self, sender: int, tokens: Tokens) -> Float[Tensor, "n D"]:
        """What cutting an edge from `sender` adds to its receiver's input: ablated minus live."""
        return -self.run.difference[sender].reshape(self._values[sender].shape)[tokens.flat]

    # --- what a cut changes ------------------------------------------------------------------------------------------

    def _run_mlp(self, trial: _Trial, step: MlpStep) -> None:
        x = self._read_inputs(trial, (step.receiver,), step.tokens)[0]
        self._write(trial, step.sender, step.tokens, self.components.mlp(step.layer, x))

    def _run_heads(self, trial: _Trial, step: HeadsStep) -> None:
        """The layer's heads in two batches: those whose pattern changes, and those that only read other values."""
        for qkv, read in step.reads.items():
            x = self._read_inputs(trial, read.receivers, read.tokens)[:, :, None]
            new = self.components.read(step.layer, qkv, read.heads, x, self.run.frame.at(read.tokens.flat))[:, :, 0]
            trial.qkv |= {receiver: (read.tokens, row) for receiver, row in zip(read.receivers, new, strict=True)}
        turned = {head for qkv in ("q", "k") if qkv in step.reads for head in step.reads[qkv].heads}
        for looks_elsewhere in (True, False):
            chosen = [pair for pair in zip(step.heads, step.senders, strict=True) if (pair[0] in turned) == looks_elsewhere]
            if chosen:
                heads, senders = [head for head, _ in chosen], [sender for _, sender in chosen]
                self._attend(trial, step, heads, senders, looks_elsewhere)

    def _attend(self, trial: _Trial, step: HeadsStep, heads: list[int], senders: list[int], looks_elsewhere: bool) -> None:
        layer, positions = step.layer, step.positions
        if looks_elsewhere:
            q, k = self._full(trial, step, "q", heads)[..., positions, :], self._full(trial, step, "k", heads)
            pattern = self.components.pattern(layer, q, k, self.run.frame, positions)
            trial.patterns |= {sender: (positions, row) for sender, row in zip(senders, pattern, strict=True)}
        else:
            pattern = torch.stack([self._patterns[sender][:, positions] for sender in senders])[:, None]
        z = (pattern @ self._full(trial, step, "v", heads)).flatten(2, 3)[:, :, None, step.rows]  # [h, C, 1, n, K]
        outputs = self.components.head_output(layer, heads, z, self.run.frame.at(step.tokens.flat))[:, :, 0]
        for sender, output in zip(senders, outputs, strict=True):
            self._write(trial, sender, step.tokens, output)

    def _full(self, trial: _Trial, step: HeadsStep, qkv: QKV, heads: list[int]) -> Float[Tensor, "h C B T K"]:
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

    def _write(self, trial: _Trial, sender: int, tokens: Tokens, output: Float[Tensor, "C n D"]) -> None:
        """Remember a sender's new output, and its change among the tokens that change anywhere."""
        assert trial.plan is not None, "a trial that runs has a plan"
        share = len(tokens) / self.chunk.n_tokens
        self.node_evaluations += trial.n_rows * share
        change = output - self._values[sender][tokens.flat]
        if tokens.slots is not None:
            wide = change.new_zeros(trial.n_rows, trial.plan.n_changed, change.shape[-1])
            wide[:, tokens.slots] = change
            change = wide
        trial.outputs[sender], trial.changes[sender] = (tokens, output), change

    # --- what a receiver reads ---------------------------------------------------------------------------------------

    def _read_inputs(self, trial: _Trial, receivers: tuple[int, ...], tokens: Tokens) -> Float[Tensor, "h C n D"]:
        """The new inputs of receivers at the same place; receivers with equal edges and equal needs read the same."""
        if trial.receiver in receivers:
            x = trial.inputs[trial.receiver][1]
            return x[None]
        rows: dict[bytes, Float[Tensor, "C n D"]] = {}
        for receiver in receivers:
            key = self.mask[receiver].tobytes() + self.reach.needed_in[receiver].tobytes()
            if key not in rows:
                old = self._inputs[receiver][tokens.flat]
                change = self._sum_of_changes(trial, self.mask[receiver], tokens)
                rows[key] = old.expand(trial.n_rows, -1, -1) if change is None else old + change
            trial.inputs[receiver] = tokens, rows[key]
        if len(rows) == 1:
            return next(iter(rows.values()))[None]
        return torch.stack([trial.inputs[receiver][1] for receiver in receivers])

    def _sum_of_changes(self, trial: _Trial, kept: Bool[np.ndarray, "S"], tokens: Tokens) -> Float[Tensor, "C n D"] | None:
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

    def _total(self, trial: _Trial) -> Float[Tensor, "C U D"]:
        for change in list(trial.changes.values())[trial.n_added :]:
            trial.total = change.clone() if trial.total is None else trial.total.add_(change)
        trial.n_added = len(trial.changes)
        assert trial.total is not None, "something has changed"
        return trial.total

    def _final(self, trial: _Trial, plan: Plan) -> Float[Tensor, "C Nr D"]:
        """The new final residual at the readings."""
        final = self.graph.n_receivers - 1
        if trial.receiver == final:
            # the cut receiver's tokens are among the readings, which may come in another order and more often
            tokens, x = trial.inputs[final]
            full = self._inputs[final].expand(trial.n_rows, -1, -1).clone()
            full[:, tokens.flat] = x
            return full[:, self._readings]
        return self._read_inputs(trial, (final,), plan.readings)[0]

    @property
    def _readings(self) -> Int[Tensor, "Nr"]:
        batch = self.chunk.batch
        return batch.read_example * self.reach.shape[1] + batch.read_position

    def _writable(self, kind: int, values: dict[int, Tensor], key: int) -> Tensor:
        if (kind, key) not in self._own:
            values[key] = values[key].clone()
            self._own.add((kind, key))
        return values[key]


def _at(change: Float[Tensor, "C U D"], tokens: Tokens) -> Float[Tensor, "C n D"]:
    return change if tokens.slots is None else change[:, tokens.slots]
