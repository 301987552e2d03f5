"""Llama and what is built like it: root-mean-square norms, rotary positions, grouped queries, gated MLPs.

Mistral and Ministral have sliding windows; Qwen 3 norms the queries and keys of each head; in SmolLM 3 some layers turn none.
Ministral 3 scales queries at positions beyond the length that it was first trained on, where prompts end here.
"""

from typing import Any

from circuitdisc.models.families.family import Family


def _turned(config: Any, layer: int) -> bool:
    """SmolLM 3's layers without positions."""
    kinds = getattr(config, "no_rope_layers", None)  # 1 where there are positions, in spite of the name
    return kinds is None or bool(kinds[layer])


FAMILY = Family(
    {
        "llama": "Llama",
        "mistral": "Mistral",
        "ministral": "Ministral",
        "ministral3": "Ministral 3",
        "qwen2": "Qwen 2",
        "qwen3": "Qwen 3",
        "smollm3": "SmolLM 3",
    },
    turned=_turned,
)
