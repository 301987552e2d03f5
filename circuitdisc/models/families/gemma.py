"""Gemma: norms that store their scale minus one, scaled embeddings. Gemma 2 and 3 have norms after attention and MLP, too.

Gemma 2 caps scores and logits; Gemma 3 norms queries and keys, and its sliding layers turn by other frequencies than its full
ones. Every second (sixth) layer sees the whole prompt.
"""

from typing import Any

from circuitdisc.models.families.family import AFTER_NORM_BY_HOOKS, Family, Scales, WeightMap

AFTER = WeightMap(
    norm_mlp="pre_feedforward_layernorm",
    norm_after_attention="post_attention_layernorm",
    norm_after_mlp="post_feedforward_layernorm",
)


def scales(config: Any) -> Scales:
    """Embeddings are multiplied with the square root of their width."""
    return Scales(embedding=config.hidden_size**0.5)


FAMILY = Family(
    {"gemma2": "Gemma 2", "gemma3_text": "Gemma 3"}, AFTER, norm_offset=1.0, scales=scales, not_by_hooks=AFTER_NORM_BY_HOOKS
)
