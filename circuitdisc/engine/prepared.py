"""Examples made ready for patching: what every sender writes on the clean prompt, and what it carries when cut.

Shape letters: S senders, B examples, T positions, D residual width, N readings, V vocabulary, H heads, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from circuitdisc.ablation import Ablation, Means
from circuitdisc.engine.backends import full_run, runner
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.folded import folded_senders
from circuitdisc.engine.full_run import FullRun
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.metrics import log_probabilities
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch, collate


class AblationTable(NamedTuple):
    """The averages that `mean` ablation uses: of senders and, for `target=pattern`, of each layer's patterns."""

    senders: Means
    patterns: dict[int, Means]


def fit_means(model: Model, ablation: Ablation, examples: Sequence[Example], chunk_size: int) -> AblationTable:
    """Average what every sender writes (and attends to) over the examples."""
    table = AblationTable(Means(ablation.scope), {})
    wants_pattern = ablation.target == "pattern"
    if wants_pattern and ablation.scope == "dataset":
        raise BadSetting("an attention pattern has no average over positions: use ablation.scope=group or position")
    longest = max(len(example) for example in examples)
    for batch in _batches(model, examples, chunk_size):
        tokens = ablating_tokens(ablation, batch)
        run = full_run(model, tokens, batch.is_token, batch.position_ids, wants_pattern)
        table.senders.add(run.senders, batch.position_ids, batch.is_token, batch.groups)
        for layer, pattern in run.patterns.items():
            means = table.patterns.setdefault(layer, Means(ablation.scope))
            wide = functional.pad(pattern, (0, longest - pattern.shape[-1]))  # as wide in every chunk
            means.add(wide, batch.position_ids, batch.is_token, batch.groups)
    return table


def prepare(
    model: Model,
    ablation: Ablation,
    examples: Sequence[Example],
    means: AblationTable | None,
    chunk_size: int,
    padding_side: str = "right",
) -> Iterator[Chunk]:
    """Run the model on clean (and, where needed, corrupted) prompts, chunk by chunk."""
    for batch in _batches(model, examples, chunk_size, padding_side):
        clean = full_run(model, batch.clean, batch.is_token, batch.position_ids)
        other = None
        if ablation.kind == "resample":
            tokens = ablating_tokens(ablation, batch)
            other = full_run(model, tokens, batch.is_token, batch.position_ids, ablation.target == "pattern")
        ablated = _ablated_senders(model, clean, other, ablation, means, batch)
        labels = replace(batch.labels, full_logprobs=log_probabilities(runner(model).full_logits(batch, clean)))
        patterns = _ablated_patterns(other, ablation, means, batch, clean)
        may_change = _may_change(model, ablation, batch)
        yield Chunk(batch, clean.frame, clean.senders, ablated, labels, may_change, patterns)


def _batches(model: Model, examples: Sequence[Example], chunk_size: int, padding_side: str = "right") -> Iterator[PromptBatch]:
    for first in range(0, len(examples), chunk_size):
        yield collate(examples[first : first + chunk_size], padding_side, model.device)


def ablating_tokens(ablation: Ablation, batch: PromptBatch) -> Int[Tensor, "B T"]:
    """The prompts whose run, or whose average, cut edges carry.

    Raises:
        BadTask: corrupted prompts are needed, and the task has none.
    """
    if not ablation.needs_corrupted:
        return batch.clean
    if batch.corrupted is None:
        raise BadTask(
            f"ablation '{ablation.label}' needs a corrupted prompt for every example; this task has none. "
            "Add them, or use ablation=mean or ablation=zero"
        )
    return batch.corrupted


def _ablated_senders(
    model: Model, clean: FullRun, other: FullRun | None, ablation: Ablation, means: AblationTable | None, batch: PromptBatch
) -> Float[Tensor, "S B T D"]:
    if other is not None:
        return other.senders
    if means is not None and ablation.kind == "mean":
        return means.senders.values(batch.position_ids, batch.groups, clean.senders.dtype)
    if ablation.kind == "zero_folded":
        return folded_senders(model)
    return clean.senders.new_zeros(clean.senders.shape[0], 1, 1, clean.senders.shape[-1])


def _ablated_patterns(
    other: FullRun | None, ablation: Ablation, means: AblationTable | None, batch: PromptBatch, clean: FullRun
) -> dict[int, Tensor]:
    if ablation.target == "output":
        return {}
    if other is not None:
        return other.patterns
    if means is None or ablation.kind == "zero":
        return {}
    length = batch.clean.shape[1]
    found = {}
    for layer, table in means.patterns.items():
        pattern = table.values(batch.position_ids, batch.groups, clean.senders.dtype)
        if pattern.shape[-1] < length:
            raise BadTask(f"a prompt of {length} tokens is longer than any that the attention patterns were averaged over")
        # column j of the average is the key's position in its own prompt
        keys = batch.position_ids[None, :, None, :].expand(pattern.shape[0], -1, length, -1)
        found[layer] = pattern.expand(-1, batch.n_examples, -1, -1).gather(-1, keys) * batch.is_token[None, :, None, :]
    return found


def _may_change(model: Model, ablation: Ablation, batch: PromptBatch) -> Bool[Tensor, "B T"]:
    """Where a cut can change anything: see `Chunk.may_change`."""
    if ablation.kind != "resample" or batch.corrupted is None or not model.backend.causal:
        return batch.is_token
    return ((batch.clean != batch.corrupted) & batch.is_token).cumsum(1).gt(0) & batch.is_token
