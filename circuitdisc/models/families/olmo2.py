"""OLMo 2: no norms before, norms after attention and MLP, and norms of all heads' queries (and keys) together."""

from circuitdisc.models.families.family import AFTER_NORM_BY_HOOKS, Family, WeightMap

FAMILY = Family(
    {"olmo2": "OLMo 2", "olmo3": "OLMo 3"},
    WeightMap(
        norm_attention="",
        norm_mlp="",
        norm_after_attention="post_attention_layernorm",
        norm_after_mlp="post_feedforward_layernorm",
    ),
    norm_across_heads=True,
    not_by_hooks=AFTER_NORM_BY_HOOKS,
)
