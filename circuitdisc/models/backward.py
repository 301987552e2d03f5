"""How gradients pass the parts of a layer that are not linear.

The forward pass is the model's own under every rule; only what autograd takes for the slope of a norm, a softmax, an activation
or a product differs. The rules themselves, with their sources, are in `circuitdisc/engine/gradients/rules/`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BackwardRule:
    """One way to go backwards.

    Args:
        holds_norms: a norm's divisor is a constant, so that the norm is linear.
        temperature: the slope of the attention's softmax is taken at scores divided by this.
        shares: what is left of the gradients with respect to a head's queries, keys and values.
        proportional: an activation f passes gradients as the constant f(x) / x would.
        product: what is left of the gradient of each factor of a gated MLP's product.
    """

    holds_norms: bool = False
    temperature: float = 1.0
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)
    proportional: bool = False
    product: float = 1.0

    @property
    def changes_mlps(self) -> bool:
        """MLPs have a backward pass of their own, beside their norms."""
        return self.proportional or self.product != 1.0

    def divisor_of(self, x: Tensor) -> Tensor | None:
        """`like` of a norm of x: what its divisor is taken of, where gradients do not follow it."""
        return x.detach() if self.holds_norms else None

    def softmax(self, scores: Float[Tensor, "... T"]) -> Float[Tensor, "... T"]:
        """Over the last axis; a score of -inf has no weight and no slope."""
        if self.temperature == 1.0:
            return scores.softmax(-1)
        pattern: Any = _SoftmaxWithSlopeAt.apply(scores, self.temperature)
        return pattern

    def activation(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """f(x); at x = 0, where f is 0, f(x) / x is its limit, the slope of f there."""
        if not self.proportional:
            return function(x)
        y, fixed = function(x).detach(), x.detach()
        with torch.enable_grad():
            zero = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
            (at_zero,) = torch.autograd.grad(function(zero), zero)
        slope = torch.where(fixed == 0, at_zero, y / fixed)
        return y + slope * (x - fixed)

    def gated(self, gate: Tensor, x: Tensor) -> Tensor:
        """Gate times x."""
        product = gate * x
        return product if self.product == 1.0 else product.detach() + self.product * (product - product.detach())


class _SoftmaxWithSlopeAt(torch.autograd.Function):
    """A softmax whose Jacobian is that of the softmax of scores / temperature with respect to these."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(scores)
        ctx.temperature = temperature
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scores,) = ctx.saved_tensors
        softer = (scores / ctx.temperature).softmax(-1)
        return softer * (gradient - (gradient * softer).sum(-1, keepdim=True)), None


PLAIN = BackwardRule()
"""Autograd's own."""
