"""What the engine offers to every kind of ablation (`ablation/base.py`): the reference examples and runs of the model on them.

Where values are kept differs, and with it what `run` and `carry_constants` write: `SenderSource` in `prepared.py` for runs of
circuits, `PlaceSource` in `gradients/differences.py` for attribution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch, collate


@dataclass
class Reference:
    """A model and the examples that an ablation learns from.

    Args:
        chunk_size: how many of the examples fit in memory.
        cost: a `Cost`; runs are counted there.
    """

    model: Model
    examples: Sequence[Example]
    chunk_size: int
    cost: Any

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(len(example) for example in self.examples)

    def batches(self, padding_side: str = "right") -> Iterator[PromptBatch]:
        """The examples, as many at a time as fit in memory."""
        for first in range(0, len(self.examples), self.chunk_size):
            yield collate(self.examples[first : first + self.chunk_size], padding_side, self.model.device)
