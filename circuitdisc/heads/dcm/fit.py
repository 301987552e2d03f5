"""How the masks of `dcm` are trained.

Shape letters: C components, N readings, W columns of the unembedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.checks import BATCH, EPOCHS, RATE, SHARE, Real, Whole
from circuitdisc.engine.changed_heads import Ready
from circuitdisc.errors import BadSetting
from circuitdisc.heads.dcm.parts import Parts
from circuitdisc.metrics import Metric, model_output
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, Option

PENALTIES = (0.01, 0.1, 1.0)
TARGET_LOGIT = Metric("target_logit", model_output, "answers", False, "logit of the target")


class MaskFitting(Drawing, total=False):
    """How masks are trained."""

    penalties: Annotated[
        float | Sequence[float],
        Option(PENALTIES, "price of a mask of 1, in units of the target's logit; one is chosen.", Real(0, 1e6, many=True)),
    ]
    seeds: Annotated[
        int | Sequence[int],
        Option((0,), "of the order of mini-batches; one is chosen.", Whole(0, 2**32 - 1, many=True)),
    ]
    epochs: Annotated[int, Option(2, "passes over the train split.", EPOCHS)]
    learning_rate: Annotated[float, Option(0.1, "of Adam.", RATE)]
    start: Annotated[float, Option(0.5, "value of every mask in the beginning.", SHARE)]
    batch: Annotated[int, Option(10, "examples in a mini-batch.", BATCH)]


@dataclass(frozen=True, kw_only=True)
class MaskFit:
    """How masks are trained, checked; see `MaskFitting`."""

    penalties: tuple[float, ...] = PENALTIES
    seeds: tuple[int, ...] = (0,)
    epochs: int = 2
    learning_rate: float = 0.1
    start: float = 0.5
    batch: int = 10

    def to_dict(self) -> dict[str, Any]:
        """What two calls must share for the masks of one to serve the other."""
        return {name: getattr(self, name) for name in ("epochs", "learning_rate", "start", "batch")}


def train_mask(
    model: Model, parts: Parts, batches: Sequence[Sequence[Ready]], fit: MaskFit, penalty: float, seed: int
) -> Float[Tensor, "C"]:
    """Train one mask; returns its values before rounding.

    Raises:
        BadSetting: the loss stops being finite.
    """
    dtype = torch.promote_types(model.dtype, torch.float32)
    mask = torch.full((len(parts.names),), fit.start, dtype=dtype, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([mask], lr=fit.learning_rate)
    for epoch in range(fit.epochs):
        for number in np.random.default_rng([seed, epoch]).permutation(len(batches)):
            optimizer.zero_grad()
            loss = target_loss(model, parts, batches[number], mask, penalty)
            if not np.isfinite(loss):
                raise BadSetting(f"the loss of dcm is {loss} in epoch {epoch}: lower learning_rate")
            optimizer.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
    return mask.detach()


def target_loss(model: Model, parts: Parts, batch: Sequence[Ready], mask: Float[Tensor, "C"], penalty: float) -> float:
    """-logit of the target (mean over examples) + penalty * sum of the mask; its gradient is added to `mask.grad`."""
    n, total = sum(ready.n for ready in batch), 0.0
    for ready in batch:
        logits = parts.logits(model, ready, mask, columns=True)
        loss = -ready.chunk.batch.per_example(TARGET_LOGIT(logits, ready.chunk.labels.among_columns())).sum() / n
        loss.backward()
        total += float(loss.detach())
    price = penalty * mask.sum()
    price.backward()
    return total + float(price.detach())
