"""Tiny GGUF files of Llama models, written as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.layers.": "blk.",
}  # fmt: skip


def tiny_llama(d_vocab: int = 40, seed: int = 0, **changes: Any) -> Any:
    """A random-weight Llama with grouped queries, whose widths Q8_0's blocks fit."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 5000.0}
    torch.manual_seed(seed)
    module = LlamaForCausalLM(LlamaConfig(vocab_size=d_vocab, **{**sizes, **more, **changes})).eval()  # pyright: ignore[reportArgumentType] - sizes by name
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return module


def tensors_of(module: Any) -> dict[str, np.ndarray]:
    """Its weights under GGUF's names; rows of q and k in the order of llama.cpp's rotary positions."""
    config, tensors = module.config, {}
    for name, weight in module.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.numpy().copy()
        for heads, part in ((config.num_attention_heads, ".q_proj"), (config.num_key_value_heads, ".k_proj")):
            if part in name:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        for mine, theirs in NAMES.items():
            name = name.replace(mine, theirs)
        tensors[name] = np.ascontiguousarray(array)
    return tensors


def write_gguf(
    path: Path,
    module: Any,
    tokenizer: Any = None,
    *,
    q8: bool = False,
    tensors: Any = None,
    architecture: str = "llama",
    **values: Any,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        q8: matrices as 8-bit blocks.
        tensors: in place of the model's own.
        values: further settings of the header, `__` for a dot; None leaves one out.
    """
    import gguf

    config = module.config
    settings: dict[str, Any] = {
        "context_length": config.max_position_embeddings, "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": config.hidden_size // config.num_attention_heads, "vocab_size": config.vocab_size,
    }  # fmt: skip
    settings = {f"{architecture}.{name}": value for name, value in settings.items()}
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in settings.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    for name, array in (tensors_of(module) if tensors is None else tensors).items():
        if q8 and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    """A byte-level BPE."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(said["vocab"], key=said["vocab"].__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in said["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
