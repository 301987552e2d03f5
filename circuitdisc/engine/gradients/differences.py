"""What every sender carries when cut minus what it writes, without a buffer of senders x tokens x residual width.

An attention head's output is its pattern-weighted values z, K numbers a token, times W_O. The product is linear, so the
difference of two outputs (and the average of many) is kept before it, and the D numbers a token are rebuilt for a few
tokens at a time. A layer's heads together then take H K numbers a token, about as many as one MLP.

Only tokens that count are kept: no padding, and in causal models nothing behind an example's last reading and, under
resample ablation, nothing before its first differing token.

Shape letters: S senders, E embedding senders, B examples, T positions, n tokens that count, D residual width, H heads,
K head width, X width of what is kept (K for heads, D for all others).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.ablation import Ablation, Means
from circuitdisc.engine.folded import folded_values
from circuitdisc.engine.gradients.layers import EMBEDDING, HEADS, Place, SenderGroup, heads_apart, heads_sum
from circuitdisc.engine.gradients.segments import SegmentedRun
from circuitdisc.engine.prepared import ablating_tokens
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components
from circuitdisc.tasks.base import Example, PromptBatch, collate

MeansByPlace = dict[Place, Means]
_EMBEDDING: Place = (-1, EMBEDDING)


@dataclass
class Differences:
    """Ablated minus clean, for every sender, at the tokens that count.

    Args:
        tokens: which tokens these are, as indices into the flattened batch. [n]
        values: by place, in the order of its senders. [senders of the place, n, X]
    """

    cut: Components
    tokens: Int[Tensor, "n"]
    values: dict[Place, Float[Tensor, "s n X"]]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def rebuild(self, group: SenderGroup, tokens: slice, senders: slice = slice(None)) -> Float[Tensor, "s n D"]:
        """The differences of one place's senders (all, or some of them) at some of the tokens."""
        values = self.values[group.place][senders, tokens]
        return heads_apart(self.cut, group.place[0], values, senders) if group.place[1] == HEADS else values

    def total(self, group: SenderGroup, shape: torch.Size) -> Float[Tensor, "B T D"]:
        """The sum over one place's senders, 0 at tokens that do not count.

        Args:
            shape: B, T and D.
        """
        values = self.values[group.place]
        layer, kind = group.place
        total = heads_sum(self.cut, layer, values[:, None, None])[0, 0] if kind == HEADS else values.sum(0)
        flat = total.new_zeros(shape[0] * shape[1], shape[2])
        return flat.index_copy_(0, self.tokens, total).view(shape)


def embed_rows(cut: Components, graph: ComputationGraph, tokens: Tensor, batch: PromptBatch) -> Float[Tensor, "E B T D"]:
    return cut.embed(tokens, batch.position_ids, graph.split_embeddings)


def tokens_that_count(cut: Components, ablation: Ablation, batch: PromptBatch) -> Int[Tensor, "n"]:
    """Indices, into the flattened batch, of the tokens at which a difference can reach a reading."""
    counts = batch.is_token.clone()
    if cut.spec.causal:
        is_read = torch.zeros_like(counts)
        is_read[batch.read_example, batch.read_position] = True
        counts &= is_read.flip(1).cumsum(1).flip(1) > 0  # this token or a later one is read
        if ablation.kind == "resample" and batch.corrupted is not None:
            counts &= (batch.clean != batch.corrupted).cumsum(1) > 0
    return counts.flatten().nonzero()[:, 0]


def fit_means_by_place(
    cut: Components, graph: ComputationGraph, ablation: Ablation, examples: Sequence[Example], chunk_size: int
) -> MeansByPlace:
    """Average what every sender writes (heads: before W_O) over the examples, in one run of the model."""
    found: MeansByPlace = {}
    for first in range(0, len(examples), chunk_size):
        batch = collate(examples[first : first + chunk_size], device=cut.device)

        def add(place: Place, values: Tensor, batch: PromptBatch = batch) -> None:
            means = found.setdefault(place, Means(ablation.scope))
            rows = values[:, 0] if values.dim() == 5 else values
            means.add(rows, batch.position_ids, batch.is_token, batch.groups)

        embedded = embed_rows(cut, graph, ablating_tokens(ablation, batch), batch)
        add(_EMBEDDING, embedded)
        frame = cut.frame(batch.is_token, batch.position_ids)
        SegmentedRun(cut, graph, frame, embedded.sum(0)[None], gradients=False, uncut=True, write=add)
    return found


class Recorder:
    """Takes down what every sender of one uncut run writes, at the tokens that count."""

    def __init__(self, tokens: Int[Tensor, "n"]) -> None:
        self.tokens = tokens
        self.values: dict[Place, Float[Tensor, "s n X"]] = {}

    def __call__(self, place: Place, values: Float[Tensor, "s ... X"]) -> None:
        self.values[place] = values.reshape(values.shape[0], -1, values.shape[-1])[:, self.tokens]


class Subtracter(Recorder):
    """Takes down an ablated run and subtracts the clean one, which it uses up."""

    def __init__(self, clean: Recorder) -> None:
        super().__init__(clean.tokens)
        self._clean = clean.values

    def __call__(self, place: Place, values: Float[Tensor, "s ... X"]) -> None:
        super().__call__(place, values)
        self.values[place] -= self._clean.pop(place)


@torch.no_grad()
def differences(
    cut: Components,
    graph: ComputationGraph,
    ablation: Ablation,
    batch: PromptBatch,
    clean: Recorder,
    means: MeansByPlace | None,
) -> Differences:
    """Ablated minus clean for one batch. Under resample ablation this runs the model on the corrupted prompts.

    Args:
        clean: what the clean run wrote; used up.
    """
    if ablation.kind == "resample":
        subtract = Subtracter(clean)
        embedded = embed_rows(cut, graph, ablating_tokens(ablation, batch), batch)
        subtract(_EMBEDDING, embedded)
        frame = cut.frame(batch.is_token, batch.position_ids)
        SegmentedRun(cut, graph, frame, embedded.sum(0)[None], gradients=False, uncut=True, read=batch.reads, write=subtract)
    elif means is not None:
        subtract = Subtracter(clean)
        for place, table in means.items():
            average = table.values(batch.position_ids, batch.groups, cut.dtype)
            subtract(place, average.expand(-1, *batch.clean.shape, -1))
    else:
        found = {place: values.neg_() for place, values in clean.values.items()}
        if ablation.kind == "zero_folded":
            for layer, constant in enumerate(folded_values(cut)):
                found[layer, HEADS] += constant[:, None]
        return Differences(cut, clean.tokens, found)
    return Differences(cut, subtract.tokens, subtract.values)
