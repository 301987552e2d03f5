"""GPT-2: layer norms, learned positions, one fused projection for q, k and v."""

from typing import Any

from circuitdisc.errors import BadModel
from circuitdisc.models.components import LayerWeights, ModelSpec, Weights
from circuitdisc.models.families.common import layer_norm, sizes
from circuitdisc.models.families.family import Family


def translate(hf_model: Any) -> tuple[ModelSpec, Weights]:
    """Specification and weights of a `GPT2LMHeadModel`. Its `Conv1D` layers hold inputs first."""
    config, body = hf_model.config, hf_model.transformer
    if config.add_cross_attention:
        raise BadModel("GPT-2 with cross-attention is not supported")
    n_heads, d_head = config.n_head, config.n_embd // config.n_head
    spec = ModelSpec(
        **sizes(config),
        d_head=d_head,
        norm="layer",
        eps=config.layer_norm_epsilon,
        activation=config.activation_function,
        attn_scale=tuple(block.attn.scaling for block in body.h),
    )
    weights = Weights(
        W_E=body.wte.weight,
        W_pos=body.wpe.weight,
        layers=tuple(_layer(block, n_heads, d_head) for block in body.h),
        norm_final=layer_norm(body.ln_f),
        W_U=hf_model.lm_head.weight.t(),
    )
    return spec, weights


def _layer(block: Any, n_heads: int, d_head: int) -> LayerWeights:
    fused, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
    W_Q, W_K, W_V = fused.reshape(fused.shape[0], 3, n_heads, d_head).permute(1, 2, 0, 3)
    b_Q, b_K, b_V = bias.reshape(3, n_heads, d_head)
    return LayerWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=block.attn.c_proj.weight.reshape(n_heads, d_head, -1),
        b_O=block.attn.c_proj.bias,
        norm_attention=layer_norm(block.ln_1),
        norm_mlp=layer_norm(block.ln_2),
        W_in=block.mlp.c_fc.weight,
        b_in=block.mlp.c_fc.bias,
        W_out=block.mlp.c_proj.weight,
        b_out=block.mlp.c_proj.bias,
    )


FAMILY = Family({"gpt2": "GPT-2"}, translate)
