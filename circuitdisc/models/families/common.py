"""Reading Hugging Face's linear layers in the TransformerLens layout. H heads, D residual width, K head width.

Everything is a view: the cut model shares its storage with the Hugging Face module, so that weights are held once.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.errors import BadModel
from circuitdisc.models.components import NormWeights


def sizes(config: Any) -> dict[str, Any]:
    """What a `ModelSpec` has of the sizes that Hugging Face names alike for all families, GPT-2's own names included."""
    return {
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "d_model": config.hidden_size,
        "d_vocab": config.vocab_size,
        "d_vocab_out": config.vocab_size,
        "n_ctx": config.max_position_embeddings,
    }


def split_input(weight: Float[Tensor, "HK D"], n_heads: int) -> Float[Tensor, "H D K"]:
    """A linear layer's weight (outputs first) that makes the heads' queries, keys or values."""
    return weight.reshape(n_heads, -1, weight.shape[1]).transpose(1, 2)


def split_output(weight: Float[Tensor, "D HK"], n_heads: int) -> Float[Tensor, "H K D"]:
    """A linear layer's weight (outputs first) that reads the heads' concatenated values."""
    return weight.t().reshape(n_heads, -1, weight.shape[0])


def split_bias(bias: Float[Tensor, "HK"] | None, n_heads: int) -> Float[Tensor, "H K"] | None:
    return None if bias is None else bias.reshape(n_heads, -1)


def transposed(linear: Any) -> Float[Tensor, "In Out"]:
    """A linear layer's weight, inputs first."""
    return linear.weight.t()


def layer_norm(module: Any) -> NormWeights:
    return NormWeights(module.weight, module.bias)


def rms_norm(module: Any, offset: float = 0.0) -> NormWeights:
    """Scale of a root-mean-square norm; some families store it minus one (`offset=1`)."""
    return NormWeights(module.weight if offset == 0.0 else offset + module.weight)


def rotary(module: Any) -> tuple[Float[Tensor, "Krot2"], float]:
    """Inverse frequencies and the scale of cos and sin.

    Raises:
        BadModel: the frequencies change with the length of the prompt.
    """
    if module.rope_type in ("dynamic", "longrope"):
        raise BadModel(f"rotary positions of type '{module.rope_type}' change with the prompt's length: not supported")
    return module.inv_freq.to(torch.float32), float(module.attention_scaling)


def sliding_windows(config: Any, n_layers: int) -> tuple[int | None, ...] | None:
    """Each layer's attention window, from a configuration with `sliding_window` and perhaps `layer_types`."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)
