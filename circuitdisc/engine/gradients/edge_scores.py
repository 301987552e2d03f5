"""Gradients with respect to receivers' inputs in compact form, and their product with the senders' differences.

The input of a head's q, k or v passes a norm and a matrix W of D x K numbers, so that its gradient is known from K numbers a
token: with d the gradient with respect to the projection divided by the norm's divisor, and x the normed input before
scale and shift,

    g = scale * (W d) - mean(scale * (W d)) - x * mean(x * scale * (W d))      (the second term for layer norms alone)

Under a rule that holds a norm's divisor the third term falls away. It is linear in d, so that gradients taken at several rows
are added up before W is applied. Both means are products of d with vectors of K numbers: with W^T scale, and with the
projection itself.

Scores are formed for a few tokens at a time: there the differences of all senders and, layer by layer, the gradients of all
receivers are rebuilt, multiplied and let go.

Shape letters: C rows, n tokens that count, D residual width, H heads, K head width, S senders, R receivers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.engine.gradients.differences import Differences
from circuitdisc.engine.gradients.layers import SenderGroup
from circuitdisc.engine.gradients.memory import tokens_a_block
from circuitdisc.engine.gradients.segments import HeadsSegment, MlpSegment, Step
from circuitdisc.engine.gradients.unit_sums import UnitSums
from circuitdisc.graph import QKV, ComputationGraph
from circuitdisc.metrics import wide
from circuitdisc.models.components import Components
from circuitdisc.models.weights import NormWeights

QKVS: tuple[QKV, ...] = ("q", "k", "v")


@dataclass
class HeadGradients:
    """Gradients with respect to the q, k and v inputs of those heads of a layer that are here (H), summed over rows.

    Args:
        d: gradient with respect to the projections over the norm's divisor, q, k and v in turn. [3, H, n, K]
        offset: mean over D of scale * (W d); None without a layer norm. [3 H, n, 1]
        along: for each row, mean over D of x * scale * (W d); None where no divisor is followed. [C, 3 H, n, 1]
        x: each row's normed input before scale and shift; None where no divisor is followed. [C, n, D]
        normed: the inputs go into a norm.
    """

    d: Float[Tensor, "3 H n K"]
    offset: Float[Tensor, "H3 n 1"] | None
    along: Float[Tensor, "C H3 n 1"] | None
    x: Float[Tensor, "C n D"] | None
    normed: bool = True

    def rebuild(self, components: Components, layer: int, tokens: slice, out: Float[Tensor, "H3 t D"]) -> None:
        """Write the gradients at some of the tokens into `out`."""
        norm, n_heads = components.weights.layers[layer].norm_attention, self.d.shape[1]
        for index, (weight, _) in enumerate(components.reading(layer)):
            d = self.d[index, :, tokens]
            shared = d.reshape(weight.shape[0], -1, d.shape[-1])
            rows = out[index * n_heads : (index + 1) * n_heads].view(weight.shape[0], -1, out.shape[-1])
            if out.dtype == weight.dtype:
                torch.bmm(shared, weight.transpose(1, 2), out=rows)
            else:
                rows.copy_(shared @ weight.transpose(1, 2))
        if not self.normed:
            return
        if norm.scale is not None:
            out.mul_(norm.scale)
        if self.offset is not None:
            out.sub_(self.offset[:, tokens])
        if self.along is None or self.x is None:
            return
        for along, x in zip(self.along, self.x, strict=True):
            out.addcmul_(along[:, tokens], x[tokens], value=-1.0)


def head_gradients(components: Components, step: HeadsSegment, tokens: Int[Tensor, "n"]) -> HeadGradients:
    """One layer's gradients at the tokens that count, summed over rows."""
    block, spec, heads = components.weights.layers[step.layer], components.spec, components.own_heads
    C, H, n = step.x.shape[0], len(heads), len(tokens)

    def chosen(values: Float[Tensor, "all C B T K"]) -> Float[Tensor, "H C n K"]:
        return wide(values[heads.start : heads.stop].reshape(H, C, -1, values.shape[-1])[:, :, tokens])

    d = torch.stack([chosen(gradient) for gradient in step.into])
    if spec.norm is None or not block.norm_attention.present:
        return HeadGradients(d.sum(2).to(components.dtype), None, None, None, normed=False)
    x = wide(step.x.reshape(C, -1, spec.d_model)[:, tokens])
    if spec.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    divided = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.eps)
    d *= divided
    of_scale, constants = _vectors(components.reading(step.layer), block.norm_attention, H)
    along = None
    if not step.holds_norm:
        projected = torch.stack([chosen(projection) for projection in step.projections]) - constants
        along = (d * projected).sum(-1, keepdim=True).flatten(0, 1).transpose(0, 1) / spec.d_model
    d = d.sum(2)
    offset = (d * of_scale).sum(-1, keepdim=True).flatten(0, 1) / spec.d_model if spec.norm == "layer" else None
    if along is None:
        return HeadGradients(d.to(components.dtype), offset, None, None)
    return HeadGradients(d.to(components.dtype), offset, along.reshape(C, 3 * H, n, 1), x * divided)


def _vectors(
    reading: Sequence[tuple[Tensor, Tensor | None]], norm: NormWeights, n_heads: int
) -> tuple[Float[Tensor, "3 H 1 K"], Float[Tensor, "3 H 1 1 K"]]:
    """W^T scale, and what the projections hold beside W^T (scale * x): biases and the norm's shift."""
    of_scale, constants = [], []
    for weight, bias in reading:
        shared = n_heads // weight.shape[0]
        product = wide(weight.sum(1)) if norm.scale is None else wide(norm.scale @ weight)
        constant = torch.zeros_like(product) if bias is None else wide(bias)
        if norm.shift is not None:
            constant = constant + wide(norm.shift @ weight)
        of_scale.append(product.repeat_interleave(shared, 0))
        constants.append(constant.repeat_interleave(shared, 0))
    return torch.stack(of_scale)[:, :, None], torch.stack(constants)[:, :, None, None]


@dataclass
class Gradients:
    """All receivers' gradients of one backward pass, at the tokens that count, summed over rows.

    Args:
        heads: by layer.
        mlps: by layer. [n, D]
        logits: with respect to the final residual. [n, D]
    """

    components: Components
    tokens: Int[Tensor, "n"]
    logits: Float[Tensor, "n D"]
    heads: dict[int, HeadGradients] = field(default_factory=dict)
    mlps: dict[int, Float[Tensor, "n D"]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Take down what one step of the backward pass tells about receivers."""
        if isinstance(step, HeadsSegment):
            self.heads[step.layer] = head_gradients(self.components, step, self.tokens)
        elif isinstance(step, MlpSegment):
            self.mlps[step.layer] = at_tokens(step.into, self.tokens)


def at_tokens(gradient: Float[Tensor, "C B T D"], tokens: Int[Tensor, "n"]) -> Float[Tensor, "n D"]:
    """Summed over rows, at the tokens that count."""
    return wide(gradient.flatten(1, 2)[:, tokens]).sum(0)


@torch.no_grad()
def add_scores(
    scores: Float[Tensor, "R S"],
    graph: ComputationGraph,
    differences: Differences,
    gradients: Gradients,
    groups: Sequence[SenderGroup],
    units: UnitSums | None = None,
) -> None:
    """Add difference . gradient, summed over tokens, to the scores of all edges out of consecutive groups of senders.

    Entries that are no edges of the graph hold numbers without meaning. A process scores the edges into its own heads.

    Args:
        units: also add what each unit of the examples has of it.
    """
    components, first, stop = differences.components, groups[0].first, groups[-1].stop
    heads, others = components.own_heads, components.own_heads.start == 0  # the first process has all other receivers
    D, n_rows = components.spec.d_model, 3 * len(heads)
    shares = torch.zeros_like(scores[:, first:stop])
    dtype = torch.promote_types(components.dtype, torch.float32)
    length = min(differences.n_tokens, tokens_a_block((stop - first) * D * dtype.itemsize, scores.device.type == "cpu"))
    length = max(1, length)
    delta = torch.empty((stop - first) * length * D, dtype=dtype, device=scores.device)
    g = torch.empty((n_rows + 1) * length * D, dtype=dtype, device=scores.device)
    for start in range(0, differences.n_tokens, length):
        tokens = slice(start, min(start + length, differences.n_tokens))
        n = tokens.stop - tokens.start
        spans = () if units is None else units.within(tokens)
        delta_snD = delta[: (stop - first) * n * D].view(-1, n, D)
        g_rnD = g[: (n_rows + 1) * n * D].view(-1, n, D)
        for group in groups:
            delta_snD[group.first - first : group.stop - first] = differences.rebuild(group, tokens)
        for layer in sorted({*gradients.heads, *gradients.mlps}):
            rows, used = _layer_rows(graph, layer, heads), 0
            if layer in gradients.heads:
                gradients.heads[layer].rebuild(components, layer, tokens, g_rnD[:n_rows])
                used = n_rows
            if layer in gradients.mlps and others:
                g_rnD[used] = gradients.mlps[layer][tokens]
                used += 1
            rows = rows[-used:] if used < n_rows else rows[:used]
            before = min(stop, int(graph.n_upstream[rows[-1]])) - first if used else 0
            if before > 0:
                product = g_rnD[:used].flatten(1) @ delta_snD[:before].flatten(1).T
                shares[rows, :before] += product
                for part, own in spans:
                    own[rows, first : first + before] += g_rnD[:used, part].flatten(1) @ delta_snD[:before, part].flatten(1).T
        if others:
            shares[-1] += delta_snD.flatten(1) @ gradients.logits[tokens].flatten()
            for part, own in spans:
                own[-1, first:stop] += delta_snD[:, part].flatten(1) @ gradients.logits[tokens][part].flatten()
    scores[:, first:stop] += components.summed(shares)


def _layer_rows(graph: ComputationGraph, layer: int, heads: range) -> list[int]:
    """Indices of a layer's receivers: all q of these heads, all k, all v, the MLP."""
    H, start = graph.n_heads, layer * (3 * graph.n_heads + graph.has_mlp)
    return [start + kind * H + head for kind in range(3) for head in heads] + [start + 3 * H] * graph.has_mlp
