"""Falcon: one key and value for all heads or for groups, rotary or linear positions (ALiBi), attention and MLP in parallel.

Its linear positions are computed in bfloat16 and scaled like the scores.
"""

from typing import Any

import torch
from torch import Tensor

from circuitdisc.models.families.alibi import slopes
from circuitdisc.models.families.family import Family, WeightMap


def _layout(config: Any) -> WeightMap:
    two_norms = config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2)
    after = "input_layernorm" if config.parallel_attn else "post_attention_layernorm"
    return WeightMap(
        body="transformer",
        embedding="word_embeddings",
        layers="h",
        norm_final="ln_f",
        qkv="self_attention.query_key_value",
        qkv_by="group" if config.new_decoder_architecture or not config.multi_query else "kind",
        o="self_attention.dense",
        norm_q="",
        norm_k="",
        norm_attention="ln_attn" if two_norms else "input_layernorm",
        norm_mlp="ln_mlp" if two_norms else after,
        w_in="mlp.dense_h_to_4h",
        w_gate="",
        w_out="mlp.dense_4h_to_h",
    )


def _key_bias(config: Any) -> Tensor | None:
    if not config.alibi:
        return None
    positions = torch.arange(config.max_position_embeddings)
    bias = slopes(config.num_attention_heads).bfloat16()[:, None] * positions
    return bias.float() * (config.hidden_size // config.num_attention_heads) ** -0.5


FAMILY = Family(
    {"falcon": "Falcon"},
    _layout,
    norm="layer",
    parallel=lambda config: config.parallel_attn or config.new_decoder_architecture,
    key_bias=_key_bias,
)
