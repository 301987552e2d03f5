"""Granite: Llama's layout; embeddings, scores, everything that is written and the logits are multiplied with constants."""

from typing import Any

from circuitdisc.models.families.family import Family, Scales, WeightMap


def _scales(config: Any) -> Scales:
    return Scales(config.embedding_multiplier, config.residual_multiplier, 1 / config.logits_scaling)


FAMILY = Family(
    {"granite": "Granite", "granitemoe": "Granite MoE"},
    WeightMap(experts="block_sparse_moe"),
    scales=_scales,
)
