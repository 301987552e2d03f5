"""A run in which edges of the whole model carry a mix of their live and their corrupted value, at some positions.

    input of receiver r = what it would read + sum over the masked edges s of m[r, s] * (corrupted_s - live_s)

At the other positions it reads what is there. With all positions this is the run of the soft mask 1 - m.

Shape letters: S senders, R receivers, n receivers read at once, B examples, T positions, D residual width, N readings,
W columns of the unembedding.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.engine.changed_heads import Ready
from circuitdisc.engine.masked_run import MaskedRun
from circuitdisc.models.model import Model


class _PlacedRun(MaskedRun):
    """The run of a soft mask that holds at some positions alone."""

    def __init__(self, model: Model, ready: Ready, kept: Float[Tensor, "R S"], places: Bool[Tensor, "B T"]) -> None:
        self.places, self.live = places[..., None], ready.residual.new_zeros(())
        super().__init__(model.components, model.graph, ready.chunk, kept)

    def _write(self, live: Float[Tensor, "s B T D"]) -> None:
        super()._write(live)
        self.live = self.live + live.sum(0)

    def _read(self, receivers: list[int], constant: Float[Tensor, "D"]) -> Float[Tensor, "n B T D"]:
        return super()._read(receivers, constant).where(self.places, self.live + constant)


def mixed_logits(
    model: Model, ready: Ready, mask: Float[Tensor, "R S"], places: Bool[Tensor, "B T"], columns: bool = False
) -> Float[Tensor, "N W"]:
    """Logits at the readings, with gradients to the mask.

    Args:
        ready: with all its tokens (`hold` without positions).
        mask: the share of the corrupted value on each edge; 0 where nothing is patched. [R, S]
        places: where edges are patched. [B, T]
        columns: of the answers' tokens alone; else of the whole vocabulary.
    """
    assert not ready.start, "masked edges need all tokens"
    run = _PlacedRun(model, ready, 1 - mask, places)
    wanted = ready.chunk.labels.columns if columns else None
    return model.components.unembed(run.residual[ready.reads][None], wanted)[0]
