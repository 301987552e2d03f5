"""`resample`: a cut edge carries its sender's value on the corrupted prompt.

Shape letters: B examples, T positions.
"""

from typing import Any

from jaxtyping import Bool
from torch import Tensor

from circuitdisc.ablation.base import AblationKind, Source, Write
from circuitdisc.tasks.base import PromptBatch


class Resample(AblationKind):
    """The sender's value on the corrupted prompt."""

    runs_per_example = 1
    empty_is_corrupted = True

    @property
    def needs_corrupted(self) -> bool:
        return True

    def differs(self, batch: PromptBatch) -> Bool[Tensor, "B T"] | None:
        return None if batch.corrupted is None else batch.clean != batch.corrupted

    def carry(self, fitted: Any, source: Source, batch: PromptBatch, write: Write) -> None:
        source.run(self.tokens(batch), batch, write)
