"""GPT-NeoX and Pythia: layer norms, partly rotary positions, attention and MLP in parallel, q, k, v fused head by head."""

from circuitdisc.models.families.family import Family, WeightMap

FAMILY = Family(
    {"gpt_neox": "GPT-NeoX"},
    WeightMap(
        body="gpt_neox",
        embedding="embed_in",
        norm_final="final_layer_norm",
        qkv="attention.query_key_value",
        qkv_by="group",
        o="attention.dense",
        norm_q="",
        norm_k="",
        w_in="mlp.dense_h_to_4h",
        w_gate="",
        w_out="mlp.dense_4h_to_h",
    ),
    norm="layer",
    parallel=lambda config: config.use_parallel_residual,
)
