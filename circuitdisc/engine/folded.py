"""Zero ablation after folding: what a head carries where the published figure zeroed it in a model with folded weights.

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

Shape letters: H heads, K head width, S senders, D residual width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.gradients.layers import heads_apart
from circuitdisc.errors import BadSetting
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model, fast_components


def folded_values(cut: Components) -> list[Float[Tensor, "H K"]]:
    """For each layer what its heads' pattern-weighted values are from biases alone: b W_V + b_V.

    Raises:
        BadSetting: a norm behind attention couples the heads, and there are biases, so that no head has a constant of its own.
    """
    found = []
    for layer, block in enumerate(cut.weights.layers):
        constant = block.W_V.new_zeros(block.W_V.shape[0], block.W_V.shape[-1])
        if block.norm_attention.shift is not None:
            constant = constant + block.norm_attention.shift @ block.W_V
        if block.b_V is not None:
            constant = constant + block.b_V
        if block.norm_after_attention is not None and bool(constant.any()):
            raise BadSetting(
                f"ablation=zero_folded moves what heads write from value biases into b_O, and in layer {layer} a norm behind "
                "attention divides it by the size of all heads together: use ablation=zero"
            )
        found.append(constant.repeat_interleave(cut.spec.n_heads // cut.spec.n_kv_heads, 0))
    return found


def folded_senders(model: Model) -> Float[Tensor, "S 1 1 D"]:
    """What every sender carries when cut.

    Raises:
        BadSetting: the model runs by hooks, or a norm behind attention couples its heads.
    """
    cut, graph = fast_components(model, "ablation=zero_folded"), model.graph
    carried = cut.weights.W_E.new_zeros(graph.n_senders, 1, 1, cut.spec.d_model)
    with torch.no_grad():
        for layer, constant in enumerate(folded_values(cut)):
            first = graph.sender_index[f"a{layer}.h0"]
            carried[first : first + graph.n_heads, 0] = heads_apart(cut, layer, constant[:, None], slice(None))
    return carried
