"""What a run of a batch knows beside its residual stream: masks, rotary angles, and scales that are frozen.

Shape letters: B examples, T positions, T2 positions attended to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.graph import QKV


@dataclass
class Frame:
    """What attention needs to know about a batch, apart from the residual stream.

    Args:
        position_ids: index of each token in its own prompt. [B, T]
        allowed: for each layer's window, True where a query (T) may attend to a key (T2). [B, T, T2]
        key_positions: position of each token that is attended to. [B, T2]
        angles: cos and sin of the rotary angles, for each of the model's frequencies. [B, T, Krot] each
        head_scale: for models with a norm after attention, per layer the reciprocal root mean square of the
            attention output in the run that the frame belongs to. [B, T, 1]
        turn_scale: for models that norm queries or keys across heads, the same of all heads' queries, and of all heads' keys,
            by layer and `q` or `k`. [B, T, 1]
    """

    position_ids: Int[Tensor, "B T"]
    allowed: dict[int | None, Bool[Tensor, "B T T2"]]
    key_positions: Int[Tensor, "B T2"] | None = None
    angles: tuple[tuple[Float[Tensor, "B T Krot"], Float[Tensor, "B T Krot"]], ...] = ()
    head_scale: dict[int, Float[Tensor, "B T 1"]] = field(default_factory=dict)
    turn_scale: dict[tuple[int, QKV], Float[Tensor, "B T 1"]] = field(default_factory=dict)

    def at(self, tokens: Int[Tensor, "n"]) -> "Frame":
        """Angles and scales of some tokens (numbered b * T + t) as one row: B = 1, T = n. Without masks."""
        return replace(self._of(lambda x: x.flatten(0, 1)[tokens][None]), allowed={}, key_positions=None)

    def tail(self, start: int) -> "Frame":
        """The frame of the queries from `start` on; keys are still all that there are."""
        return self._of(lambda x: x[:, start:])

    def _of(self, chosen: Callable[[Tensor], Tensor]) -> "Frame":
        return replace(
            self,
            position_ids=chosen(self.position_ids),
            angles=tuple((chosen(cos), chosen(sin)) for cos, sin in self.angles),
            head_scale={layer: chosen(scale) for layer, scale in self.head_scale.items()},
            turn_scale={place: chosen(scale) for place, scale in self.turn_scale.items()},
        )
