"""Bloom: linear positions (ALiBi), a norm behind the embedding, q, k, v fused head by head."""

from typing import Any

import torch
from torch import Tensor

from circuitdisc.models.families.alibi import slopes
from circuitdisc.models.families.family import Family, WeightMap
from circuitdisc.models.families.reader import UNTOLD_LENGTH


def _key_bias(config: Any) -> Tensor:
    positions = torch.arange(getattr(config, "seq_length", None) or UNTOLD_LENGTH)
    return slopes(config.num_attention_heads)[:, None] * positions


FAMILY = Family(
    {"bloom": "Bloom"},
    WeightMap(
        body="transformer",
        embedding="word_embeddings",
        norm_embedding="word_embeddings_layernorm",
        layers="h",
        norm_final="ln_f",
        rotary="",
        qkv="self_attention.query_key_value",
        qkv_by="group",
        o="self_attention.dense",
        norm_q="",
        norm_k="",
        w_in="mlp.dense_h_to_4h",
        w_gate="",
        w_out="mlp.dense_4h_to_h",
    ),
    norm="layer",
    activation="gelu_new",
    key_bias=_key_bias,
    refused=lambda config: (
        "this Bloom adds what heads write to a normed residual stream: its senders do not add up"
        if config.apply_residual_connection_post_layernorm
        else ""
    ),
)
