"""Phi-1.5 and Phi-2: one layer norm for attention and MLP, which run in parallel; biases; partly rotary positions."""

from circuitdisc.models.families.family import Family, WeightMap

FAMILY = Family(
    {"phi": "Phi"},
    WeightMap(
        o="self_attn.dense",
        norm_final="final_layernorm",
        norm_q="self_attn.q_layernorm",
        norm_k="self_attn.k_layernorm",
        norm_mlp="input_layernorm",
        w_in="mlp.fc1",
        w_gate="",
        w_out="mlp.fc2",
    ),
    norm="layer",
    parallel=True,
)
