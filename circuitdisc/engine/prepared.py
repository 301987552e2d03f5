"""Examples made ready for patching: what every sender writes on the clean prompt, and what it carries when cut.

Shape letters: S senders, B examples, T positions, D residual width, N readings, V vocabulary, H heads, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.ablation.base import Constants, Pattern, Site, Write
from circuitdisc.engine.backends import full_run, runner
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.gradients.layers import heads_apart
from circuitdisc.engine.source import Reference
from circuitdisc.metrics import log_probabilities
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch

SENDERS = "senders"
"""The site of all senders."""


@dataclass
class SenderSource(Reference):
    """Runs that keep what all senders write in one tensor [S, B, T, D].

    Args:
        patterns: attention patterns are kept, too.
    """

    patterns: bool = False

    def run(self, tokens: Int[Tensor, "B T"], batch: PromptBatch, write: Write) -> None:
        run = full_run(self.model, tokens, batch.is_token, batch.position_ids, self.patterns)
        write(SENDERS, run.senders)
        for layer, pattern in run.patterns.items():
            write(Pattern(layer), pattern)

    @torch.no_grad()
    def carry_constants(self, constants: Constants, write: Write) -> None:
        graph = self.model.graph
        assert graph.d_model is not None, "loaded models know their width"
        carried = torch.zeros(graph.n_senders, 1, 1, graph.d_model, dtype=self.dtype, device=self.model.device)
        if constants.embedding is not None:
            carried[: len(constants.embedding), 0, 0] = constants.embedding
        for layer, z in constants.z.items():
            first = graph.sender_index[f"a{layer}.h0"]
            outputs = heads_apart(self.model.components, layer, z[:, None], slice(None))
            carried[first : first + graph.n_heads, 0] = outputs
        for layer, out in constants.mlp.items():
            carried[graph.sender_index[f"m{layer}"], 0, 0] = out
        write(SENDERS, carried)


def fit_ablation(model: Model, ablation: Ablation, examples: Sequence[Example], chunk_size: int, cost: Any) -> Any:
    """What the ablation learns of the examples; None if it learns nothing."""
    return ablation.method.fit(SenderSource(model, examples, chunk_size, cost, ablation.target == "pattern"))


def prepare(
    model: Model,
    ablation: Ablation,
    examples: Sequence[Example],
    fitted: Any,
    chunk_size: int,
    padding_side: str = "right",
) -> Iterator[Chunk]:
    """Run the model on clean (and, where needed, corrupted) prompts, chunk by chunk.

    Args:
        fitted: what `fit_ablation` gave.
    """
    source = SenderSource(model, examples, chunk_size, None, ablation.target == "pattern")
    for batch in source.batches(padding_side):
        clean = full_run(model, batch.clean, batch.is_token, batch.position_ids)
        carried: dict[Site, Tensor] = {}
        ablation.method.carry(fitted, source, batch, carried.__setitem__)
        labels = replace(batch.labels, full_logprobs=log_probabilities(runner(model).full_logits(batch, clean)))
        ablated, may_change = carried.pop(SENDERS), _may_change(model, ablation, batch)
        patterns = {layer: carried[Pattern(layer)] for layer in range(model.graph.n_layers) if Pattern(layer) in carried}
        yield Chunk(batch, clean.frame, clean.senders, ablated, labels, may_change, patterns)


def _may_change(model: Model, ablation: Ablation, batch: PromptBatch) -> Bool[Tensor, "B T"]:
    """Where a cut can change anything: see `Chunk.may_change`."""
    differs = ablation.method.differs(batch) if model.backend.causal else None
    return batch.is_token if differs is None else (differs & batch.is_token).cumsum(1).gt(0) & batch.is_token
