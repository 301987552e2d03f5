"""Edges cut one after the other: what the final residual would be if more edges of a receiver were cut.

An `IncrementalRemoval` starts from the run of a circuit and is asked for one receiver at a time. Its input changes by
(ablated_s - live_s) for each edge cut; what follows from that is `IncrementalRun`'s.

Several candidates are tried at once, as rows: row i has candidate i cut, and those before it that are not spared.

Shape letters: C rows, B examples, T positions, N tokens (B * T), n some of them, Nr readings, D residual width, S senders,
R receivers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.incremental_run import IncrementalRun, SetInput, Trial
from circuitdisc.engine.memory import row_bytes, storage_bytes
from circuitdisc.engine.reach import Tokens
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components


@dataclass
class _Candidates:
    """The edges that were tried last, and the row that shows each; -1 where nothing has changed by then."""

    receiver: int
    senders: list[int]
    spared: Bool[np.ndarray, "n"]
    row_of: Int[np.ndarray, "n"]
    trial: Trial | None = None


class IncrementalRemoval(IncrementalRun):
    """Edges cut one after the other from a circuit, on one chunk of examples.

    Args:
        mask: the circuit to start from.
        first: index of the first receiver that will be visited; only it and later ones are remembered. Cuts are accepted from
            the last receiver backwards, so that the senders of a receiver have not changed when it is visited.
        beside: edges outside the circuit that are tried, too: to try such an edge is to add it. None is accepted.
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
        super().__init__(components, graph, chunk, mask, first, beside)
        self._own: set[tuple[int, int]] = set()  # what was copied and may be written to: the rest is shared
        self._changed: dict[int, np.ndarray] = {}
        self._candidates: _Candidates | None = None

    def end(self) -> Float[Tensor, "1 Nr D"]:
        """The final residual at the readings, with all accepted cuts."""
        return self.residual()

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
        tried = self._candidates = _Candidates(receiver, senders, spared, np.where(seen, row, last_cut))
        if not seen.any():  # no answer sees what these cuts change
            return self.residual().expand(len(senders), -1, -1)
        plan = self.reach.plan({receiver: np.logical_or.reduce(changed)})
        assert plan is not None, "a seen change has a plan"
        tokens = plan.set_tokens[receiver]
        counted = [sender for sender, counts in zip(senders, seen, strict=True) if counts]
        cuts = torch.stack([self._flip(receiver, sender, tokens) for sender in counted])
        stays = torch.from_numpy(~spared[seen]).to(cuts)[:, None, None]
        staying = cuts * stays
        rows = (cuts + staying.cumsum(0)).sub_(staying).add_(self._inputs[receiver][tokens.flat])
        del cuts, staying
        given = SetInput(tokens, rows)
        tried.trial = Trial({receiver: given}, plan, int(seen.sum()))
        rows = torch.cat([self.run_again(tried.trial), self.residual()])  # row -1: nothing changed
        return rows[torch.from_numpy(tried.row_of).to(rows.device)]

    def row_size(self, receiver: int) -> tuple[int, int]:
        """What trying one cut of an edge into `receiver` takes at most: bytes, and tokens that change."""
        plan = self.reach.plan({receiver: self.reach.needed_in[receiver] & self.reach.may_change})
        return row_bytes(self.components, self.reach, plan), 0 if plan is None else plan.n_changed

    def held_bytes(self, accepts: bool) -> int:
        """What is held between tries at most: chunk and run, and all that accepted cuts may write anew."""
        held = storage_bytes([*self.chunk.tensors(), *self.tensors()])
        if not accepts:
            return held
        recorded = {self.graph.receivers[receiver].node.name for receiver in self._inputs}
        outputs = [value for sender, value in self._values.items() if self.graph.senders[sender].name in recorded]
        written = (*self._inputs.values(), *self._qkv.values(), *self._patterns.values(), *outputs)
        return held + sum(tensor.nbytes for tensor in written)

    def accept(self, cuts: list[int]) -> None:
        """Cut some of the candidates just tried for good: the row of the last one has all of them cut, and no other."""
        tried = self._candidates
        assert tried is not None, "nothing was tried"
        self._candidates = None
        if not cuts:
            return
        assert cuts[:-1] == np.flatnonzero(~tried.spared[: cuts[-1]]).tolist(), "no row has just these cut"
        self.mask[tried.receiver, [tried.senders[index] for index in cuts]] = False
        row, trial = int(tried.row_of[cuts[-1]]), tried.trial
        if row < 0 or trial is None:
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

    def _flip(self, receiver: int, sender: int, tokens: Tokens) -> Float[Tensor, "n D"]:
        """What cutting an edge adds to its receiver's input: ablated minus live; for an edge that is not there, the reverse."""
        change = self.run.difference[sender].reshape(self._values[sender].shape)[tokens.flat]
        return -change if self.mask[receiver, sender] else change

    def _writable(self, kind: int, values: dict[int, Tensor], key: int) -> Tensor:
        if (kind, key) not in self._own:
            values[key] = values[key].clone()
            self._own.add((kind, key))
        return values[key]
