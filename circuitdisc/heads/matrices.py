"""Weights of heads: the two products through which a head reads and writes, along the residual stream's own axes.

1. KQ = scale W_K W_Q^T: what axis i of a key and axis j of a query add to their score.
2. OV = W_V W_O: what axis i of an attended token adds to axis j of the residual stream.
3. One axis is the label's, others are the inputs'. Is KQ a multiple of the identity on the inputs? Does OV carry the label
   alone?

The axes mean something where an embedding writes numbers to them, as in toys for in-context regression. Biases, the norms'
scales and rotary angles are left out.

Source: von Oswald et al. 2023 and Zhang et al. 2024 (linear attention); He et al. 2025, "In-Context Linear Regression
Demystified" (https://arxiv.org/abs/2503.12734), for softmax heads: KQ diagonal and alike on all inputs, OV of the last entry
alone, with a sum of 0 over heads.

Shape letters: L layers, H heads, D residual width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.checks import Whole, bounded
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting
from circuitdisc.graph import heads_where
from circuitdisc.heads.base import as_list
from circuitdisc.models.model import Model
from circuitdisc.models.weights import LayerWeights
from circuitdisc.results import Result, Row, plain_rows

LARGEST = 2**22
"""Numbers in all products together, of one kind: a file holds them."""


@dataclass(frozen=True, repr=False)
class HeadMatrices(Result):
    """Both products of every head.

    Args:
        kq: key axis by query axis, times the scale of the scores. [L, H, D, D]
        ov: read axis by written axis. [L, H, D, D]
        inputs: axes of the inputs.
        label: axis of the label.
        note: what a reader must know; empty for most toys.
    """

    kq: Float[np.ndarray, "L H D D"]
    ov: Float[np.ndarray, "L H D D"]
    inputs: tuple[int, ...]
    label: int
    note: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Heads, layer by layer."""
        return tuple(heads_where(np.ones(self.kq.shape[:2], dtype=bool)))

    def table(self) -> list[Row]:
        """A line a head, in the model's order.

        KQ of the inputs: mean and standard deviation of the diagonal, root mean square of the rest, and of what the key's label
        adds. OV to the label: from the label, and the root mean square from the inputs.
        """
        rows: list[Row] = []
        inputs, label, D = list(self.inputs), self.label, self.kq.shape[-1]
        for name, kq, ov in zip(self.names, self.kq.reshape(-1, D, D), self.ov.reshape(-1, D, D), strict=True):
            block = kq[np.ix_(inputs, inputs)]
            rest = block[~np.eye(len(inputs), dtype=bool)]
            row: Row = {"head": name, "KQ diagonal": block.diagonal().mean(), "spread": block.diagonal().std()}
            row |= {"off the diagonal": _size(rest), "key's label": _size(kq[label, inputs])}
            rows.append(row | {"OV of the label": ov[label, label], "OV of the inputs": _size(ov[inputs, label])})
        return plain_rows(rows)

    def sums(self) -> list[Row]:
        """A line a layer: OV of the label summed over heads, and its absolute values summed."""
        label = self.ov[:, :, self.label, self.label]
        sums = zip(label.sum(1), np.abs(label).sum(1), strict=True)
        return plain_rows(
            {"layer": layer, "sum over heads": total, "of absolute values": size} for layer, (total, size) in enumerate(sums)
        )


@bounded(inputs=Whole(0, 100_000, many=True), label=Whole(-100_000, 100_000))
def head_matrices(model: Model, *, inputs: Sequence[int] | None = None, label: int = -1) -> HeadMatrices:
    """The products of every head along the residual stream's axes.

    Args:
        inputs: axes to which the embedding writes the inputs; None: all but the label's.
        label: axis to which it writes the label, and from which the answer is read; -1 is the last.

    Raises:
        BadSetting: the model has no fast components or is too large, or there is no such axis.
    """
    components = components_of(model, "looking at heads' weights", whole=True)
    spec = components.spec
    n_heads, D = spec.n_layers * spec.n_heads, spec.d_model
    if n_heads * D * D > LARGEST:
        raise BadSetting(
            f"heads weights gives {D:,} x {D:,} numbers for each of {n_heads:,} heads of {model.name}, more than {LARGEST:,}: "
            "it is for toys whose embedding writes numbers to the residual stream's axes"
        )
    if not -D <= label < D:
        raise BadSetting(f"label={label!r} is no axis of {model.name}: give a number from {-D} to {D - 1}")
    label %= D
    axes = [axis for axis in range(D) if axis != label] if inputs is None else [int(axis) for axis in as_list("inputs", inputs)]
    if not axes or label in axes or max(axes) >= D or len(set(axes)) < len(axes):
        raise BadSetting(f"inputs={axes} are not different axes of {model.name} from 0 to {D - 1} without label={label}")
    products = [_products(block, scale) for block, scale in zip(components.weights.layers, spec.attn_scale, strict=True)]
    kq, ov = (torch.stack(layers).cpu().numpy() for layers in zip(*products, strict=True))
    elsewhere = [axis for axis in range(D) if axis != label]
    notes = [
        "the answer is read from other axes than the label's, too: these figures are not those of a regression toy"
        if components.weights.W_U[elsewhere].any()
        else "",
        "the norm's scale is left out" if spec.norm is not None else "",
        "rotary angles are left out" if components.weights.inverse_frequencies else "",
    ]
    return HeadMatrices(kq, ov, tuple(axes), label, "; ".join(note for note in notes if note))


def _products(block: LayerWeights, scale: float) -> tuple[Float[Tensor, "H D D"], Float[Tensor, "H D D"]]:
    """KQ and OV of a layer's heads; those that share keys and values have the same W_K and W_V each."""
    shared = len(block.W_Q) // len(block.W_K)
    W_K, W_V = (weight.double().repeat_interleave(shared, dim=0) for weight in (block.W_K, block.W_V))
    return scale * W_K @ block.W_Q.double().mT, W_V @ block.W_O.double()


def _size(values: Float[np.ndarray, "n"]) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.square(values).mean())) if values.size else 0.0
