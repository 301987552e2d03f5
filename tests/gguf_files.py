"""Tiny GGUF files of Llama models, written as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}  # that GGUF calls by another name
EPSILONS = {"gpt2": "attention.layer_norm_epsilon"}


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
    """Its weights as llama.cpp keeps them: rows of Llama's q and k in another order, Gemma's norms plus 1, GPT-2's turned."""
    import gguf
    from transformers.pytorch_utils import Conv1D

    config, tensors = module.config, {}
    architecture = str(ARCHITECTURES.get(config.model_type, config.model_type))
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in module.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer, _, part = name.rpartition(".")
        array = weight.numpy().copy()
        if isinstance(module.get_submodule(layer), Conv1D) and part == "weight":
            array = array.T
        if architecture == "llama" and (".q_proj" in name or ".k_proj" in name):
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and "norm" in name:
            array = array + 1
        tensors[f"{names.get_name(layer)}.{part}"] = np.ascontiguousarray(array)
    return tensors


def write_gguf(
    path: Path,
    module: Any,
    tokenizer: Any = None,
    *,
    q8: bool = False,
    tensors: Any = None,
    architecture: str = "",
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
    architecture = architecture or str(ARCHITECTURES.get(config.model_type, config.model_type))
    rope = getattr(config, "rope_parameters", None) or {}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    settings: dict[str, Any] = {
        "context_length": config.max_position_embeddings, "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", config.num_attention_heads),
        EPSILONS.get(architecture, "attention.layer_norm_rms_epsilon"): getattr(config, "rms_norm_eps", 1e-5),
        "rope.freq_base": rope.get("rope_theta"), "rope.dimension_count": width, "attention.key_length": width,
        "attention.sliding_window": getattr(config, "sliding_window", None), "vocab_size": config.vocab_size,
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
