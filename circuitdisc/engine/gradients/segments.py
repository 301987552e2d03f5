"""A run of the whole model that is kept in segments, so that its backward pass can be walked layer by layer.

Forward, each attention (from its projections to its pattern-weighted values) and each MLP is one autograd segment of its
own; everything between them is a matrix product or a sum, whose backward is another one. Backward, each step hands out the
gradients with respect to one layer's inputs and outputs, in as few numbers as they can be told, and lets the segment go.

Shape letters: C rows (points at which gradients are taken), B examples, T positions, D residual width, H heads, K head width,
N readings.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, InitVar, dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.engine.evaluate import of_columns
from circuitdisc.engine.gradients.layers import HEADS, MLP, Place, heads_sum, projections, turned
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric, wide
from circuitdisc.models.backward import PLAIN, BackwardRule
from circuitdisc.models.components import Components
from circuitdisc.models.frame import Frame
from circuitdisc.tasks.base import PromptBatch

Write = Callable[[Place, Tensor], object]


@dataclass
class HeadsSegment:
    """One step of the backward pass: the gradients around the heads of a layer.

    Args:
        x: the layer's input. [C, B, T, D]
        projections: q, k and v before rotation, for every query head. [H, C, B, T, K]
        into: gradients with respect to these three.
        out: gradient with respect to the heads' pattern-weighted values, which W_O takes to the residual stream (and which,
            with a norm after attention, hold its scale). [H, C, B, T, K]
        holds_norm: the divisor of the heads' norm is a constant.
    """

    layer: int
    x: Float[Tensor, "C B T D"]
    projections: tuple[Float[Tensor, "H C B T K"], ...]
    into: tuple[Float[Tensor, "H C B T K"], ...]
    out: Float[Tensor, "H C B T K"]
    holds_norm: bool = False


@dataclass
class MlpSegment:
    """One step of the backward pass: the gradients with respect to an MLP's input and output. [C, B, T, D]"""

    layer: int
    into: Float[Tensor, "C B T D"]
    out: Float[Tensor, "C B T D"]


@dataclass
class EmbeddingStep:
    """The last step of the backward pass: the gradient with respect to what the embedding writes. [C, B, T, D]"""

    out: Float[Tensor, "C B T D"]


Step = HeadsSegment | MlpSegment | EmbeddingStep


@dataclass
class _Attention:
    x: Tensor
    projections: tuple[Tensor, Tensor, Tensor]
    z: Tensor


@dataclass
class _Mlp:
    x: Tensor
    out: Tensor


@dataclass(eq=False, repr=False)
class SegmentedRun:
    """One forward pass of the whole model, or of the part of it behind a place.

    Args:
        frame: masks, rotary angles and norm scales.
        x: the residual stream at `start`. [C, B, T, D]
        start: where to begin: before a layer's heads or before its MLP.
        gradients: keep the segments, for `backward`.
        uncut: this is the uncut run that `frame` belongs to: record the scales of norms after attention in it.
        read: (examples, positions) that are read at the end; the last MLP then runs at them alone, and its output and the
            final residual mean nothing elsewhere. None runs it everywhere.
        write: called with each place and what its senders write there: an MLP's output [1, C, B, T, D], or the heads'
            pattern-weighted values [H, C, B, T, K], with the scale of a norm after attention.
        note: called with each place and the residual stream before it. [C, B, T, D]
        rule: of the backward pass.
    """

    components: Components
    graph: ComputationGraph
    frame: Frame
    x: InitVar[Float[Tensor, "C B T D"]]
    _: KW_ONLY
    start: Place = (0, HEADS)
    gradients: bool = True
    uncut: bool = False
    read: tuple[Int[Tensor, "N"], Int[Tensor, "N"]] | None = None
    write: Write | None = None
    note: Write | None = None
    rule: BackwardRule = PLAIN

    def __post_init__(self, x: Float[Tensor, "C B T D"]) -> None:
        self._write, self._note = self.write or _nothing, self.note or _nothing
        self._attention: dict[int, _Attention] = {}
        self._mlp: dict[int, _Mlp] = {}
        self.residual = self._forward(x)

    @torch.no_grad()
    def _forward(self, x: Float[Tensor, "C B T D"]) -> Float[Tensor, "C B T D"]:
        for layer in range(self.start[0], self.graph.n_layers):
            before = x
            if self.start <= (layer, HEADS):
                self._note((layer, HEADS), x)
                x = x + self._run_heads(layer, x)
            if self.graph.has_mlp:
                self._note((layer, MLP), x)
                x = x + self._run_mlp(layer, before if self.graph.parallel else x)
        return x

    def _run_heads(self, layer: int, x: Float[Tensor, "C B T D"]) -> Float[Tensor, "C B T D"]:
        components, frame = self.components, self.frame
        block = components.weights.layers[layer]
        q, k, v = projections(components, layer, components.norm(x, block.norm_attention))
        if self.uncut:
            components.fix_turn_scale(layer, "q", q, frame)
            components.fix_turn_scale(layer, "k", k, frame)
        with torch.set_grad_enabled(self.gradients):
            if self.gradients:
                q, k, v = (leaf.requires_grad_() for leaf in (q, k, v))
            turned_q, turned_k = turned(components, layer, q, k, frame, self.rule)
            z = components.pattern(layer, range(q.shape[0]), turned_q, turned_k, frame, rule=self.rule) @ v
        if self.gradients:
            self._attention[layer] = _Attention(x, (q, k, v), z)
        z = z.detach()
        if self.uncut:
            components.fix_head_scale(layer, z, frame)
        scale = frame.head_scale.get(layer)
        z = z if scale is None else z * scale
        self._write((layer, HEADS), z)
        total = heads_sum(components, layer, z)
        return total if block.b_O is None else total + block.b_O

    def _run_mlp(self, layer: int, x: Float[Tensor, "C B T D"]) -> Float[Tensor, "C B T D"]:
        at = self.read if layer == self.graph.n_layers - 1 else None
        x = x if at is None else x[:, *at]
        if self.gradients:
            x = x.detach().requires_grad_()
        with torch.set_grad_enabled(self.gradients):
            out = self.components.mlp(layer, x, self.rule.divisor_of(x), self.rule)
        if self.gradients:
            self._mlp[layer] = _Mlp(x, out)
        out = out.detach() if at is None else self._spread(out.detach(), at)
        self._write((layer, MLP), out[None])
        return out

    def _spread(self, values: Float[Tensor, "C N D"], at: tuple[Tensor, Tensor]) -> Float[Tensor, "C B T D"]:
        """Values at the readings, 0 elsewhere. A token that is read twice has one value."""
        spread = values.new_zeros(values.shape[0], *self.frame.position_ids.shape, values.shape[-1])
        spread[:, *at] = values
        return spread

    def backward(self, dx: Float[Tensor, "C B T D"], keep: bool = False, dropped: int | None = None) -> Iterator[Step]:
        """Walk back from the gradient with respect to the final residual.

        Args:
            keep: the segments serve another walk; else they are let go on the way.
            dropped: through what this layer writes no gradient passes, so that there is no step of it.
        """
        for layer in reversed(range(self.start[0], self.graph.n_layers)):
            if layer == dropped:
                continue
            into_mlp = None
            if self.graph.has_mlp:
                into_mlp = self._backward_mlp(layer, dx, keep)
                yield MlpSegment(layer, into_mlp, dx)
                if not self.graph.parallel:
                    dx, into_mlp = dx + into_mlp, None
            if self.start <= (layer, HEADS):
                step, into_heads = self._backward_heads(layer, dx, keep)
                yield step
                del step
                dx = dx + into_heads
            if into_mlp is not None:
                dx = dx + into_mlp
        yield EmbeddingStep(dx)

    def _backward_mlp(self, layer: int, dx: Float[Tensor, "C B T D"], keep: bool) -> Float[Tensor, "C B T D"]:
        mlp = self._mlp[layer] if keep else self._mlp.pop(layer)
        at = self.read if layer == self.graph.n_layers - 1 else None
        (into,) = torch.autograd.grad(mlp.out, mlp.x, dx if at is None else dx[:, *at], retain_graph=keep)
        return into if at is None else self._spread(into, at)

    @torch.no_grad()
    def _backward_heads(
        self, layer: int, dx: Float[Tensor, "C B T D"], keep: bool
    ) -> tuple[HeadsSegment, Float[Tensor, "C B T D"]]:
        """The step, and the gradient with respect to the layer's input, all heads together."""
        components, kept = self.components, self._attention[layer] if keep else self._attention.pop(layer)
        block = components.weights.layers[layer]
        norm_after = block.norm_after_attention
        wide_dx = dx if norm_after is None or norm_after.scale is None else dx * norm_after.scale
        out = components.heads_back(layer, wide_dx)
        scale = self.frame.head_scale.get(layer)
        into = torch.autograd.grad(kept.z, kept.projections, out if scale is None else out * scale, retain_graph=keep)
        into = tuple(
            gradient.mul_(share) if share != 1.0 else gradient for gradient, share in zip(into, self.rule.shares, strict=True)
        )
        normed = components.projected_back(layer, into)
        with torch.enable_grad():
            x = kept.x.detach().requires_grad_()
            y = components.norm(x, block.norm_attention, self.rule.divisor_of(x))
            (into_x,) = torch.autograd.grad(y, x, normed) if y is not x else (normed,)
        q, k, v = (kept_input.detach() for kept_input in kept.projections)
        return HeadsSegment(layer, kept.x, (q, k, v), into, out, self.rule.holds_norms), into_x


def _nothing(place: Place, values: Tensor) -> None:
    pass


@dataclass
class MetricGradient:
    """The metric at the end of a run and its gradient.

    Args:
        values: the metric, example by example. [C, B]
        into: gradient of their sum with respect to the final residual. [C, B, T, D]
    """

    values: Float[Tensor, "C B"]
    into: Float[Tensor, "C B T D"]


def readout(
    components: Components,
    residual: Float[Tensor, "C B T D"],
    batch: PromptBatch,
    metric: Metric,
    full_logprobs: Tensor | None = None,
    rule: BackwardRule = PLAIN,
) -> MetricGradient:
    """Unembed the readings alone (and, where they suffice, the answers' columns alone), and take the metric's gradient.

    Args:
        full_logprobs: log-probabilities of the full model at the readings, for KL. [N, V]
    """
    labels = replace(batch.labels, full_logprobs=full_logprobs)
    with torch.enable_grad():
        read = residual.detach()[:, batch.read_example, batch.read_position].requires_grad_()
        like = rule.divisor_of(read)
        values = of_columns(batch, labels, lambda columns: wide(components.unembed(read, columns, like=like)), metric)
        if not values.requires_grad:
            raise BadSetting(
                f"metric '{metric.name}' has no gradient: give it values that depend smoothly on the logits and are not "
                "detached, or take a search that follows none (acdc, bisect with ranking=exact, exact)"
            )
        (gradient,) = torch.autograd.grad(values.sum(), read)
    into = torch.zeros_like(residual)
    rows = torch.arange(residual.shape[0], device=residual.device)[:, None]
    into.index_put_((rows, batch.read_example, batch.read_position), gradient, accumulate=True)
    return MetricGradient(values.detach(), into)


@torch.no_grad()
def log_probabilities(components: Components, residual: Float[Tensor, "1 B T D"], batch: PromptBatch) -> Float[Tensor, "N V"]:
    """Log-probabilities at the readings of a run of one row."""
    return wide(components.unembed(residual[:, batch.read_example, batch.read_position]))[0].log_softmax(-1)
