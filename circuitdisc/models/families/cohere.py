"""Cohere's Command R: one layer norm without shift for attention and MLP, which run in parallel; logits are scaled.

Neighbouring numbers of a head turn together. In Command R7B (Cohere 2) the layers without a window have no positions.
"""

from typing import Any

from circuitdisc.models.families.family import Family, Scales, WeightMap


def _turned(config: Any, layer: int) -> bool:
    return config.model_type != "cohere2" or config.layer_types[layer] == "sliding_attention"


FAMILY = Family(
    {"cohere": "Cohere", "cohere2": "Cohere 2"},
    WeightMap(norm_mlp="input_layernorm"),
    norm="layer",
    parallel=True,
    rotary_pairs="neighbours",
    scales=lambda config: Scales(logits=config.logit_scale),
    turned=_turned,
)
