"""Gemma 2: norms before and after attention and MLP, softcaps, alternating windows, scaled embeddings."""

from dataclasses import replace
from typing import Any

from circuitdisc.models.components import LayerWeights, ModelSpec, Weights
from circuitdisc.models.families.common import rms_norm, rotary, sizes, sliding_windows
from circuitdisc.models.families.family import Family
from circuitdisc.models.families.llama import layer_weights


def translate(hf_model: Any) -> tuple[ModelSpec, Weights]:
    """Specification and weights of a `Gemma2ForCausalLM`. Its norms store their scale minus one."""
    config, body = hf_model.config, hf_model.model
    frequencies, rotary_scale = rotary(body.rotary_emb)
    spec = ModelSpec(
        **sizes(config),
        d_head=config.head_dim,
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
    """Llama's, but for the norms."""
    return replace(
        layer_weights(layer, n_heads, n_kv_heads),
        norm_attention=rms_norm(layer.input_layernorm, offset=1.0),
        norm_after_attention=rms_norm(layer.post_attention_layernorm, offset=1.0),
        norm_mlp=rms_norm(layer.pre_feedforward_layernorm, offset=1.0),
        norm_after_mlp=rms_norm(layer.post_feedforward_layernorm, offset=1.0),
    )


FAMILY = Family(
    {"gemma2": "Gemma 2"},
    translate,
    gated=True,
    not_by_hooks="Its norm after attention couples the heads: leave components=auto, which handles it",
)
