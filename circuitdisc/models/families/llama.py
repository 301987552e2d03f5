"""Llama, Mistral and Qwen 2: root-mean-square norms, rotary positions, grouped queries, gated MLPs."""

from typing import Any

from circuitdisc.models.components import LayerWeights, ModelSpec, Weights
from circuitdisc.models.families.common import rms_norm, rotary, sizes, sliding_windows, split_bias, split_input, split_output
from circuitdisc.models.families.common import transposed as inputs_first
from circuitdisc.models.families.family import Family


def translate(hf_model: Any) -> tuple[ModelSpec, Weights]:
    """Specification and weights of a `LlamaForCausalLM`, `MistralForCausalLM` or `Qwen2ForCausalLM`."""
    config, body = hf_model.config, hf_model.model
    n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
    frequencies, rotary_scale = rotary(body.rotary_emb)
    d_head = body.layers[0].self_attn.head_dim
    spec = ModelSpec(
        **sizes(config),
        d_head=d_head,
        norm="rms",
        eps=config.rms_norm_eps,
        activation=config.hidden_act,
        attn_scale=tuple(layer.self_attn.scaling for layer in body.layers),
        window=sliding_windows(config, config.num_hidden_layers),
        rotary_scale=rotary_scale,
    )
    weights = Weights(
        W_E=body.embed_tokens.weight,
        layers=tuple(layer_weights(layer, n_heads, n_kv_heads) for layer in body.layers),
        norm_final=rms_norm(body.norm),
        W_U=hf_model.lm_head.weight.t(),
        inverse_frequencies=frequencies,
    )
    return spec, weights


def layer_weights(layer: Any, n_heads: int, n_kv_heads: int) -> LayerWeights:
    """The weights of a layer, as Gemma names them, too."""
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        W_Q=split_input(attention.q_proj.weight, n_heads),
        W_K=split_input(attention.k_proj.weight, n_kv_heads),
        W_V=split_input(attention.v_proj.weight, n_kv_heads),
        b_Q=split_bias(attention.q_proj.bias, n_heads),
        b_K=split_bias(attention.k_proj.bias, n_kv_heads),
        b_V=split_bias(attention.v_proj.bias, n_kv_heads),
        W_O=split_output(attention.o_proj.weight, n_heads),
        b_O=attention.o_proj.bias,
        norm_attention=rms_norm(layer.input_layernorm),
        norm_mlp=rms_norm(layer.post_attention_layernorm),
        W_in=inputs_first(mlp.up_proj),
        W_gate=inputs_first(mlp.gate_proj),
        W_out=inputs_first(mlp.down_proj),
        b_in=mlp.up_proj.bias,
        b_gate=mlp.gate_proj.bias,
        b_out=mlp.down_proj.bias,
    )


FAMILY = Family({"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen 2"}, translate, gated=True)
