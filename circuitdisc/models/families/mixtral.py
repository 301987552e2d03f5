"""Mixtral and Qwen's mixtures of experts: like Llama, but an MLP may be a mixture of experts.

The router reads what the experts read, so that a whole block is a function of its own input: one sender of the graph.
"""

from circuitdisc.models.families.family import Family

FAMILY = Family({"mixtral": "Mixtral", "qwen3_moe": "Qwen 3 MoE"})
