"""How each backend is run as a graph: the one place of the engine that tells backends apart.

    what                           from the weights (`Components`)         by hooks (`HookedModel`)
    the whole model                one forward pass                        one run that writes down what senders write
    a circuit                      its live nodes, from the embedding on   the whole model, receivers corrected
    edges cut one after the other  what each cut reaches                   a run of the whole model for each

The components of a `CoupledModel` are run whole, too, node by node.

A new backend is a class like these two, its name in `Runner` and a line in `runner`. What a backend can do beside this it says
itself (`models/backend.py`).

Shape letters: S senders, R receivers, B examples, T positions, N readings, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.circuit_run import CircuitRun
from circuitdisc.engine.coupled_run import coupled_run
from circuitdisc.engine.forward import logits_at
from circuitdisc.engine.full_run import FullRun, forward_run
from circuitdisc.engine.hooked_run import WholeRemoval, hooked_run
from circuitdisc.engine.incremental import IncrementalRemoval
from circuitdisc.models.components import Components
from circuitdisc.models.coupled import CoupledModel
from circuitdisc.models.hooked import HookedModel
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import PromptBatch

Mask = Bool[np.ndarray, "R S"]


@dataclass(frozen=True)
class ComponentsRunner:
    """Runs from the weights."""

    model: Model
    components: Components

    def full(self, tokens: Tensor, is_token: Tensor, position_ids: Tensor, keep_patterns: bool) -> FullRun:
        """The whole model with nothing cut; the arguments are those of `full_run`."""
        return forward_run(self.components, self.model.graph, tokens, is_token, position_ids, keep_patterns)

    def full_logits(self, batch: PromptBatch, run: FullRun) -> Float[Tensor, "N V"]:
        """The full model's logits at the readings, from its run on the clean prompts."""
        return logits_at(self.components, run.residual, batch.reads)

    def circuit(self, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> tuple[Float[Tensor, "N V"], float]:
        """Logits at the readings when a circuit runs, and the node evaluations that it took."""
        run = CircuitRun(self.components, self.model.graph, chunk, mask)
        return logits_at(self.components, run.residual, chunk.batch.reads), run.node_evaluations

    def removal(self, chunk: Chunk, mask: Mask, first: int, beside: Mask | None = None) -> IncrementalRemoval:
        """Edges cut one after the other, from a circuit; `first` is the lowest receiver that will be visited.

        Args:
            beside: edges outside it that are tried as additions.
        """
        return IncrementalRemoval(self.components, self.model.graph, chunk, mask, first, beside)


@dataclass(frozen=True)
class HookedRunner:
    """The same, each a run of the whole model with hooks."""

    model: Model
    hooked: HookedModel

    def full(self, tokens: Tensor, is_token: Tensor, position_ids: Tensor, keep_patterns: bool) -> FullRun:
        senders, residual, _ = self.hooked.run(tokens, is_token.long(), position_ids)
        return FullRun(senders, residual)

    def full_logits(self, batch: PromptBatch, run: FullRun) -> Float[Tensor, "N V"]:
        return self.model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)[batch.reads]

    def circuit(self, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> tuple[Float[Tensor, "N V"], float]:
        return hooked_run(self.hooked, self.model.graph, chunk, mask), self.model.graph.n_senders

    def removal(self, chunk: Chunk, mask: Mask, first: int, beside: Mask | None = None) -> WholeRemoval:
        run = partial(hooked_run, self.hooked, self.model.graph)
        return WholeRemoval(run, self.model.graph, chunk, mask)


@dataclass(frozen=True)
class CoupledRunner(ComponentsRunner):
    """From the weights, norms that couple heads computed anew: every circuit is a run of all nodes."""

    def circuit(self, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> tuple[Float[Tensor, "N V"], float]:
        residual = coupled_run(self.components, self.model.graph, chunk, mask)
        return self.components.unembed(residual[None])[0], self.model.graph.n_senders

    def removal(self, chunk: Chunk, mask: Mask, first: int, beside: Mask | None = None) -> WholeRemoval:  # type: ignore[override]
        run = partial(coupled_run, self.components, self.model.graph)
        return WholeRemoval(run, self.model.graph, chunk, mask)


Runner = ComponentsRunner | HookedRunner


def runner(model: Model) -> Runner:
    """The runs of a model's backend.

    Raises:
        BadSetting: nobody runs this backend.
    """
    if isinstance(model.backend, HookedModel):  # each runner needs its own backend by type
        return HookedRunner(model, model.backend)
    if isinstance(model.backend, CoupledModel):
        return CoupledRunner(model, model.backend.components)
    return ComponentsRunner(model, model.components)


@torch.no_grad()
def full_run(
    model: Model,
    tokens: Int[Tensor, "B T"],
    is_token: Bool[Tensor, "B T"],
    position_ids: Int[Tensor, "B T"],
    keep_patterns: bool = False,
) -> FullRun:
    """Run the whole model and keep what every sender writes."""
    return runner(model).full(tokens, is_token, position_ids, keep_patterns)
