"""Examples made ready for the engine (`prepared.py` makes them).

Shape letters: S senders, B examples, T positions, D residual width, H heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.engine.ranks import Share
from circuitdisc.metrics import Labels
from circuitdisc.models.frame import Frame
from circuitdisc.tasks.base import PromptBatch


@dataclass
class Chunk:
    """Some of the examples, as many as fit in memory, with all that a run of a circuit on them needs.

    Args:
        batch: the padded prompts.
        frame: masks, rotary angles and norm scales; None for a hook-based model.
        clean: what every sender writes on the clean prompts. [S, B, T, D]
        ablated: what every sender carries when cut; axes of size 1 broadcast. [S, B, T, D]
        labels: right and wrong tokens, with the full model's log-probabilities.
        may_change: False where no cut can change anything: at padding and, under resample ablation of a causal model, before
            a prompt's first differing token. [B, T]
        ablated_patterns: for `target=pattern`, by layer, what a cut head attends to. [H, B, T, T2]
        share: that the examples are of those of all ranks; None: they are all.
        weight: its tokens as a part of those of all examples that it was made ready with: what is run on it counts as so much.
    """

    batch: PromptBatch
    frame: Frame | None
    clean: Float[Tensor, "S B T D"]
    ablated: Float[Tensor, "S B T D"]
    labels: Labels
    may_change: Bool[Tensor, "B T"]
    ablated_patterns: dict[int, Float[Tensor, "H B T T2"]]
    share: Share | None = None
    weight: float = 1.0
    _ablated_sums: dict[int, Float[Tensor, "B T D"]] = field(default_factory=dict, repr=False)

    @cached_property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.batch.is_token.sum())

    @property
    def n_examples(self) -> int:
        """Examples of the chunk on all ranks."""
        return n_examples_of([self])

    def tensors(self) -> Iterator[Tensor]:
        """All that is large in it."""
        full = self.labels.full_logprobs
        yield from (self.clean, self.ablated, *self.ablated_patterns.values(), *self._ablated_sums.values())
        yield from () if full is None else (full,)

    def ablated_before(self, n_senders: int) -> Float[Tensor, "B T D"]:
        """Sum of the first senders' ablated values: what a receiver behind them reads when all its edges are cut."""
        if n_senders not in self._ablated_sums:
            self._ablated_sums[n_senders] = self.ablated[:n_senders].sum(0)
        return self._ablated_sums[n_senders]


def n_examples_of(chunks: Sequence[Chunk]) -> int:
    """Examples of these chunks, on all ranks where they are shares of the same examples."""
    share = chunks[0].share
    return sum(chunk.batch.n_examples for chunk in chunks) if share is None else share.n
