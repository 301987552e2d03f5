"""Phi-3 and Phi-4-mini: like Llama, with q, k, v in one matrix, gate and input in one, and partly rotary positions."""

from circuitdisc.models.families.family import Family, WeightMap

FAMILY = Family({"phi3": "Phi-3"}, WeightMap(qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj"))
