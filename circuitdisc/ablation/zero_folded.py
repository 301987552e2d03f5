"""`zero_folded`: what a head carries where the published figure zeroed it in a model with folded weights.

TransformerLens can rewrite a model before it is used, without changing a logit: a norm's scale and shift go into the weights
that read it (`fold_ln`), and what a head writes from its value biases goes into b_O (`fold_value_biases`). With x the normed
input before scale w and shift b, and A the attention pattern, a head writes

    A (w x W_V + b W_V + b_V) W_O = A w x W_V W_O + c,    c = (b W_V + b_V) W_O

since the rows of A add up to 1. In the folded model the head's output is the first part, and c is in b_O, which belongs to no
head and is always kept: zeroing that output leaves c. In the model as it is, the head is therefore cut to c; every other
sender is cut to 0 in both.

The other rewritings change nothing here. `center_writing_weights` takes from each sender's output its mean over the residual
stream, which a layer norm takes away in any case (it is done in models with layer norms alone). `center_unembed` and the fold
of the final norm change what reads the residual stream, not what is written to it.

Shape letters: H heads, K head width.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation.base import Constants, Source
from circuitdisc.ablation.zero import Zero
from circuitdisc.errors import BadSetting
from circuitdisc.models.components import Components
from circuitdisc.models.model import fast_components

if TYPE_CHECKING:
    from circuitdisc.ablation.settings import Ablation


class ZeroFolded(Zero):
    """Nothing is carried, as in a model with folded norms and value biases: a head keeps what it writes from biases alone."""

    def __init__(self, ablation: "Ablation") -> None:
        super().__init__(ablation)
        if ablation.target == "pattern":
            raise BadSetting(
                "ablation zero_folded says what a head's output is when it is cut, and target=pattern cuts its attention "
                "pattern: use kind=zero, or target=output"
            )

    @property
    def label(self) -> str:
        return "zero (norms and value biases folded)"

    def constants(self, fitted: Any, source: Source) -> Constants:
        return Constants(z=dict(enumerate(folded_values(fast_components(source.model, "ablation=zero_folded")))))


def folded_values(components: Components) -> list[Float[Tensor, "H K"]]:
    """For each layer what its heads' pattern-weighted values are from biases alone: b W_V + b_V.

    Raises:
        BadSetting: a norm behind attention couples the heads, and there are biases, so that no head has a constant of its own.
    """
    values = []
    for layer, block in enumerate(components.weights.layers):
        shift = block.norm_attention.shift
        shift = torch.zeros(components.d_model, dtype=components.dtype, device=components.device) if shift is None else shift
        constant = components.projected(layer, "v", shift)
        if block.norm_after_attention is not None and bool(constant.any()):
            raise BadSetting(
                f"ablation=zero_folded moves what heads write from value biases into b_O, and in layer {layer} a norm behind "
                "attention divides it by the size of all heads together: use ablation=zero"
            )
        values.append(constant.repeat_interleave(components.spec.n_heads // components.spec.n_kv_heads, 0))
    return values
