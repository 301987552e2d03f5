"""GPT-J: one layer norm for attention and MLP, which run in parallel; neighbouring numbers of a head turn together."""

from typing import Any

import torch
from torch import Tensor

from circuitdisc.models.families.family import Family, WeightMap


def _frequencies(config: Any, body: Any) -> Tensor:
    width = config.rotary_dim or config.hidden_size
    return 1.0 / (10000 ** (torch.arange(0, width, 2, device=body.wte.weight.device) / width))


FAMILY = Family(
    {"gptj": "GPT-J"},
    WeightMap(
        body="transformer",
        embedding="wte",
        layers="h",
        norm_final="ln_f",
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        o="attn.out_proj",
        norm_q="",
        norm_k="",
        norm_attention="ln_1",
        norm_mlp="ln_1",
        w_in="mlp.fc_in",
        w_gate="",
        w_out="mlp.fc_out",
    ),
    norm="layer",
    parallel=True,
    rotary_pairs="neighbours",
    frequencies=_frequencies,
)
