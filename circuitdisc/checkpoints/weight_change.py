"""How far a head's weights have moved from one checkpoint to another.

A head reads and writes through two products alone: W_Q W_K^T, which says what it attends to, and W_V W_O, which says what it
moves there. The change of a product is the Frobenius norm of the difference, relative to the norm of the reference's product.
The attention norm's scale counts as a part of W_Q, W_K and W_V, since the residual stream is read through it; rotary angles
(the product at distance 0 is taken) and biases are left out.

The products are width x width and never made: |A B^T - C D^T| is the norm of R S^T, with R and S from the QR decompositions
of [A, -C] and [B, D], which are twice a head wide.

Shape letters: L layers, H heads, D residual width, K width of a head, X twice that.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.models.components import Components

PRODUCTS = ("qk", "ov")


@dataclass(frozen=True)
class HeadWeights:
    """Both factors of every head's two products, layer by layer, in float64 on the CPU.

    Args:
        left: W_Q, and W_V, with the norm's scale. By product, [L, H, D, K]
        right: W_K with the norm's scale, and W_O transposed. By product, [L, H, D, K]
    """

    left: dict[str, Float[Tensor, "L H D K"]]
    right: dict[str, Float[Tensor, "L H D K"]]


def head_weights(components: Components) -> HeadWeights:
    """The factors of a model's heads. Heads that share keys and values have the same W_K and W_V each."""
    left: dict[str, list[Tensor]] = {"qk": [], "ov": []}
    right: dict[str, list[Tensor]] = {"qk": [], "ov": []}
    shared = components.spec.n_heads // components.spec.n_kv_heads
    for block in components.weights.layers:
        scale = block.norm_attention.scale

        def read(weight: Tensor, copies: int = 1, scale: Tensor | None = scale) -> Tensor:
            wide = weight.double().cpu().repeat_interleave(copies, dim=0)
            return wide if scale is None else wide * scale.double().cpu()[None, :, None]

        left["qk"].append(read(block.W_Q))
        right["qk"].append(read(block.W_K, shared))
        left["ov"].append(read(block.W_V, shared))
        right["ov"].append(block.W_O.double().cpu().transpose(1, 2))
    return HeadWeights(
        {name: torch.stack(weights) for name, weights in left.items()},
        {name: torch.stack(weights) for name, weights in right.items()},
    )


def weight_change(new: HeadWeights, reference: HeadWeights) -> dict[str, Float[np.ndarray, "L H"]]:
    """|new product - reference product| / |reference product| of every head, by product; NaN where the reference is zero."""
    changes = {}
    for name in PRODUCTS:
        moved = _norm(
            torch.cat([new.left[name], -reference.left[name]], dim=-1),
            torch.cat([new.right[name], reference.right[name]], dim=-1),
        )
        was = _norm(reference.left[name], reference.right[name])
        changes[name] = torch.where(was > 0, moved / was, torch.nan).numpy()
    return changes


def _norm(left: Float[Tensor, "L H D X"], right: Float[Tensor, "L H D X"]) -> Float[Tensor, "L H"]:
    """Frobenius norm of left right^T."""
    return torch.linalg.matrix_norm(torch.linalg.qr(left).R @ torch.linalg.qr(right).R.mT)
