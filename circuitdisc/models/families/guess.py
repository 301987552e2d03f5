"""A declaration for a model whose family nobody declared, from what its module looks like and does.

Decoders of the usual shape keep their parts under a few usual names. Which norm a module computes is found by giving it
numbers; what cannot be seen from outside (which numbers of a head turn together) is left open: every guess is a `Family` of its
own, and the self-check decides which of them the model is, if any.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from circuitdisc.models.families.family import AFTER_NORM_BY_HOOKS, Family, WeightMap

# leaf names in the order in which they are looked for
Q, K, V = ("q_proj", "query", "wq"), ("k_proj", "key", "wk"), ("v_proj", "value", "wv")
QKV = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "qkv", "in_proj")
WRITE = ("o_proj", "out_proj", "dense", "c_proj", "wo", "attn_out")
IN = ("up_proj", "fc1", "c_fc", "fc_in", "dense_h_to_4h", "w1")
GATE, GATE_UP = ("gate_proj", "w3"), ("gate_up_proj",)
OUT = ("down_proj", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "w2")
NORM_Q, NORM_K = ("q_norm", "q_layernorm", "query_layernorm"), ("k_norm", "k_layernorm", "key_layernorm")
# the first name in each that a layer of four norms has
BEFORE_MLP = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "post_attention_layernorm")
AFTER_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm", "post_attn_norm")
AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffn_norm")


def guesses(hf_model: Any) -> Iterator[Family]:
    """Declarations that may fit, likeliest first; none where the module is not a decoder of the usual shape."""
    try:
        yield from _guesses(hf_model)
    except (AttributeError, StopIteration, RuntimeError, TypeError, ValueError, IndexError):
        return  # a part is missing, or does something else than its name says


def _guesses(hf_model: Any) -> Iterator[Family]:
    config = hf_model.config.get_text_config()
    body_name = hf_model.base_model_prefix
    body = getattr(hf_model, body_name)
    if not hasattr(body, "layers") and hasattr(body, "decoder"):
        body_name, body = f"{body_name}.decoder", body.decoder
    lists = [(name, part) for name, part in body.named_children() if isinstance(part, nn.ModuleList)]
    layers_name, layers = next((name, part) for name, part in lists if len(part) == config.num_hidden_layers)
    layer: Any = layers[0]
    norms = [name for name, part in body.named_children() if _is_norm(part)]
    attention = next(name for name, part in layer.named_children() if _leaf(part, (*Q, *QKV)))
    block = getattr(layer, attention)
    mlp = next((name for name, part in layer.named_children() if name != attention and _leaf(part, OUT)), "")
    feed = getattr(layer, mlp) if mlp else None
    experts = next((n for n, _ in layer.named_children() if n in ("mlp", "block_sparse_moe", "feed_forward", "moe")), "mlp")
    fused = _leaf(block, QKV)
    places = {
        "body": body_name,
        "embedding": next(name for name, part in body.named_modules() if part is hf_model.get_input_embeddings()),
        "layers": layers_name,
        "norm_final": norms[-1],
        "rotary": next((name for name, part in body.named_children() if "rotary" in name), ""),
        "q": _under(attention, _leaf(block, Q)),
        "k": _under(attention, _leaf(block, K)),
        "v": _under(attention, _leaf(block, V)),
        "qkv": _under(attention, fused),
        "o": _under(attention, _leaf(block, WRITE)),
        "norm_q": _under(attention, _leaf(block, NORM_Q)),
        "norm_k": _under(attention, _leaf(block, NORM_K)),
        "w_in": _under(mlp, _leaf(feed, IN)),
        "w_gate": _under(mlp, _leaf(feed, GATE)),
        "gate_up": _under(mlp, _leaf(feed, GATE_UP)),
        "w_out": _under(mlp, _leaf(feed, OUT)) or "no.matrix",
        "experts": experts,
    }
    before, after = _norms_of(layer)
    parallel = before["norm_attention"] == before["norm_mlp"] != "" or bool(
        getattr(config, "use_parallel_residual", False) or getattr(config, "parallel_attn", False)
    )
    kind, offset = _kind_of_norm(getattr(body, norms[-1]), config)
    norm_q = _leaf(block, NORM_Q)
    scale = getattr(getattr(block, norm_q), "weight", None) if norm_q else None
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for qkv_by in ("kind", "group") if fused else ("kind",):
        for pairs in ("halves", "neighbours") if places["rotary"] else ("halves",):
            yield Family(
                {config.model_type: config.model_type},
                WeightMap(**places, **before, **after, qkv_by=qkv_by),  # pyright: ignore[reportArgumentType]
                norm=kind,  # pyright: ignore[reportArgumentType]
                norm_offset=offset,
                parallel=parallel,
                rotary_pairs=pairs,  # pyright: ignore[reportArgumentType]
                norm_across_heads=scale is not None and scale.dim() == 1 and scale.numel() > d_head,
                turned=_turned,
                not_by_hooks=AFTER_NORM_BY_HOOKS if after["norm_after_attention"] else "",
            )


def _norms_of(layer: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The norms before attention and MLP, and those after."""
    names = [name for name, part in layer.named_children() if _is_norm(part)]
    after_attention, after_mlp = _first_of(AFTER_ATTENTION, names), _first_of(AFTER_MLP, names)
    if len(names) >= 4:
        before_mlp = next(name for name in BEFORE_MLP if name in names and name != after_attention)
        return (
            {"norm_attention": names[0], "norm_mlp": before_mlp},
            {"norm_after_attention": after_attention, "norm_after_mlp": after_mlp},
        )
    none = {"norm_after_attention": "", "norm_after_mlp": ""}
    if after_attention and after_mlp:
        return {"norm_attention": "", "norm_mlp": ""}, {"norm_after_attention": after_attention, "norm_after_mlp": after_mlp}
    return {"norm_attention": names[0], "norm_mlp": names[-1]}, none


@torch.no_grad()
def _kind_of_norm(module: Any, config: Any) -> tuple[str, float]:
    """Which norm a module computes, and what it adds to its stored scale: found by giving it numbers."""
    weight: Tensor = next(module.parameters())
    x = torch.linspace(-1.0, 2.0, config.hidden_size, device=weight.device, dtype=weight.dtype)[None]
    given, bias = module(x), getattr(module, "bias", None)
    centred = x - x.mean(-1, keepdim=True)
    for kind, y in (("rms", x), ("layer", centred)):
        normed = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True))
        for offset in (0.0, 1.0):
            guess = normed * (offset + weight) + (0.0 if bias is None else bias)
            if torch.allclose(given, guess, atol=1e-2 if weight.dtype.itemsize == 2 else 1e-3):
                return kind, offset
    raise ValueError("neither a layer norm nor a root-mean-square norm")


def _turned(config: Any, layer: int) -> bool:
    kinds = getattr(config, "no_rope_layers", None)
    return kinds is None or bool(kinds[layer])


def _is_norm(part: nn.Module) -> bool:
    return "norm" in type(part).__name__.lower()


def _leaf(part: Any, names: tuple[str, ...]) -> str:
    children = {} if part is None else dict(part.named_children())
    return next((name for name in names if name in children), "")


def _under(parent: str, name: str) -> str:
    return f"{parent}.{name}" if name else ""


def _first_of(names: tuple[str, ...], given: list[str]) -> str:
    return next((name for name in names if name in given), "")
