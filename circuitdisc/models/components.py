"""A transformer cut at its senders and receivers: every node as a function of its own inputs, straight from the weights.

One class serves all families that differ only in switches (`ModelSpec`): kind of norm, learned, rotary or linear positions,
grouped queries, norms of queries and keys, gated MLPs, experts, parallel blocks, softcaps, norms after attention. Each family's
declaration (`families/`) says which switch and which weight is where; `Weights` follow the TransformerLens layout.

Shape letters: n heads asked for, C candidates (rows that differ in their edges), B examples, T positions, D residual width,
H heads, K head width, M MLP width, V vocabulary. An input of n heads at once is [n, C, B, T, D]; axes of size 1 broadcast.

What is a node's output: a head's is its pattern times its values (with b_V) times W_O; b_O belongs to no head and is always
kept. An MLP's output includes its output bias. Nothing is folded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from circuitdisc.errors import BadModel
from circuitdisc.graph import QKV
from circuitdisc.models.backend import Capability
from circuitdisc.models.backward import PLAIN, BackwardRule
from circuitdisc.models.frame import Frame
from circuitdisc.models.weights import ACTIVATIONS, ModelSpec, NormWeights, Weights

LATER = {"rotary": (), "rotary_pairs": "halves", "norm_across_heads": False}
"""Switches that runs of earlier versions do not know, and what they have in the models of those runs."""


class Components:
    """The nodes of one model as functions.

    Models with a norm after attention (Gemma, OLMo 2) couple the heads of a layer: the norm divides their sum by its root mean
    square. So that heads stay separate senders, that one number a position (`Frame.head_scale`) is frozen at its value in
    the full model's run; the full circuit is then exactly the model, and a head's output depends on its own inputs alone.
    The same holds for norms of queries and keys that go across heads (`Frame.turn_scale`).
    """

    capabilities: frozenset[Capability] = frozenset(("partial runs", "patterns", "interventions", "gradients"))
    how, n_processes = "runs from its weights", 1

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        self.d_model, self.d_head, self.causal = spec.d_model, spec.d_head, spec.causal
        self.heads_per_group = spec.n_heads // spec.n_kv_heads
        for layer, block in enumerate(weights.layers):
            if block.norm_after_attention is not None and block.b_O is not None:
                raise BadModel(f"layer {layer} has both an attention output bias and a norm after attention: not supported")

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.W_E.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.W_E.device

    @property
    def freezes_scales(self) -> bool:
        """Whether norms couple the heads of a layer, so that runs need the scales of an uncut run (`Frame`)."""
        return self.spec.norm_across_heads or any(block.norm_after_attention is not None for block in self.weights.layers)

    def configuration(self) -> dict[str, Any]:
        """The model's switches; those that came later only where they are set, so that what was kept of a model is its own."""
        return {name: value for name, value in asdict(self.spec).items() if name not in LATER or value != LATER[name]}

    # --- inputs ------------------------------------------------------------------------------------------------------

    def frame(self, is_token: Bool[Tensor, "B T"], position_ids: Int[Tensor, "B T"]) -> Frame:
        """Masks and rotary angles of a batch. Padding is never attended to; a padded query attends to itself alone."""
        length = is_token.shape[1]
        distance = torch.arange(length, device=is_token.device)[:, None] - torch.arange(length, device=is_token.device)
        itself = distance == 0
        allowed = {}
        for window in set(self.spec.window or (None,)):
            reach = (distance >= 0) if self.spec.causal else torch.ones_like(itself)
            if window is not None:
                reach = reach & (distance < window)
            allowed[window] = (reach & is_token[:, None, :]) | itself
        angles = tuple(self._angles(position_ids, frequencies) for frequencies in self.weights.inverse_frequencies)
        return Frame(position_ids, allowed, position_ids, angles)

    def _angles(self, position_ids: Int[Tensor, "B T"], frequencies: Float[Tensor, "Krot2"]) -> tuple[Tensor, Tensor]:
        """Cos and sin, computed in float32 at least, as the families' own code has them."""
        angles = position_ids[..., None].to(frequencies.dtype) * frequencies
        neighbours = self.spec.rotary_pairs == "neighbours"
        twice = angles.repeat_interleave(2, -1) if neighbours else torch.cat([angles, angles], dim=-1)
        cos, sin = (turn * self.spec.rotary_scale for turn in (twice.cos(), twice.sin()))
        return cos.to(self.dtype), sin.to(self.dtype)

    def embed(self, tokens: Int[Tensor, "B T"], position_ids: Int[Tensor, "B T"], split: bool) -> Float[Tensor, "E B T D"]:
        """The embedding's senders: token plus position as one (E = 1), or the two apart (E = 2)."""
        token = self._embedded(tokens)
        if self.spec.embed_scale != 1.0:
            token = token * torch.tensor(self.spec.embed_scale, dtype=token.dtype)
        token = self.norm(token, self.weights.norm_embedding)
        position = torch.zeros_like(token) if self.weights.W_pos is None else self.weights.W_pos[position_ids]
        return torch.stack([token, position]) if split else (token + position)[None]

    def _embedded(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.weights.W_E[tokens]

    def constant_before(self, layer: int, mlp: bool = False) -> Float[Tensor, "D"]:
        """Sum of the attention output biases that come before a layer's attention, or its MLP: always kept."""
        last = layer + (1 if mlp and not self.spec.parallel else 0)
        total = torch.zeros(self.spec.d_model, dtype=self.dtype, device=self.device)
        for block in self.weights.layers[:last]:
            if block.b_O is not None:
                total = total + block.b_O
        return total

    # --- attention ---------------------------------------------------------------------------------------------------

    def read(
        self,
        layer: int,
        qkv: QKV,
        heads: Sequence[int],
        x: Float[Tensor, "n C B T D"],
        frame: Frame,
        like: Float[Tensor, "n C B T D"] | None = None,
    ) -> Float[Tensor, "n C B T K"]:
        """Queries, keys or values of these heads from their inputs: norm, projection, norm of queries and keys, rotation.

        Args:
            like: inputs whose norm is used in place of that of x.
        """
        rows = self._rows_of(qkv, heads)
        shared = x.shape[0] == 1 and len(set(rows)) < len(rows)  # heads of a group that read the same are projected once
        chosen = list(dict.fromkeys(rows)) if shared else rows
        projected = self._projected(layer, qkv, chosen, x, like)
        projected = projected if qkv == "v" else self.turn(layer, qkv, chosen, projected, frame)
        return projected[[chosen.index(row) for row in rows]] if shared else projected

    def project(self, layer: int, qkv: QKV, heads: Sequence[int], x: Float[Tensor, "n C B T D"]) -> Float[Tensor, "n C B T K"]:
        """Queries, keys or values of these heads before they are normed and turned."""
        return self._projected(layer, qkv, self._rows_of(qkv, heads), x)

    def projected(self, layer: int, qkv: QKV, normed: Float[Tensor, "... D"]) -> Float[Tensor, "G ... K"]:
        """All of a layer's queries, keys or values before they are normed and turned, as one product; k and v once a group.

        Args:
            normed: what the layer reads, behind its norm.
        """
        weight, bias = self.reading(layer)["qkv".index(qkv)]
        n, D, K = weight.shape
        flat = normed @ weight.permute(1, 0, 2).reshape(D, n * K)
        flat = flat if bias is None else flat + bias.reshape(-1)
        return flat.view(*normed.shape[:-1], n, K).movedim(-2, 0)

    def projected_back(self, layer: int, into: Sequence[Float[Tensor, "H ... K"]]) -> Float[Tensor, "... D"]:
        """Gradient with respect to the normed input of a layer, from those with respect to every head's q, k and v."""
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for (weight, _), gradient in zip(self.reading(layer), into, strict=True):
            n, D, K = weight.shape
            shared = gradient.unflatten(0, (n, -1)).sum(1) if n < gradient.shape[0] else gradient
            flat = shared.movedim(0, -2).reshape(*shared.shape[1:-1], n * K)
            total = total + flat @ weight.permute(1, 0, 2).reshape(D, n * K).T
        return total

    # --- what of a layer this process computes: all of it, here (`models/split.py` splits it) -------------------------------

    @property
    def own_heads(self) -> range:
        """The heads of every layer whose weights are here."""
        return range(self.spec.n_heads)

    def reading(self, layer: int) -> tuple[tuple[Float[Tensor, "G D K"], Float[Tensor, "G K"] | None], ...]:
        """With which matrices and biases these heads read: q, k and v."""
        block = self.weights.layers[layer]
        return (block.W_Q, block.b_Q), (block.W_K, block.b_K), (block.W_V, block.b_V)

    def writing(self, layer: int, heads: Sequence[int] | slice) -> Float[Tensor, "n K D"]:
        """W_O of some heads of a layer, also of those that are elsewhere."""
        W_O = self.weights.layers[layer].W_O
        return W_O[heads] if isinstance(heads, slice) else _rows(W_O, heads)

    def summed(self, shares: Tensor) -> Tensor:
        """The sum over all processes of what each computes."""
        return shares

    def agreed(self, values: Tensor) -> Tensor:
        """Values on which decisions hang, the same to the last bit in all processes."""
        return values

    def _rows_of(self, qkv: QKV, heads: Sequence[int]) -> list[int]:
        return list(heads) if qkv == "q" else [head // self.heads_per_group for head in heads]

    def _projected(self, layer: int, qkv: QKV, rows: list[int], x: Tensor, like: Tensor | None = None) -> Tensor:
        weight, bias = self.reading(layer)["qkv".index(qkv)]
        projected = _batched_matmul(self.norm(x, self.weights.layers[layer].norm_attention, like), _rows(weight, rows))
        return projected if bias is None else projected + _rows(bias, rows)[:, None, None, None, :]

    def turn(
        self,
        layer: int,
        qkv: QKV,
        rows: Sequence[int],
        x: Float[Tensor, "n ... B T K"],
        frame: Frame,
        rule: BackwardRule = PLAIN,
    ) -> Float[Tensor, "n ... B T K"]:
        """Queries or keys as the pattern takes them: normed and turned by their positions, where the model does so.

        Args:
            rows: which of the layer's queries (as many as heads) or keys (as many as groups) x holds.
            rule: of the backward pass.
        """
        block = self.weights.layers[layer]
        norm = block.norm_q if qkv == "q" else block.norm_k
        if norm is not None:
            x = self._normed_heads(x, norm, rows, frame.turn_scale[layer, qkv] if self.spec.norm_across_heads else None, rule)
        which = self.spec.rotary[layer] if self.spec.rotary else 0
        if which is None or not frame.angles:
            return x
        cos, sin = frame.angles[which]
        turning, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        if self.spec.rotary_pairs == "neighbours":
            quarter = torch.stack([-turning[..., 1::2], turning[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = turning.chunk(2, dim=-1)
            quarter = torch.cat([-second, first], dim=-1)
        turned = turning * cos + quarter * sin
        return torch.cat([turned, still], dim=-1) if still.shape[-1] else turned

    def _normed_heads(
        self, x: Tensor, norm: NormWeights, rows: Sequence[int], size: Tensor | None, rule: BackwardRule
    ) -> Tensor:
        """Queries or keys behind their norm: of each head by itself, or with a frozen size of all heads together."""
        scale, shift = norm.scale, norm.shift
        if scale is not None and scale.dim() == 2:  # [H, K]
            scale = scale[list(rows)].reshape(len(rows), *[1] * (x.dim() - 2), -1)
        if size is not None:
            return x * size if scale is None else x * size * scale
        return self.norm(x, NormWeights(scale, shift), rule.divisor_of(x))

    def fix_turn_scale(self, layer: int, qkv: QKV, x: Float[Tensor, "n ... B T K"], frame: Frame) -> None:
        """Record the size of all heads' queries, or keys, in the uncut run. Nothing to do where norms are each head's own."""
        if self.spec.norm_across_heads:
            x = x.detach()[:, 0] if x.dim() == 5 else x.detach()  # [n, B, T, K]
            frame.turn_scale[layer, qkv] = self._reciprocal_rms(x.permute(1, 2, 0, 3).flatten(2)).to(x.dtype)

    def pattern(
        self,
        layer: int,
        heads: Sequence[int],
        q: Float[Tensor, "n C B T K"],
        k: Float[Tensor, "n C B T2 K"],
        frame: Frame,
        positions: Int[Tensor, "T"] | None = None,
        rule: BackwardRule = PLAIN,
    ) -> Float[Tensor, "n C B T T2"]:
        """Attention patterns of these heads.

        Args:
            positions: the queries' positions in the frame; None for all.
            rule: of the backward pass.
        """
        scores = (q @ k.transpose(-1, -2)) * self.spec.attn_scale[layer]
        if self.spec.score_softcap is not None:
            scores = (scores / self.spec.score_softcap).tanh() * self.spec.score_softcap
        if self.weights.key_bias is not None:
            assert frame.key_positions is not None, "a frame of single tokens has no keys"
            bias = _rows(self.weights.key_bias, heads)[:, frame.key_positions].unsqueeze(-2)  # [n, B, 1, T2]
            scores = scores + (bias if scores.dim() == bias.dim() else bias.unsqueeze(1)).to(scores.dtype)
        allowed = frame.allowed[self.spec.window[layer] if self.spec.window else None]
        if positions is not None:
            allowed = allowed[:, positions]
        scores = scores.masked_fill(~allowed, -math.inf)
        return rule.softmax(scores.to(_at_least_float32(scores.dtype))).to(scores.dtype)

    def head_output(
        self, layer: int, heads: Sequence[int], z: Float[Tensor, "n C B T K"], frame: Frame
    ) -> Float[Tensor, "n C B T D"]:
        """What these heads write to the residual stream, from their pattern-weighted values z."""
        out = _batched_matmul(z, self.writing(layer, heads))
        return self.after_attention(layer, out, frame)

    def heads_sum(self, layer: int, z: Float[Tensor, "H C B T K"]) -> Float[Tensor, "C B T D"]:
        """Sum of z times W_O over all heads as one matrix product, before any norm after attention."""
        W_O = self.weights.layers[layer].W_O
        flat = z.permute(1, 2, 3, 0, 4).reshape(-1, W_O.shape[0] * W_O.shape[1])
        return (flat @ W_O.reshape(-1, W_O.shape[-1])).reshape(*z.shape[1:-1], -1)

    def heads_back(self, layer: int, into: Float[Tensor, "C B T D"]) -> Float[Tensor, "H C B T K"]:
        """Gradient with respect to every head's z, from that with respect to their sum."""
        W_O = self.weights.layers[layer].W_O
        return (into @ W_O.flatten(0, 1).T).unflatten(-1, W_O.shape[:2]).movedim(-2, 0)

    def after_attention(self, layer: int, out: Tensor, frame: Frame) -> Tensor:
        """The norm after attention, its scale frozen at the full model's; nothing in models without one."""
        norm = self.weights.layers[layer].norm_after_attention
        if norm is None:
            return out
        scale = frame.head_scale[layer]
        return out * scale if norm.scale is None else out * scale * norm.scale

    def fix_head_scale(self, layer: int, z: Float[Tensor, "H 1 B T K"], frame: Frame) -> None:
        """Record the norm after attention's scale in the uncut run, from all heads' z. Nothing to do without such a norm."""
        if self.weights.layers[layer].norm_after_attention is not None:
            total = self.heads_sum(layer, z)[0]
            frame.head_scale[layer] = self._reciprocal_rms(total).to(total.dtype)

    # --- MLP, norms, unembedding -------------------------------------------------------------------------------------

    def mlp(
        self,
        layer: int,
        x: Float[Tensor, "... D"],
        like: Float[Tensor, "... D"] | None = None,
        rule: BackwardRule = PLAIN,
    ) -> Float[Tensor, "... D"]:
        """What a layer's MLP writes, from its input; `like` as in `read`, `rule` of the backward pass."""
        return self.mlp_output(layer, self.hidden(layer, x, like, rule), rule)

    def hidden(
        self,
        layer: int,
        x: Float[Tensor, "... D"],
        like: Float[Tensor, "... D"] | None = None,
        rule: BackwardRule = PLAIN,
    ) -> Float[Tensor, "... M"]:
        """Activations of a layer's neurons, from the MLP's input; of a gated MLP the products with the gate.

        Of a mixture of experts, what the router and the experts read.
        """
        block = self.weights.layers[layer]
        x = self.norm(x, block.norm_mlp, like)
        if block.experts is not None:
            return x
        assert block.W_in is not None, f"layer {layer} has no MLP"
        assert self.spec.activation is not None, "the model has no MLP"
        activation = ACTIVATIONS[self.spec.activation]
        hidden = _affine(x, block.W_in, block.b_in)
        if block.W_gate is None:
            return rule.activation(activation, hidden)
        return rule.gated(rule.activation(activation, _affine(x, block.W_gate, block.b_gate)), hidden)

    def mlp_output(self, layer: int, hidden: Float[Tensor, "... M"], rule: BackwardRule = PLAIN) -> Float[Tensor, "... D"]:
        """What a layer's MLP writes, from its neurons' activations."""
        block = self.weights.layers[layer]
        if block.experts is not None:
            out = block.experts(hidden.reshape(1, -1, hidden.shape[-1]))
            out = (out[0] if isinstance(out, tuple) else out).reshape(hidden.shape)
        else:
            assert block.W_out is not None, f"layer {layer} has no MLP"
            out = _affine(hidden, block.W_out, block.b_out)
        return out if block.norm_after_mlp is None else self.norm(out, block.norm_after_mlp, rule.divisor_of(out))

    def unembed(
        self,
        x: Float[Tensor, "C N D"],
        columns: Int[Tensor, "N W"] | None = None,
        capped: bool = True,
        like: Float[Tensor, "#C N D"] | None = None,
    ) -> Float[Tensor, "C N W"]:
        """Logits from the final residual at N readings: of the whole vocabulary, or of some columns for each reading.

        Args:
            capped: False leaves out the cap on the logits of models that have one.
            like: residuals whose norm is used in place of that of x.
        """
        logits = self.logits(self.norm(x, self.weights.norm_final, like), columns)
        return self._capped(logits) if capped else logits

    def logits(self, normed: Float[Tensor, "C N D"], columns: Int[Tensor, "N W"] | None = None) -> Float[Tensor, "C N W"]:
        """Logits before any cap from what is behind the final norm; the arguments as `unembed`'s."""
        W_U, b_U = self.weights.W_U, self.weights.b_U
        if columns is None:
            return _affine(normed, W_U, b_U)
        logits = torch.einsum("cnd,dnw->cnw", normed, W_U[:, columns])
        return logits if b_U is None else logits + b_U[columns]

    def logit_blocks(self, x: Float[Tensor, "C N D"], width: int) -> Iterator[Float[Tensor, "C N W"]]:
        """Logits of the whole vocabulary from the final residual at N readings, `width` columns at a time."""
        x = self.norm(x, self.weights.norm_final)
        for first in range(0, self.spec.d_vocab_out, width):
            yield self._capped(self._logits_between(x, first, min(first + width, self.spec.d_vocab_out)))

    def _logits_between(self, normed: Float[Tensor, "C N D"], first: int, stop: int) -> Float[Tensor, "C N W"]:
        b_U = self.weights.b_U
        return _affine(normed, self.weights.W_U[:, first:stop], None if b_U is None else b_U[first:stop])

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.spec.logit_softcap
        return logits if cap is None else (logits / cap).tanh() * cap

    def norm(
        self, x: Float[Tensor, "... D"], weights: NormWeights, like: Float[Tensor, "... D"] | None = None
    ) -> Float[Tensor, "... D"]:
        """Layer norm or root-mean-square norm, as the model has it; in float32 at least.

        Args:
            like: x is divided by the size that this has, and not by its own; the norm is then linear in x.
        """
        if self.spec.norm is None or not weights.present:
            return x
        if self.spec.norm == "layer" and like is None and (weights.scale is None or weights.scale.dim() == 1):
            return functional.layer_norm(x, x.shape[-1:], weights.scale, weights.shift, self.spec.eps)
        wide = x.to(_at_least_float32(x.dtype))
        of = wide if like is None else like.to(wide.dtype)
        if self.spec.norm == "layer":
            wide, of = wide - wide.mean(-1, keepdim=True), of - of.mean(-1, keepdim=True)
        normed = (wide * self._reciprocal_rms(of)).to(x.dtype)
        normed = normed if weights.scale is None else normed * weights.scale
        return normed if weights.shift is None else normed + weights.shift

    def _reciprocal_rms(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... 1"]:
        wide = x.to(_at_least_float32(x.dtype))
        return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.spec.eps)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(weights: Float[Tensor, "H ..."], heads: Sequence[int]) -> Float[Tensor, "n ..."]:
    """These heads' weights; without a copy if all are asked for."""
    return weights if list(heads) == list(range(weights.shape[0])) else weights[list(heads)]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else x @ weight + bias


def _batched_matmul(x: Float[Tensor, "n C B T X"], weight: Float[Tensor, "n X Y"]) -> Float[Tensor, "n C B T Y"]:
    """One matrix for each head, over all rows, examples and positions at once."""
    flat = x.flatten(1, -2)
    return (flat @ weight).reshape(weight.shape[0], *x.shape[1:-1], weight.shape[-1])
