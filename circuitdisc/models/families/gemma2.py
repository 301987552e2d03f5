"""Gemma 2: norms before and after attention and MLP, softcaps, alternating windows, scaled embeddings."""

from typing import Any

from circuitdisc.models.components import LayerWeights, ModelSpec, Weights
from circuitdisc.models.families.common import rms_norm, rotary, sliding_windows, split_input, split_output
from circuitdisc.models.families.common import transposed as inputs_first
from circuitdisc.models.families.family import Family


def translate(hf_model: Any) -> tuple[ModelSpec, Weights]:
    """Specification and weights of a `Gemma2ForCausalLM`. Its norms store their scale minus one."""
    config, body = hf_model.config, hf_model.model
    frequencies, rotary_scale = rotary(body.rotary_emb)
    spec = ModelSpec(
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_model=config.hidden_size,
        d_head=config.head_dim,
        d_vocab=config.vocab_size,
        d_vocab_out=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        norm="rms",
        eps=config.rms_norm_eps,
        activation=config.hidden_activation,
        attn_scale=tuple(layer.self_attn.scaling for layer in body.layers),
        window=sliding_windows(config, config.num_hidden_layers),
        score_softcap=config.attn_logit_softcapping,
        logit_softcap=config.final_logit_softcapping,
        embed_scale=float(config.hidden_size**0.5),
        rotary_scale=rotary_scale,
    )
    heads = (config.num_attention_heads, config.num_key_value_heads)
    weights = Weights(
        W_E=body.embed_tokens.weight,
        layers=tuple(_layer(layer, *heads) for layer in body.layers),
        norm_final=rms_norm(body.norm, offset=1.0),
        W_U=hf_model.lm_head.weight.t(),
        inverse_frequencies=frequencies,
    )
    return spec, weights


def _layer(layer: Any, n_heads: int, n_kv_heads: int) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        W_Q=split_input(attention.q_proj.weight, n_heads),
        W_K=split_input(attention.k_proj.weight, n_kv_heads),
        W_V=split_input(attention.v_proj.weight, n_kv_heads),
        W_O=split_output(attention.o_proj.weight, n_heads),
        b_O=attention.o_proj.bias,
        norm_attention=rms_norm(layer.input_layernorm, offset=1.0),
        norm_after_attention=rms_norm(layer.post_attention_layernorm, offset=1.0),
        norm_mlp=rms_norm(layer.pre_feedforward_layernorm, offset=1.0),
        norm_after_mlp=rms_norm(layer.post_feedforward_layernorm, offset=1.0),
        W_in=inputs_first(mlp.up_proj),
        W_gate=inputs_first(mlp.gate_proj),
        W_out=inputs_first(mlp.down_proj),
    )


FAMILY = Family(
    {"gemma2": "Gemma 2"},
    translate,
    gated=True,
    not_by_hooks="Its norm after attention couples the heads: leave components=auto, which handles it",
)
