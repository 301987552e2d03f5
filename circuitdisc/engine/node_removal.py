"""Nodes taken out of a circuit: what the final residual would be if whoever reads them read their ablated values.

Cutting all edges of a node sets what it writes to its ablated value for all that read it live. Nothing before it changes, and
what follows is `IncrementalRun`'s: the run of the circuit is made once, and each set of nodes recomputes only what it reaches.
Several sets are tried at once, as rows; a node that one row takes out and another does not is set in the first and computed in
the second.

Shape letters: C rows, N tokens, n some of them, U those that change anywhere, Nr readings, D residual width, R receivers,
S senders.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.circuit import live_nodes
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.incremental_run import IncrementalRun, Trial
from circuitdisc.engine.reach import HeadsStep, Tokens
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components


def bytes_of_run(components: Components, graph: ComputationGraph, mask: Bool[np.ndarray, "R S"], n_tokens: int) -> int:
    """What an `IncrementalNodeRemoval` holds: values and differences of senders, inputs (equal ones once), q, k and v."""
    senders, receivers = live_nodes(graph, mask)
    inputs = {(graph.n_upstream[one], mask[one].tobytes()) for one in np.flatnonzero(receivers)}
    wide = 2 * int(senders.sum()) + len(inputs)
    narrow = int(receivers.sum())
    return n_tokens * components.dtype.itemsize * (wide * components.spec.d_model + narrow * components.spec.d_head)


@dataclass
class _NodeTrial(Trial):
    """Senders that are taken out, and those of them that have not been reached yet.

    Args:
        gone: sender -> the rows that take it out. [n]
        set_changes: sender -> ablated minus live in these rows, 0 in the others. [C, U, D]
        waiting: senders whose change no later node may see yet, in order.
    """

    gone: dict[int, Int[Tensor, "n"]] = field(default_factory=dict)
    set_changes: dict[int, Float[Tensor, "C U D"]] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)


class IncrementalNodeRemoval(IncrementalRun):
    """Sets of nodes taken out of a circuit, on one chunk of examples. The circuit itself stays as it is.

    Args:
        mask: the circuit.
    """

    def __init__(self, components: Components, graph: ComputationGraph, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> None:
        super().__init__(components, graph, chunk, mask, first=0)
        self._tokens: dict[int, Bool[np.ndarray, "N"]] = {}

    @torch.no_grad()
    def without(self, sets: Sequence[Collection[int]]) -> Float[Tensor, "C Nr D"]:
        """The final residual at the readings with these senders taken out, one set a row."""
        changed = {sender: self._changed_by(sender) for sender in sorted(set().union(*sets))}
        changed = {sender: tokens for sender, tokens in changed.items() if tokens.any()}
        if not changed:  # no answer sees any of them
            return self.residual().expand(len(sets), -1, -1)
        spent = {sender for sender in changed if all(sender in one for one in sets)}
        plan = self.reach.plan_outputs(changed, spent)
        trial = _NodeTrial({}, plan, len(sets))
        for sender, tokens in plan.set_outputs.items():
            rows = [row for row, one in enumerate(sets) if sender in one]
            trial.gone[sender] = torch.tensor(rows, device=self.chunk.clean.device)
            trial.set_changes[sender] = self._set_change(trial, sender, tokens)
        trial.waiting = list(plan.set_outputs)
        for step in plan.steps:
            first = f"a{step.layer}.h0" if isinstance(step, HeadsStep) else f"m{step.layer}"
            self._pass_on(trial, self.graph.sender_index[first])
            if isinstance(step, HeadsStep):
                self._run_heads(trial, step)
            else:
                self._run_mlp(trial, step)
        self._pass_on(trial, self.graph.n_senders)
        return self._read_inputs(trial, (self.graph.n_receivers - 1,), plan.readings)[0]

    def _changed_by(self, sender: int) -> Bool[np.ndarray, "N"]:
        """Tokens at which a sender is needed, and its ablated value is another than its live one."""
        if sender not in self._tokens:
            if sender in self.run.difference:
                differs = (self.run.difference[sender].ne(0).any(-1) & self.chunk.may_change).reshape(-1).cpu().numpy()
                self._tokens[sender] = differs & self.reach.needed_out[sender]
            else:
                self._tokens[sender] = np.zeros(self.reach.needed_out.shape[1], dtype=bool)  # nothing reads it
        return self._tokens[sender]

    def _set_change(self, trial: _NodeTrial, sender: int, tokens: Tokens) -> Float[Tensor, "C U D"]:
        difference = self.run.difference[sender].flatten(0, 1)[tokens.flat]
        change = difference.new_zeros(trial.n_rows, trial.plan.n_changed, difference.shape[-1])
        for row in trial.gone[sender].tolist():
            change[row, slice(None) if tokens.slots is None else tokens.slots] = -difference
        return change

    def _pass_on(self, trial: _NodeTrial, first: int) -> None:
        """Let what was set before this sender be read by whatever comes behind."""
        while trial.waiting and trial.waiting[0] < first:
            sender = trial.waiting.pop(0)
            trial.changes[sender] = trial.set_changes[sender]

    def _write(self, trial: Trial, sender: int, tokens: Tokens, output: Float[Tensor, "C n D"]) -> None:
        super()._write(trial, sender, tokens, output)
        if isinstance(trial, _NodeTrial) and sender in trial.gone:
            rows = trial.gone[sender]
            trial.changes[sender][rows] = trial.set_changes[sender][rows]
            trial.waiting.remove(sender)
