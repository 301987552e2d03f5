"""Small random-weight models of the real architectures, and toys, for the tests. Nothing is downloaded."""

from functools import cache
from typing import Any

import torch

from circuitdisc.engine.selfcheck import is_the_module
from circuitdisc.models import Model, ToyConfig, ToyTransformer, cut_hugging_face, cut_toy

V = 40
GROUPED: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    **GROUPED, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}  # fmt: skip
# Architectures that no family declares: read by their usual shape, or run by hooks, or refused.
UNDECLARED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("arcee", "cwm", "ernie4_5", "exaone4", "glm", "glm4", "internlm3", "jais2", "mellum", "nemotron"), GROUPED
    ),
    **dict.fromkeys(("persimmon", "seed_oss", "stablelm", "starcoder2"), GROUPED),
    **dict.fromkeys(("ernie4_5_moe", "flex_olmo", "glm4_moe", "granitemoeshared", "minimax_m2", "olmoe"), EXPERTS),
    **dict.fromkeys(("phimoe", "qwen2_moe"), EXPERTS),
    **dict.fromkeys(("apertus", "bitnet", "lfm2", "mpt", "olmo", "vaultgemma"), GROUPED),
    "gpt_oss": EXPERTS,
    **dict.fromkeys(("deepseek_v3", "diffllama", "gemma4_text", "gpt_bigcode", "mamba", "nanochat", "xglm"), GROUPED),
}
SLIDING = ["sliding_attention", "full_attention"]
FALCONS: dict[str, dict[str, Any]] = {
    "falcon": {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "alibi": False, "bias": False},
    "falcon_alibi": {
        "multi_query": False,
        "new_decoder_architecture": False,
        "parallel_attn": False,
        "alibi": True,
        "bias": True,
    },
    "falcon_groups": {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False, "bias": False},
}  # fmt: skip


def hugging_face(family: str, seed: int = 0) -> Any:
    """A random-weight Hugging Face model of a family, with biases and norm scales that are not trivial."""
    import transformers as t

    heads: dict[str, Any] = {"head_dim": 8}
    half: dict[str, Any] = {"partial_rotary_factor": 0.5}
    sizes: dict[str, Any] = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped: dict[str, Any] = {name: value for name, value in GROUPED.items() if name != "pad_token_id"}
    configs = {
        "gpt2": lambda: t.GPT2Config(vocab_size=V, n_embd=32, n_layer=3, n_head=4, n_positions=64),
        "llama": lambda: t.LlamaConfig(**grouped),
        "mistral": lambda: t.MistralConfig(**grouped, sliding_window=4),
        "qwen2": lambda: t.Qwen2Config(**grouped),
        "gpt_neox": lambda: t.GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64),
        "gemma2": lambda: t.Gemma2Config(**grouped, **heads, sliding_window=4, query_pre_attn_scalar=16),
        "opt": lambda: t.OPTConfig(
            vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=64, word_embed_proj_dim=32,
        ),
        "gptj": lambda: t.GPTJConfig(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
        "qwen3": lambda: t.Qwen3Config(**grouped, **heads),
        "ministral": lambda: t.MinistralConfig(**grouped, **heads, sliding_window=4, layer_types=SLIDING),
        "ministral3": lambda: t.Ministral3Config(**grouped, **heads),
        "smollm3": lambda: t.SmolLM3Config(**grouped, no_rope_layers=[1, 0], pad_token_id=0),
        "mixtral": lambda: t.MixtralConfig(**grouped, num_local_experts=4),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(
            **grouped, **heads, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, mlp_only_layers=[0]
        ),
        "gemma": lambda: t.GemmaConfig(**grouped, **heads),
        "gemma3_text": lambda: t.Gemma3TextConfig(
            **grouped, **heads, sliding_window=4, query_pre_attn_scalar=16, layer_types=SLIDING
        ),
        "olmo2": lambda: t.Olmo2Config(**grouped),
        "olmo3": lambda: t.Olmo3Config(**grouped, sliding_window=4, layer_types=SLIDING),
        "phi": lambda: t.PhiConfig(**grouped, **half),
        "phi3": lambda: t.Phi3Config(**grouped, pad_token_id=0, **half),
        "bloom": lambda: t.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4),
        "falcon": lambda: t.FalconConfig(**sizes, **FALCONS["falcon"]),
        "falcon_alibi": lambda: t.FalconConfig(**sizes, **FALCONS["falcon_alibi"]),
        "falcon_groups": lambda: t.FalconConfig(**sizes, **FALCONS["falcon_groups"]),
        "granite": lambda: t.GraniteConfig(
            **grouped, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=4.0
        ),
        "granitemoe": lambda: t.GraniteMoeConfig(
            **grouped, num_local_experts=4, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=4.0
        ),
        "cohere": lambda: t.CohereConfig(**grouped, use_qk_norm=True, logit_scale=0.5),
        "cohere2": lambda: t.Cohere2Config(**grouped, sliding_window=4, layer_types=SLIDING, logit_scale=0.5),
    }  # fmt: skip
    config = configs[family]() if family in configs else t.AutoConfig.for_model(family, **UNDECLARED[family])
    config._attn_implementation = "eager"
    experts = hasattr(config, "num_experts") or hasattr(config, "num_local_experts")
    if experts:
        config._experts_implementation = "eager"  # torch has no grouped products in float64
    if family == "falcon_alibi":
        config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / max(1, parameter.shape[-1]) ** 0.5)
    return model.eval().requires_grad_(not experts)


def model_of(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Model:
    """A cut model of a Hugging Face family or of a toy."""
    if family in TOYS:
        return cut_toy(toy(family).to(dtype), name=family, split_embeddings=settings.get("split_embeddings", False))
    return cut_hugging_face(hugging_face(family).to(dtype), name=family, accepts=is_the_module, **settings)


@cache
def shared(family: str) -> Model:
    """The model of a family that tests share: they only read it."""
    return model_of(family)


TOYS: dict[str, dict[str, Any]] = {
    "attention_only": {"attn_only": True},
    "no_norm": {"d_mlp": 24, "act_fn": "relu", "normalization_type": None},
    "bidirectional": {"d_mlp": 24, "act_fn": "gelu", "attention_dir": "bidirectional", "attn_scale": 2.0},
    "layer_norm_gated": {"d_mlp": 24, "act_fn": "silu", "normalization_type": "LN", "gated_mlp": True},
    "rms_rotary_grouped": {
        "d_mlp": 24, "act_fn": "relu", "normalization_type": "RMS", "positional_embedding_type": "rotary",
        "n_key_value_heads": 2,
    },
    "own_output_vocabulary": {"d_mlp": 24, "act_fn": "relu", "d_vocab_out": 7, "normalization_type": "LNPre"},
    "parallel": {"d_mlp": 24, "act_fn": "gelu_new", "parallel_attn_mlp": True, "normalization_type": "LN"},
}  # fmt: skip


def toy(name: str, seed: int = 0, **changes: Any) -> ToyTransformer:
    """A random toy whose biases are not zero."""
    sizes: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_head": 4, "d_vocab": V, "n_ctx": 32, **changes}
    model = ToyTransformer(ToyConfig(**{**sizes, **TOYS[name]}), seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
