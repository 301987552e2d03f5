"""What every sender carries when cut minus what it writes, without a buffer of senders x tokens x residual width.

An attention head's output is its pattern-weighted values z, K numbers a token, times W_O. The product is linear, so the
difference of two outputs (and the average of many) is kept before it, and the D numbers a token are rebuilt for a few
tokens at a time. A layer's heads together then take H K numbers a token, about as many as one MLP.

Only tokens that count are kept: no padding, and in causal models nothing behind an example's last reading and, under
resample ablation, nothing before its first differing token.

Shape letters: S senders, E embedding senders, B examples, T positions, n tokens that count, D residual width, H heads,
K head width, X width of what is kept (K for heads, D for all others).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.ablation.base import Constants, Write
from circuitdisc.engine.gradients.layers import EMBEDDING, HEADS, MLP, Place, SenderGroup, heads_apart, heads_sum, sender_groups
from circuitdisc.engine.gradients.segments import SegmentedRun
from circuitdisc.engine.source import Reference
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components
from circuitdisc.models.model import fast_components
from circuitdisc.tasks.base import PromptBatch

_EMBEDDING: Place = (-1, EMBEDDING)


@dataclass
class Differences:
    """Ablated minus clean, for every sender, at the tokens that count.

    Args:
        tokens: which tokens these are, as indices into the flattened batch. [n]
        values: by place, in the order of its senders. [senders of the place, n, X]
    """

    components: Components
    tokens: Int[Tensor, "n"]
    values: dict[Place, Float[Tensor, "s n X"]]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def rebuild(self, group: SenderGroup, tokens: slice, senders: slice = slice(None)) -> Float[Tensor, "s n D"]:
        """The differences of one place's senders (all, or some of them) at some of the tokens."""
        values = self.values[group.place][senders, tokens]
        return heads_apart(self.components, group.place[0], values, senders) if group.place[1] == HEADS else values

    def total(self, group: SenderGroup, shape: torch.Size) -> Float[Tensor, "B T D"]:
        """The sum over one place's senders, 0 at tokens that do not count.

        Args:
            shape: B, T and D.
        """
        values = self.values[group.place]
        layer, kind = group.place
        total = heads_sum(self.components, layer, values[:, None, None])[0, 0] if kind == HEADS else values.sum(0)
        flat = total.new_zeros(shape[0] * shape[1], shape[2])
        return flat.index_copy_(0, self.tokens, total).view(shape)


def embed_rows(components: Components, graph: ComputationGraph, tokens: Tensor, batch: PromptBatch) -> Float[Tensor, "E B T D"]:
    return components.embed(tokens, batch.position_ids, graph.split_embeddings)


def tokens_that_count(components: Components, ablation: Ablation, batch: PromptBatch) -> Int[Tensor, "n"]:
    """Indices, into the flattened batch, of the tokens at which a difference can reach a reading."""
    counts = batch.is_token.clone()
    if components.spec.causal:
        is_read = torch.zeros_like(counts)
        is_read[batch.read_example, batch.read_position] = True
        counts &= is_read.flip(1).cumsum(1).flip(1) > 0  # this token or a later one is read
        differs = ablation.method.differs(batch)
        if differs is not None:
            counts &= differs.cumsum(1) > 0
    return counts.flatten().nonzero()[:, 0]


@dataclass
class PlaceSource(Reference):
    """Runs that write place by place, heads before W_O, so that no more than one place is held at a time.

    Args:
        at_readings: the last MLP runs at the readings alone.
    """

    at_readings: bool = False

    def run(self, tokens: Int[Tensor, "B T"], batch: PromptBatch, write: Write) -> None:
        components, graph = fast_components(self.model, "attribution"), self.model.graph
        embedded = embed_rows(components, graph, tokens, batch)
        write(_EMBEDDING, embedded)
        SegmentedRun(
            components,
            graph,
            components.frame(batch.is_token, batch.position_ids),
            embedded.sum(0)[None],
            gradients=False,
            uncut=True,
            read=batch.reads if self.at_readings else None,
            write=lambda place, values: write(place, values[:, 0]),  # of the one row
        )

    def carry_constants(self, constants: Constants, write: Write) -> None:
        spec = fast_components(self.model, "attribution").spec
        for place, first, stop in sender_groups(self.model.graph):
            layer, kind = place
            width = spec.d_head if kind == HEADS else spec.d_model
            values = torch.zeros(stop - first, width, dtype=self.dtype, device=self.model.device)
            given = {EMBEDDING: constants.embedding, HEADS: constants.z.get(layer), MLP: constants.mlp.get(layer)}[kind]
            write(place, (values if given is None else given.expand_as(values))[:, None, None])


class Recorder:
    """Takes down what every sender of one uncut run writes, at the tokens that count."""

    def __init__(self, tokens: Int[Tensor, "n"]) -> None:
        self.tokens = tokens
        self.values: dict[Place, Float[Tensor, "s n X"]] = {}

    def __call__(self, place: Place, values: Float[Tensor, "s ... X"]) -> None:
        self.values[place] = values.reshape(values.shape[0], -1, values.shape[-1])[:, self.tokens]


class Subtracter(Recorder):
    """Takes down what senders carry when cut and subtracts the clean run, which it uses up.

    Args:
        clean: the clean run.
        shape: B and T.
    """

    def __init__(self, clean: Recorder, shape: torch.Size) -> None:
        super().__init__(clean.tokens)
        self._clean, self._shape = clean.values, shape

    def __call__(self, place: Place, values: Float[Tensor, "s ... X"]) -> None:
        if values.shape[1:-1].numel() == 1:  # the same at every token: no copy for each
            self.values[place] = self._clean.pop(place).neg_().add_(values[:, 0])
            return
        super().__call__(place, values.expand(-1, *self._shape, -1))
        self.values[place] -= self._clean.pop(place)


@torch.no_grad()
def differences(source: PlaceSource, ablation: Ablation, batch: PromptBatch, clean: Recorder, fitted: Any) -> Differences:
    """Ablated minus clean for one batch. Under resample ablation this runs the model on the corrupted prompts.

    Args:
        clean: what the clean run wrote; used up.
        fitted: what the ablation learnt.
    """
    subtract = Subtracter(clean, batch.clean.shape)
    ablation.method.carry(fitted, replace(source, at_readings=True), batch, subtract)
    return Differences(fast_components(source.model, "attribution"), subtract.tokens, subtract.values)
