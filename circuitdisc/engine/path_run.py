"""Path patching on one chunk of examples: what reaches some receivers from one sender alone, and what that does.

    pass 1   the clean run, with the sender's output replaced at its positions and every other head frozen; MLPs run again (or
             are frozen, too). What the receivers read at their positions is written down. With the heads frozen nothing moves
             between tokens, so that this pass is a walk along the MLPs, token by token.
    pass 2   the clean run again, with the receivers' inputs set to what was written down; all that follows runs again, which
             is `IncrementalRun`'s.

Many senders are patched at once, as rows. Norms run again, or keep the scale of the clean run on the way to and into the
receivers.

Source: Wang et al. 2022, section 3.1 and appendix B; Goldowsky-Dill et al. 2023.

Shape letters: C rows (senders), B examples, T positions, N tokens (B * T), n those at which a sender is replaced, Nr readings,
D residual width.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.incremental_run import IncrementalRun, SetInput, Trial
from circuitdisc.engine.memory import d_mlp, row_bytes, storage_bytes
from circuitdisc.models.model import Model

PASS_ONE_COPIES = 7  # the change, what an MLP reads and writes, and copies in passing
Rerun = Literal["recompute", "freeze"]


@dataclass(frozen=True)
class PathTarget:
    """Where paths end, and what happens on the way.

    Args:
        receivers: indices of the receivers.
        held: where the receivers' inputs are set. [B, T]
        replaced: where a sender's output is replaced. [B, T]
        mlps: `recompute`: MLPs between sender and receivers react; `freeze`: only the direct edges count.
        norms: `recompute`, or `freeze`: the norms of those MLPs and of the receivers keep the clean run's scale.
    """

    receivers: tuple[int, ...]
    held: Bool[Tensor, "B T"]
    replaced: Bool[Tensor, "B T"]
    mlps: Rerun = "recompute"
    norms: Rerun = "recompute"


class PathRun:
    """Paths from any sender into one set of receivers, on one chunk."""

    def __init__(self, model: Model, chunk: Chunk, target: PathTarget) -> None:
        self.components, self.graph, self.chunk, self.target = model.components, model.graph, chunk, target
        lowest = next(group for group in model.graph.groups if set(group) & set(target.receivers))
        self.run = IncrementalRun(self.components, model.graph, chunk, model.graph.edge_mask, lowest[0])
        needed = self.run.reach.needed_in
        replaced = (target.replaced & chunk.may_change).flatten().cpu().numpy()
        self._held = target.held.flatten()
        self._changed = {one: replaced & needed[one] & self._held.cpu().numpy() for one in target.receivers}
        flat = np.flatnonzero(np.logical_or.reduce(list(self._changed.values())))
        self._tokens: Int[Tensor, "n"] = torch.from_numpy(flat).to(chunk.clean.device)
        self._plan = self.run.reach.plan(self._changed, dict.fromkeys(self._changed, self._held.cpu().numpy()))
        self._clean_mlps: dict[int, tuple[Float[Tensor, "n D"], Float[Tensor, "n D"]]] = {}
        self.node_evaluations = self.run.node_evaluations

    @torch.no_grad()
    def residuals(self, senders: Sequence[int]) -> Float[Tensor, "C Nr D"]:
        """The final residual at the readings, with the paths from each of these senders (in ascending order) patched."""
        plan = self._plan
        if plan is None:  # no answer sees what is patched
            return self.run.residual().expand(len(senders), -1, -1)
        set_inputs = {}
        for receiver, change in self._pass_one(senders).items():
            tokens = plan.set_tokens[receiver]
            old = self.run.inputs_at(receiver, tokens.flat)
            rows = old + change[:, torch.searchsorted(self._tokens, tokens.flat)]
            set_inputs[receiver] = SetInput(tokens, rows, self._held, self.target.norms == "freeze")
        trial = Trial(set_inputs, plan, len(senders))
        before = self.run.node_evaluations
        final = self.run.run_again(trial)
        self.node_evaluations += self.run.node_evaluations - before
        return final

    @torch.no_grad()
    def logits(self, final: Float[Tensor, "C Nr D"], columns: Int[Tensor, "Nr W"] | None = None) -> Float[Tensor, "C Nr W"]:
        """Logits from final residuals; the final norm is frozen where `logits` is a receiver and norms are."""
        like = None
        if self.target.norms == "freeze" and self.graph.n_receivers - 1 in self.target.receivers:
            held = self.target.held[self.chunk.batch.reads]
            like = torch.where(held[:, None], self.run.residual(), final)
        return self.components.unembed(final, columns, like=like)

    def _pass_one(self, senders: Sequence[int]) -> dict[int, Float[Tensor, "C n D"]]:
        """By how much each receiver's input changes when one sender is replaced and all other heads are frozen.

        Args:
            senders: in ascending order, so that those before any place come first.
        """
        graph, chunk, target, tokens = self.graph, self.chunk, self.target, self._tokens
        rows = torch.as_tensor(senders, device=tokens.device)
        # of the residual stream, from each row's sender on
        change = (chunk.ablated[rows] - chunk.clean[rows]).flatten(1, 2)[:, tokens]
        last = max(target.receivers)
        found: dict[int, Tensor] = {}
        for group in graph.groups:
            n_before = bisect_left(senders, int(graph.n_upstream[group[0]]))  # rows whose sender comes before this place
            into = set(group) & set(target.receivers)
            if into:
                seen = change.clone()
                seen[n_before:] = 0.0
                found |= dict.fromkeys(into, seen)
            node = graph.receivers[group[0]].node
            if group[-1] >= last or target.mlps == "freeze" or node.kind != "mlp" or not n_before:
                continue
            x, clean = self._clean_mlp(node.layer, group[0])
            like = x if target.norms == "freeze" else None
            change[:n_before] += self.components.mlp(node.layer, x + change[:n_before], like) - clean
            self.node_evaluations += n_before * len(tokens) / chunk.n_tokens
        return found

    def _clean_mlp(self, layer: int, receiver: int) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n D"]]:
        """What an MLP reads and writes in the clean run at the replaced tokens; kept for the next senders."""
        if layer not in self._clean_mlps:
            n_upstream, tokens = int(self.graph.n_upstream[receiver]), self._tokens
            x = self.components.constant_before(layer, mlp=True) + self._clean_at_tokens[:n_upstream].sum(0)
            self._clean_mlps[layer] = x, self.components.mlp(layer, x)
            self.node_evaluations += len(tokens) / self.chunk.n_tokens
        return self._clean_mlps[layer]

    @cached_property
    def _clean_at_tokens(self) -> Float[Tensor, "S n D"]:
        return self.chunk.clean.flatten(1, 2)[:, self._tokens]

    # --- memory ------------------------------------------------------------------------------------------------------

    def row_size(self) -> tuple[int, int]:
        """What patching one sender takes, in the larger of the two passes: bytes, and tokens that change."""
        spec, n_tokens = self.components.spec, len(self._tokens)
        itemsize = self.components.dtype.itemsize
        first = n_tokens * (PASS_ONE_COPIES * spec.d_model + 3 * d_mlp(self.components)) * itemsize
        seen = n_tokens * spec.d_model * len({self.graph.receivers[one].node.layer for one in self.target.receivers}) * itemsize
        second = seen + row_bytes(self.components, self.run.reach, self._plan)
        return max(first, second), n_tokens if self._plan is None else self._plan.n_changed

    def held_bytes(self) -> int:
        """What is held of the clean run beside the chunk's own values."""
        n_clean = self.graph.n_senders * len(self._tokens) * self.components.spec.d_model  # of `_clean_at_tokens`, and its MLPs
        chunk = list(self.chunk.tensors())
        own = storage_bytes([*chunk, *self.run.tensors()]) - storage_bytes(chunk)
        return own + n_clean * self.components.dtype.itemsize
