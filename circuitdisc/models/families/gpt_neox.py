"""GPT-NeoX and Pythia: layer norms, partly rotary positions, attention and MLP in parallel, q, k, v fused head by head."""

from typing import Any

from circuitdisc.models.components import LayerWeights, ModelSpec, Weights
from circuitdisc.models.families.common import layer_norm, rotary, sizes, split_output
from circuitdisc.models.families.common import transposed as inputs_first
from circuitdisc.models.families.family import Family


def translate(hf_model: Any) -> tuple[ModelSpec, Weights]:
    """Specification and weights of a `GPTNeoXForCausalLM`."""
    config, body = hf_model.config, hf_model.gpt_neox
    n_heads = config.num_attention_heads
    frequencies, rotary_scale = rotary(body.rotary_emb)
    spec = ModelSpec(
        **sizes(config),
        d_head=config.hidden_size // n_heads,
        norm="layer",
        eps=config.layer_norm_eps,
        activation=config.hidden_act,
        attn_scale=tuple(layer.attention.scaling for layer in body.layers),
        parallel=config.use_parallel_residual,
        rotary_scale=rotary_scale,
    )
    weights = Weights(
        W_E=body.embed_in.weight,
        layers=tuple(_layer(layer, n_heads) for layer in body.layers),
        norm_final=layer_norm(body.final_layer_norm),
        W_U=hf_model.get_output_embeddings().weight.t(),
        inverse_frequencies=frequencies,
    )
    return spec, weights


def _layer(layer: Any, n_heads: int) -> LayerWeights:
    fused = layer.attention.query_key_value
    d_model = fused.weight.shape[1]
    W_Q, W_K, W_V = fused.weight.reshape(n_heads, 3, -1, d_model).permute(1, 0, 3, 2)
    b_Q, b_K, b_V = (None,) * 3 if fused.bias is None else fused.bias.reshape(n_heads, 3, -1).transpose(0, 1)
    return LayerWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=split_output(layer.attention.dense.weight, n_heads),
        b_O=layer.attention.dense.bias,
        norm_attention=layer_norm(layer.input_layernorm),
        norm_mlp=layer_norm(layer.post_attention_layernorm),
        W_in=inputs_first(layer.mlp.dense_h_to_4h),
        b_in=layer.mlp.dense_h_to_4h.bias,
        W_out=inputs_first(layer.mlp.dense_4h_to_h),
        b_out=layer.mlp.dense_4h_to_h.bias,
    )


FAMILY = Family({"gpt_neox": "GPT-NeoX"}, translate)
