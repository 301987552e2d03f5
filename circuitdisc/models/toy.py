"""The toys of the field: small transformers in TransformerLens weight names, from `config.json` + `model.safetensors`.

Course exercises, tracr programs and hand-made models come in this form: attention-only, without norm, ReLU, bidirectional,
with an attention scale and an output vocabulary of their own. `ToyTransformer` is the whole model as one plain module: it can
be trained, and its logits are what the cut model is checked against at load.

`config.json` takes TransformerLens's field names: n_layers, n_heads, d_model, d_head, d_vocab, n_ctx; optional d_mlp, act_fn,
attn_only, normalization_type (`LN`, `LNPre`, `RMS`, `RMSPre` or null), d_vocab_out, attention_dir, attn_scale (scores are
divided by it), use_attn_scale, n_key_value_heads, positional_embedding_type (`standard`, `rotary`, `none`), rotary_base,
rotary_dim, gated_mlp, parallel_attn_mlp, eps.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitdisc.errors import BadModel, UnknownName
from circuitdisc.models.stored import is_float
from circuitdisc.models.weights import ACTIVATIONS, LayerWeights, ModelSpec, NormWeights, Weights
from circuitdisc.models.wording import some_names

NORMS = {None: None, "LN": "layer", "LNPre": "layer", "RMS": "rms", "RMSPre": "rms"}
IGNORED = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")  # buffers, not weights


Bound = tuple[type | tuple[type, ...], float | None]
_NUMBER = (int, float)
_BOUNDS: dict[str, Bound] = {  # field -> type, lowest value
    **dict.fromkeys(("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "n_ctx"), (int, 1)),
    **dict.fromkeys(("d_mlp", "d_vocab_out", "n_key_value_heads", "rotary_dim"), (int, 1)),
    **dict.fromkeys(("attn_only", "use_attn_scale", "gated_mlp", "parallel_attn_mlp"), (bool, None)),
    **dict.fromkeys(("attn_scale", "eps"), (_NUMBER, 0)),
    "rotary_base": (_NUMBER, 1),
    **dict.fromkeys(("act_fn", "normalization_type", "positional_embedding_type", "attention_dir"), (str, None)),
}
_WANTED = {int: "a whole number from {low}", bool: "true or false", _NUMBER: "a number from {low}", str: "a word"}
MOST = 2**31  # what any size may be


def _within(value: Any, low: float | None) -> bool:
    return low is None or (math.isfinite(value) and low <= value <= MOST)


@dataclass(frozen=True)
class ToyConfig:
    """A toy's `config.json`; the module's docstring says what each field means."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int
    d_mlp: int | None = None
    act_fn: str | None = None
    attn_only: bool = False
    normalization_type: str | None = None
    d_vocab_out: int | None = None
    attention_dir: str = "causal"
    attn_scale: float | None = None
    use_attn_scale: bool = True
    n_key_value_heads: int | None = None
    positional_embedding_type: str = "standard"
    rotary_base: float = 10000.0
    rotary_dim: int | None = None
    gated_mlp: bool = False
    parallel_attn_mlp: bool = False
    eps: float = 1e-5

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ToyConfig":
        """Read `config.json`; fields that do not change what the model computes are passed over.

        Raises:
            BadModel: a needed field is missing, or a value is not supported.
        """
        data = dict(data)
        if "normalization" in data:  # tracr's exports use the short name
            data.setdefault("normalization_type", data.pop("normalization"))
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        for name in ("d_vocab_out", "attn_scale"):
            if known.get(name) == -1:  # TransformerLens's word for its default
                known[name] = None
        try:
            config = cls(**known)
        except TypeError as error:
            raise BadModel(f"config.json is not that of a toy model: {error}") from error
        config._check(data)
        return config

    def _check(self, data: Mapping[str, Any]) -> None:
        for name, (kind, low) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None and self.__dataclass_fields__[name].default is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or not _within(value, low):
                raise BadModel(f"config.json: {name}={str(value)[:40]!r} cannot be used; {_WANTED[kind].format(low=low)}")
        if self.n_heads % self.kv_heads:
            raise BadModel(f"config.json: n_heads={self.n_heads} is no multiple of n_key_value_heads={self.kv_heads}")
        if self.rotary_width % 2 or self.rotary_width > self.d_head:
            raise BadModel(f"config.json: rotary_dim={self.rotary_width} must be even and at most d_head={self.d_head}")
        if self.normalization_type not in NORMS:
            raise UnknownName("normalization_type", str(self.normalization_type), [str(name) for name in NORMS])
        if self.has_mlp and self.act_fn not in ACTIVATIONS:
            raise UnknownName("act_fn", str(self.act_fn), ACTIVATIONS)
        if self.positional_embedding_type not in ("standard", "rotary", "none"):
            raise UnknownName("positional_embedding_type", self.positional_embedding_type, ["standard", "rotary", "none"])
        if self.attention_dir not in ("causal", "bidirectional"):
            raise UnknownName("attention_dir", self.attention_dir, ["causal", "bidirectional"])
        for name in ("rotary_adjacent_pairs", "use_local_attn", "scale_attn_by_inverse_layer_idx", "num_experts"):
            if data.get(name):
                raise BadModel(f"config.json: {name} is not supported in toy models")

    @property
    def has_mlp(self) -> bool:
        return not self.attn_only and self.d_mlp is not None

    @property
    def kv_heads(self) -> int:
        return self.n_key_value_heads or self.n_heads

    @property
    def vocab_out(self) -> int:
        return self.d_vocab_out or self.d_vocab

    @property
    def score_divisor(self) -> float:
        if not self.use_attn_scale:
            return 1.0
        return self.attn_scale if self.attn_scale is not None and self.attn_scale > 0 else math.sqrt(self.d_head)

    @property
    def rotary_width(self) -> int:
        return self.rotary_dim or self.d_head

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """TransformerLens name -> shape of every weight."""
        D, H, K = self.d_model, self.n_heads, self.d_head
        group = "_" if self.n_key_value_heads not in (None, self.n_heads) else ""
        shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (self.d_vocab, D)}
        if self.positional_embedding_type == "standard":
            shapes["pos_embed.W_pos"] = (self.n_ctx, D)
        for layer in range(self.n_layers):
            block: dict[str, tuple[int, ...]] = {"attn.W_Q": (H, D, K), "attn.b_Q": (H, K)}
            for name in ("K", "V"):
                block |= {f"attn.{group}W_{name}": (self.kv_heads, D, K), f"attn.{group}b_{name}": (self.kv_heads, K)}
            block |= {"attn.W_O": (H, K, D), "attn.b_O": (D,)}
            if self.has_mlp and self.d_mlp is not None:
                block |= {"mlp.W_in": (D, self.d_mlp), "mlp.b_in": (self.d_mlp,)}
                block |= {"mlp.W_gate": (D, self.d_mlp)} if self.gated_mlp else {}
                block |= {"mlp.W_out": (self.d_mlp, D), "mlp.b_out": (D,)}
            for norm in ("ln1", "ln2") if self.has_mlp else ("ln1",):
                block |= {f"{norm}.{name}": shape for name, shape in self._norm_shapes().items()}
            shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= {f"ln_final.{name}": shape for name, shape in self._norm_shapes().items()}
        return shapes | {"unembed.W_U": (D, self.vocab_out), "unembed.b_U": (self.vocab_out,)}

    def _norm_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"LN": {"w": (self.d_model,), "b": (self.d_model,)}, "RMS": {"w": (self.d_model,)}}.get(
            self.normalization_type or "", {}
        )


class ToyTransformer(nn.Module):
    """The whole toy as one module, written the plain way: one residual stream, all heads at once.

    Args:
        config: its shape.
        seed: of the random weights (normal with standard deviation 1 / sqrt(inputs); biases 0, norm scales 1).
    """

    def __init__(self, config: ToyConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        for name, shape in config.weight_shapes().items():
            leaf = name.split(".")[-1]
            if leaf.startswith(("b", "_b")):
                value = torch.zeros(shape)
            elif leaf == "w":
                value = torch.ones(shape)
            else:
                fan_in = (
                    shape[0] * shape[1]
                    if leaf == "W_O"
                    else shape[-1]
                    if name in ("embed.W_E", "pos_embed.W_pos")
                    else shape[-2]
                )
                value = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
            self._register(name, value)

    def _register(self, name: str, value: Tensor) -> None:
        module: nn.Module = self
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(leaf, nn.Parameter(value))

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def forward(self, tokens: Int[Tensor, "B T"], attention_mask: Tensor | None = None) -> Float[Tensor, "B T V"]:
        """Logits at every position.

        Args:
            attention_mask: 0 at padding, as in Hugging Face models. [B, T]
        """
        config, weights = self.config, self._weights()
        is_token = torch.ones_like(tokens) if attention_mask is None else attention_mask
        positions = (is_token.cumsum(1) - 1).clamp(min=0)
        x = weights["embed.W_E"][tokens]
        if config.positional_embedding_type == "standard":
            x = x + weights["pos_embed.W_pos"][positions]
        for layer in range(config.n_layers):
            block = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
            attention = self._attention(self._norm(x, block, "ln1"), block, is_token.bool(), positions)
            after = x + attention
            if config.has_mlp:
                seen = x if config.parallel_attn_mlp else after
                after = after + self._mlp(self._norm(seen, block, "ln2"), block)
            x = after
        return self._norm(x, weights, "ln_final") @ weights["unembed.W_U"] + weights["unembed.b_U"]

    def _norm(self, x: Tensor, block: dict[str, Tensor], name: str) -> Tensor:
        kind = NORMS[self.config.normalization_type]
        if kind is None:
            return x
        centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
        normed = centred / (centred.pow(2).mean(-1, keepdim=True) + self.config.eps).sqrt()
        return normed * block.get(f"{name}.w", torch.ones(())) + block.get(f"{name}.b", torch.zeros(()))

    def _attention(self, x: Tensor, block: dict[str, Tensor], is_token: Tensor, positions: Tensor) -> Tensor:
        config = self.config
        group = "_" if "attn._W_K" in block else ""
        q = torch.einsum("btd,hdk->bhtk", x, block["attn.W_Q"]) + block["attn.b_Q"][:, None]
        k = torch.einsum("btd,hdk->bhtk", x, block[f"attn.{group}W_K"]) + block[f"attn.{group}b_K"][:, None]
        v = torch.einsum("btd,hdk->bhtk", x, block[f"attn.{group}W_V"]) + block[f"attn.{group}b_V"][:, None]
        k, v = (part.repeat_interleave(config.n_heads // config.kv_heads, dim=1) for part in (k, v))
        if config.positional_embedding_type == "rotary":
            q, k = self._rotate(q, positions), self._rotate(k, positions)
        scores = q @ k.transpose(-1, -2) / config.score_divisor
        allowed = is_token[:, None, None, :].expand_as(scores).clone()
        if config.attention_dir == "causal":
            allowed &= torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        allowed |= torch.eye(scores.shape[-1], dtype=torch.bool, device=x.device)
        z = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v
        return torch.einsum("bhtk,hkd->btd", z, block["attn.W_O"]) + block["attn.b_O"]

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None, :, None] * rotary_frequencies(self.config)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        half = self.config.rotary_width // 2
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def _mlp(self, x: Tensor, block: dict[str, Tensor]) -> Tensor:
        activation = ACTIVATIONS[self.config.act_fn or ""]
        hidden = x @ block["mlp.W_in"] + block["mlp.b_in"]
        gated = activation(x @ block["mlp.W_gate"]) * hidden if "mlp.W_gate" in block else activation(hidden)
        return gated @ block["mlp.W_out"] + block["mlp.b_out"]


def rotary_frequencies(config: ToyConfig) -> Float[Tensor, "Krot2"]:
    width = config.rotary_width
    return config.rotary_base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)


def check_weights(tensors: Mapping[str, Tensor], config: ToyConfig) -> dict[str, Tensor]:
    """The weights that the configuration asks for. Biases of a kind that no layer has are zero.

    Raises:
        BadModel: weights are missing, have the wrong shape, are no floating-point numbers, or not those of this architecture.
    """
    if config.n_layers > len(tensors):
        raise BadModel(f"config.json asks for {config.n_layers:,} layers, and there are {len(tensors):,} weights in all")
    shapes = config.weight_shapes()
    foreign = [name for name in tensors if name not in shapes and not name.endswith(IGNORED)]
    if foreign:
        raise BadModel(f"weights that this configuration has no place for: {some_names(foreign)}")
    kinds = {_kind(name) for name in tensors}
    missing = [name for name in shapes if name not in tensors and (not _is_bias(name) or _kind(name) in kinds)]
    if missing:
        raise BadModel(
            f"{len(missing)} weights are missing: {some_names(missing)}; {missing[0]} should have shape {shapes[missing[0]]}"
        )
    for name in sorted(shapes.keys() & tensors.keys()):
        if tuple(tensors[name].shape) != shapes[name]:
            raise BadModel(f"weight {name} has shape {tuple(tensors[name].shape)}, config.json asks for {shapes[name]}")
    whole = [name for name in shapes.keys() & tensors.keys() if not is_float(tensors[name])]
    if whole:
        raise BadModel(
            f"integers, booleans or 8-bit numbers where weights should be: {some_names(whole)}; save them as float32"
        )
    dtype = tensors["embed.W_E"].dtype
    return {name: tensors[name] if name in tensors else torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def _is_bias(name: str) -> bool:
    return name.split(".")[-1].startswith(("b", "_b"))


def _kind(name: str) -> str:
    """A weight's name without its layer."""
    return re.sub(r"^blocks\.\d+\.", "", name)


def translate(toy: ToyTransformer) -> tuple[ModelSpec, Weights]:
    """Specification and weights of a toy, for `Components`."""
    config, weights = toy.config, dict(toy.named_parameters())
    spec = ModelSpec(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.kv_heads,
        d_model=config.d_model,
        d_head=config.d_head,
        d_vocab=config.d_vocab,
        d_vocab_out=config.vocab_out,
        n_ctx=config.n_ctx,
        norm=NORMS[config.normalization_type],  # pyright: ignore[reportArgumentType]  (checked in ToyConfig)
        eps=config.eps,
        activation=config.act_fn if config.has_mlp else None,
        attn_scale=(1.0 / config.score_divisor,) * config.n_layers,
        parallel=config.parallel_attn_mlp,
        causal=config.attention_dir == "causal",
    )
    rotary = config.positional_embedding_type == "rotary"
    return spec, Weights(
        W_E=weights["embed.W_E"],
        W_pos=weights.get("pos_embed.W_pos"),
        layers=tuple(_layer(weights, f"blocks.{layer}.") for layer in range(config.n_layers)),
        norm_final=_norm(weights, "ln_final"),
        W_U=weights["unembed.W_U"],
        b_U=weights["unembed.b_U"],
        inverse_frequencies=(rotary_frequencies(config).to(weights["embed.W_E"].device),) if rotary else (),
    )


def _norm(weights: Mapping[str, Tensor], name: str) -> NormWeights:
    return NormWeights(weights.get(f"{name}.w"), weights.get(f"{name}.b"))


def _layer(weights: Mapping[str, Tensor], prefix: str) -> LayerWeights:
    def get(name: str) -> Tensor:
        return weights[prefix + name] if prefix + name in weights else weights[prefix + name.replace("attn.", "attn._")]

    return LayerWeights(
        W_Q=get("attn.W_Q"),
        W_K=get("attn.W_K"),
        W_V=get("attn.W_V"),
        W_O=get("attn.W_O"),
        b_Q=get("attn.b_Q"),
        b_K=get("attn.b_K"),
        b_V=get("attn.b_V"),
        b_O=get("attn.b_O"),
        norm_attention=_norm(weights, prefix + "ln1"),
        norm_mlp=_norm(weights, prefix + "ln2"),
        W_in=weights.get(prefix + "mlp.W_in"),
        W_gate=weights.get(prefix + "mlp.W_gate"),
        W_out=weights.get(prefix + "mlp.W_out"),
        b_in=weights.get(prefix + "mlp.b_in"),
        b_out=weights.get(prefix + "mlp.b_out"),
    )
