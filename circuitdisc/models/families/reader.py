"""Read a Hugging Face model by its family's declaration: the switches into a `ModelSpec`, the weights into `Weights`.

Everything is a view: the cut model shares its storage with the Hugging Face module, so that weights are held once. Copied are
norms whose stored scale has an offset, and in architectures that scale what is written (Granite) the matrices that write.
H heads, D residual width, K head width, M MLP width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitdisc.errors import BadModel
from circuitdisc.models.families.family import Family, Scales, WeightMap
from circuitdisc.models.weights import NO_NORM, LayerWeights, ModelSpec, NormWeights, Weights
from circuitdisc.models.wording import some_names

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
LENGTHS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
UNTOLD_LENGTH = 2048  # of models whose configuration names no longest prompt


Lend = Callable[[Any], AbstractContextManager[Any]]
Keep = Callable[[Any], Any]


def read_module(hf_model: Any, family: Family, lend: Lend = nullcontext, keep: Keep | None = None) -> tuple[ModelSpec, Weights]:
    """Specification and weights of a loaded model.

    Args:
        lend: puts the precision that a part runs in into it while the part is read, where weights stay in their files.
        keep: what is kept of a layer's weights, and in the end of all; None: everything, and all parameters must have a place.

    Raises:
        BadModel: the model has what the family cannot say, or parameters that the family has no place for.
    """
    config = hf_model.config.get_text_config()
    if reason := family.refused(config):
        raise BadModel(reason)
    return _Reader(hf_model, config, family).read(lend, keep)


class _Reader:
    def __init__(self, hf_model: Any, config: Any, family: Family) -> None:
        self.hf_model, self.config, self.family = hf_model, config, family
        self.layout: WeightMap = family.layout_of(config)
        self.body = part(hf_model, self.layout.body)
        self.scales: Scales = family.scales(config)
        self.layers = part(self.body, self.layout.layers)
        self.n_heads: int = config.num_attention_heads
        self.d_head = int(_first(config, ("head_dim",)) or config.hidden_size // self.n_heads)

    def read(self, lend: Lend, keep: Keep | None) -> tuple[ModelSpec, Weights]:
        layout, head = self.layout, self.hf_model.get_output_embeddings()
        frequencies, rotary_scale, rotary, longest = self._rotary()
        bias = self.family.key_bias(self.config)
        layers = []
        for layer in self.layers:
            with lend(layer):
                block = self._layer(layer)
                layers.append(block if keep is None else keep(block))
        beside = [part(self.body, name) for name in (layout.norm_embedding, layout.norm_final) if name]
        with lend(nn.ModuleList([*beside, head])):
            weights = Weights(
                W_E=part(self.body, layout.embedding).weight,
                W_pos=part(self.body, layout.positions).weight[layout.positions_from :] if layout.positions else None,
                norm_embedding=self._norm(self.body, layout.norm_embedding),
                layers=tuple(layers),
                norm_final=_scaled_norm(self._norm(self.body, layout.norm_final), self.scales.logits),
                W_U=head.weight.t(),
                b_U=_scaled(getattr(head, "bias", None), self.scales.logits),
                inverse_frequencies=frequencies,
                key_bias=None if bias is None else bias.to(head.weight.device),
            )
            spec = self._spec(weights, rotary_scale, rotary, longest)
            if keep is not None:
                return spec, keep(weights)
        self._check_all_read(weights)
        return spec, weights

    def _spec(self, weights: Weights, rotary_scale: float, rotary: tuple[int | None, ...], longest: int | None) -> ModelSpec:
        config, family, block = self.config, self.family, weights.layers[0]
        n_layers = len(weights.layers)
        n_ctx = int(_first(config, LENGTHS) or UNTOLD_LENGTH)
        return ModelSpec(
            n_layers=n_layers,
            n_heads=self.n_heads,
            n_kv_heads=block.W_K.shape[0],
            d_model=weights.W_E.shape[1],
            d_head=block.W_Q.shape[2],
            d_vocab=weights.W_E.shape[0],
            d_vocab_out=weights.W_U.shape[1],
            n_ctx=n_ctx if longest is None else min(n_ctx, longest),
            norm=family.norm,
            eps=float(_first(config, EPSILONS) or self._epsilon()),
            activation=family.activation or _first(config, ACTIVATIONS),
            attn_scale=tuple(self._attention_scale(layer) for layer in self.layers),
            parallel=family.parallel if isinstance(family.parallel, bool) else family.parallel(config),
            window=sliding_windows(config, n_layers),
            score_softcap=_first(config, ("attn_logit_softcapping",)),
            logit_softcap=_first(config, ("final_logit_softcapping",)),
            embed_scale=float(self.scales.embedding),
            rotary_scale=rotary_scale,
            rotary=rotary,
            rotary_pairs=family.rotary_pairs,
            norm_across_heads=family.norm_across_heads and block.norm_q is not None,
        )

    # --- one layer ---------------------------------------------------------------------------------------------------

    def _layer(self, layer: nn.Module) -> LayerWeights:
        layout, scale = self.layout, self.scales.residual
        (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = self._queries_keys_values(layer)
        o = part(layer, layout.o)
        block = LayerWeights(
            W_Q=W_Q,
            W_K=W_K,
            W_V=W_V,
            b_Q=b_Q,
            b_K=b_K,
            b_V=b_V,
            W_O=_scaled(outputs_first(o), scale).t().unflatten(0, (self.n_heads, -1)),
            b_O=_scaled(o.bias, scale),
            norm_attention=self._norm(layer, layout.norm_attention),
            norm_mlp=self._norm(layer, layout.norm_mlp),
            norm_q=self._head_norm(layer, layout.norm_q, W_Q.shape[0]),
            norm_k=self._head_norm(layer, layout.norm_k, W_K.shape[0]),
            norm_after_attention=self._norm_after(layer, layout.norm_after_attention),
            norm_after_mlp=self._norm_after(layer, layout.norm_after_mlp),
        )
        return self._with_mlp(block, layer)

    def _queries_keys_values(self, layer: nn.Module) -> list[tuple[Float[Tensor, "n D K"], Float[Tensor, "n K"] | None]]:
        layout = self.layout
        if not layout.qkv:
            linears = [part(layer, name) for name in (layout.q, layout.k, layout.v)]
            return [self._heads(outputs_first(linear), linear.bias) for linear in linears]
        fused = part(layer, layout.qkv)
        weight, bias = outputs_first(fused), fused.bias
        rows = weight.shape[0] // self.d_head  # of heads, keys and values
        groups = (rows - self.n_heads) // 2
        if layout.qkv_by == "kind":
            bounds = (0, self.n_heads, self.n_heads + groups, rows)
            cuts = [slice(first * self.d_head, stop * self.d_head) for first, stop in pairwise(bounds)]
            return [self._heads(weight[cut], None if bias is None else bias[cut]) for cut in cuts]
        by_group = weight.view(groups, rows // groups, self.d_head, -1)
        biases = None if bias is None else bias.view(groups, rows // groups, self.d_head)
        taken = (slice(0, -2), slice(-2, -1), slice(-1, None))
        return [
            (by_group[:, rows].flatten(0, 1).transpose(1, 2), None if biases is None else biases[:, rows].flatten(0, 1))
            for rows in taken
        ]

    def _heads(
        self, weight: Float[Tensor, "HK D"], bias: Float[Tensor, "HK"] | None
    ) -> tuple[Float[Tensor, "H D K"], Float[Tensor, "H K"] | None]:
        split = weight.unflatten(0, (-1, self.d_head)).transpose(1, 2)
        return split, None if bias is None else bias.unflatten(0, (-1, self.d_head))

    def _with_mlp(self, block: LayerWeights, layer: nn.Module) -> LayerWeights:
        layout, scale = self.layout, self.scales.residual
        out = part(layer, layout.w_out, missing=None)
        if out is None:
            experts = part(layer, layout.experts)
            width = _first(self.config, ("moe_intermediate_size", "intermediate_size")) * (
                _first(self.config, ("num_experts_per_tok",)) or 1
            )
            return replace(block, experts=experts if scale == 1.0 else ScaledOutput(experts, scale), d_experts=width)
        if layout.gate_up:
            fused = part(layer, layout.gate_up)
            gate, up = outputs_first(fused).t().chunk(2, dim=1)
            b_gate, b_in = (None, None) if fused.bias is None else fused.bias.chunk(2)
        else:
            w_in, w_gate = part(layer, layout.w_in), part(layer, layout.w_gate, missing=None) if layout.w_gate else None
            up, b_in = outputs_first(w_in).t(), w_in.bias
            gate, b_gate = (None, None) if w_gate is None else (outputs_first(w_gate).t(), w_gate.bias)
        return replace(
            block,
            W_in=up,
            W_gate=gate,
            W_out=_scaled(outputs_first(out), scale).t(),
            b_in=b_in,
            b_gate=b_gate,
            b_out=_scaled(out.bias, scale),
        )

    # --- norms, positions --------------------------------------------------------------------------------------------

    def _norm(self, parent: Any, name: str) -> NormWeights:
        module = part(parent, name, missing=None) if name else None
        return NO_NORM if module is None else self._norm_weights(module)

    def _norm_weights(self, module: Any) -> NormWeights:
        scale, shift, offset = getattr(module, "weight", None), getattr(module, "bias", None), self.family.norm_offset
        return NormWeights(scale if scale is None or offset == 0.0 else offset + scale, shift)

    def _norm_after(self, layer: Any, name: str) -> NormWeights | None:
        norm = self._norm(layer, name)
        return _scaled_norm(norm, self.scales.residual) if norm.present else None

    def _head_norm(self, layer: Any, name: str, n: int) -> NormWeights | None:
        """A norm of queries or keys: one scale for all heads [K], or one each [H, K]."""
        norm = self._norm(layer, name)
        if not norm.present:
            return None
        scale = norm.scale
        return replace(norm, scale=scale.reshape(n, -1) if scale is not None and scale.numel() > self.d_head else scale)

    def _epsilon(self) -> float:
        """Of a family whose configuration does not name it."""
        norm: Any = part(self.layers[0], self.layout.norm_attention)
        return float(norm.eps)

    def _attention_scale(self, layer: nn.Module) -> float:
        attention: Any = part(layer, self.layout.o.rpartition(".")[0])
        return float(getattr(attention, "scaling", None) or self.d_head**-0.5)

    def _rotary(self) -> tuple[tuple[Tensor, ...], float, tuple[int | None, ...], int | None]:
        """Frequencies, the scale of cos and sin, which frequencies each layer has, the longest prompt that they hold for."""
        config, n_layers = self.config, len(self.layers)
        turned = [self.family.turned(config, layer) for layer in range(n_layers)]
        module = part(self.body, self.layout.rotary, missing=None) if self.layout.rotary else None
        if self.family.frequencies is not None:
            return (self.family.frequencies(config, self.body),), 1.0, (), None
        if module is None or self.family.key_bias(config) is not None:
            return (), 1.0, (), None
        if hasattr(module, "inv_freq"):
            which: tuple[int | None, ...] = () if all(turned) else tuple(0 if yes else None for yes in turned)
            first = getattr(module, "original_inv_freq", module.inv_freq)  # a long prompt's run writes others over `inv_freq`
            return (first.to(torch.float32),), float(module.attention_scaling), which, _longest(module, config)
        kinds = sorted(set(config.layer_types))
        scales = {float(getattr(module, f"{kind}_attention_scaling")) for kind in kinds}
        changing = {module.rope_type[kind] for kind in kinds} & {"dynamic", "longrope"}
        if len(scales) > 1 or changing:
            raise BadModel(f"rotary positions with several scales ({scales}) or of type {changing} by layer are not supported")
        frequencies = tuple(getattr(module, f"{kind}_inv_freq").to(torch.float32) for kind in kinds)
        which = tuple(kinds.index(kind) if yes else None for kind, yes in zip(config.layer_types, turned, strict=True))
        return frequencies, scales.pop(), which, None

    # --- what was read -----------------------------------------------------------------------------------------------

    def _check_all_read(self, weights: Weights) -> None:
        """Every parameter of the model has its place: what a family does not know of, it must not leave out.

        Raises:
            BadModel: some have none.
        """
        read = {tensor.untyped_storage().data_ptr() for tensor in _tensors(weights)}
        shares = self.family.norm_offset == 0.0 and self.scales == Scales() and self.layout.qkv_by == "kind"
        copied = set() if shares else self._copied()
        left = [
            name
            for name, parameter in self.hf_model.named_parameters()
            if parameter.untyped_storage().data_ptr() not in read | copied
            and parameter.numel()
            and not name.startswith(self.layout.unread)
            and "parametrizations." not in name  # read as the weight that comes out
        ]
        if left:
            raise BadModel(
                f"{len(left)} of its parameters have no place in the family ({some_names(left)}): it would be cut wrongly"
            )

    def _copied(self) -> set[int]:
        """Storages of what the reader does not share but copies: norms with an offset, matrices that write."""
        layout, norms = (
            self.layout,
            ("norm_q", "norm_k", "norm_attention", "norm_mlp", "norm_after_attention", "norm_after_mlp"),
        )
        parts = [part(self.body, layout.norm_final), self.hf_model.get_output_embeddings()]
        for layer in self.layers:
            names = [getattr(layout, name) for name in (*norms, "qkv", "o", "w_out")]
            parts += [part(layer, name, missing=None) for name in names if name]
        tensors = [tensor for module in parts if module is not None for tensor in module.parameters()]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}


class ScaledOutput(nn.Module):
    """A module whose output is multiplied with a constant."""

    def __init__(self, module: Any, scale: float) -> None:
        super().__init__()
        self.module, self.scale = module, scale

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x)
        return (out[0] if isinstance(out, tuple) else out) * self.scale


def part(parent: Any, name: str, **missing: Any) -> Any:
    """A part by its dotted name; with `missing=`, that for one that is not there (or is None)."""
    for word in name.split("."):
        parent = getattr(parent, word, None) if missing else getattr(parent, word)
        if parent is None:
            if missing:
                return missing["missing"]
            raise AttributeError(f"it has no {name}")
    return parent


def outputs_first(linear: Any) -> Float[Tensor, "Out In"]:
    """A linear layer's weight, outputs first; GPT-2's `Conv1D` holds inputs first."""
    return linear.weight if _is_linear(linear) else linear.weight.t()


def _is_linear(module: Any) -> bool:
    return type(module).__name__ != "Conv1D"


def sliding_windows(config: Any, n_layers: int) -> tuple[int | None, ...] | None:
    """Each layer's attention window, from a configuration with `sliding_window` and perhaps `layer_types`.

    A key in a file that the configuration's own class does not know is one that the model does not read, either: Llama has no
    window, whatever its config.json says.
    """
    window = getattr(config, "sliding_window", None)
    if window is None or not hasattr(type(config), "sliding_window"):
        return None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _longest(module: Any, config: Any) -> int | None:
    """Rotary positions of some types are others in prompts beyond a length; up to it they are as they begin.

    Ministral 3 scales queries beyond such a length.
    """
    if module.rope_type == "longrope" or "llama_4_scaling_beta" in config.rope_parameters:
        stored = config.rope_parameters.get("original_max_position_embeddings")
        return int(stored or getattr(config, "original_max_position_embeddings", config.max_position_embeddings))
    return None  # `dynamic` begins to change at the longest prompt of the configuration


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _scaled(tensor: Any, scale: float) -> Any:
    return tensor if tensor is None or scale == 1.0 else tensor * scale


def _scaled_norm(norm: NormWeights, scale: float) -> NormWeights:
    return replace(norm, scale=_scaled(norm.scale, scale), shift=_scaled(norm.shift, scale))


def _tensors(weights: Any) -> Iterator[Tensor]:
    if isinstance(weights, Tensor):
        yield weights
    elif isinstance(weights, nn.Module):
        yield from weights.parameters()
    elif isinstance(weights, tuple):
        for value in weights:
            yield from _tensors(value)
    elif isinstance(weights, Weights | LayerWeights | NormWeights):
        for value in vars(weights).values():
            yield from _tensors(value)
