"""GPT-2: layer norms, learned positions, one fused projection for q, k and v."""

from circuitdisc.models.families.family import Family, WeightMap

FAMILY = Family(
    {"gpt2": "GPT-2"},
    WeightMap(
        body="transformer",
        embedding="wte",
        positions="wpe",
        layers="h",
        norm_final="ln_f",
        rotary="",
        qkv="attn.c_attn",
        o="attn.c_proj",
        norm_q="",
        norm_k="",
        norm_attention="ln_1",
        norm_mlp="ln_2",
        w_in="mlp.c_fc",
        w_gate="",
        w_out="mlp.c_proj",
    ),
    norm="layer",
    refused=lambda config: "GPT-2 with cross-attention is not supported" if config.add_cross_attention else "",
)
