"""What a vector in the final residual does to the logits, with the final norm's scale frozen: then the map is linear.

    logits before any cap = sum over parts of (part, normed at the frozen scale) . W_U + shift . W_U + b_U

Shape letters: N readings, D residual width, V vocabulary, C parts (components).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.full_run import FullRun
from circuitdisc.engine.requirements import components_of
from circuitdisc.metrics import Labels, wide
from circuitdisc.metrics.logit_diff import logit_diff
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import PromptBatch


class Readout:
    """The final norm, its scale frozen at the value that it has for some final residuals, and the unembedding.

    Args:
        residual: the final residuals whose scale is frozen; its precision is that of the results. [N, D]
    """

    def __init__(self, components: Components, residual: Float[Tensor, "N D"]) -> None:
        self.components, self.dtype = components, residual.dtype
        spec = components.spec
        if spec.norm is None:
            self.reciprocal = residual.new_ones(residual.shape[0], 1)
            return
        wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True) if spec.norm == "layer" else wide
        self.reciprocal = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + spec.eps).to(residual.dtype)

    def turned(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """The norm's linear part without the frozen scale: centred where the norm centres, times the norm's weights."""
        x = x.to(self.dtype)
        if self.components.spec.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        scale = self.components.weights.norm_final.scale
        return x if scale is None or self.components.spec.norm is None else x * scale.to(self.dtype)

    def normed(self, x: Float[Tensor, "... N D"]) -> Float[Tensor, "... N D"]:
        """Parts of the N residuals as they stand after the norm, without its shift."""
        return self.turned(x) * self.reciprocal

    @property
    def shift(self) -> Float[Tensor, "D"] | None:
        """What the final norm adds."""
        shift = self.components.weights.norm_final.shift
        return None if shift is None or self.components.spec.norm is None else shift.to(self.dtype)

    def logits(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits before any cap if the residual were x and the scale that of the residuals given."""
        y = self.normed(x)
        y = y if self.shift is None else y + self.shift
        logits = y @ self.components.weights.W_U.to(self.dtype)
        return logits if self.components.weights.b_U is None else logits + self.components.weights.b_U.to(self.dtype)

    def right_minus_wrong(self, labels: Labels) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N"]]:
        """Mean column of the unembedding over the right answers minus that over the wrong ones, and the same of its bias."""
        W_U, b_U = self.components.weights.W_U, self.components.weights.b_U

        def mean(values: Float[Tensor, "... N A"], mask: Tensor) -> Float[Tensor, "... N"]:
            return torch.where(mask, values.to(self.dtype), 0.0).sum(-1) / mask.sum(-1).clamp(min=1)

        pairs = ((labels.answers, labels.answers_mask), (labels.wrong, labels.wrong_mask))
        right, wrong = (mean(W_U[:, columns], mask) for columns, mask in pairs)
        bias = self.reciprocal.new_zeros(len(self.reciprocal))
        if b_U is not None:
            bias = mean(b_U[labels.answers], labels.answers_mask) - mean(b_U[labels.wrong], labels.wrong_mask)
        return (right - wrong).T, bias


@dataclass(frozen=True)
class DirectEffects:
    """What every component adds to the logit difference.

    Args:
        names: senders, `a3.bias` for an attention output bias, `norm_shift` and `unembed_bias`.
        layers: each component's layer; -1 for embeddings, L for what comes after the last layer.
        values: what each adds at each reading. [C, N]
        logit_diff: the model's own logit difference before any cap. [N]
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[Tensor, "C N"]
    logit_diff: Float[Tensor, "N"]


@torch.no_grad()
def direct_effects(model: Model, batch: PromptBatch, run: FullRun) -> DirectEffects:
    """Split the logit difference at the readings into what every component adds, in float64.

    Args:
        run: an uncut run of the batch's clean prompts.
    """
    components, graph = components_of(model, "logit attribution", whole=True), model.graph
    at = batch.reads
    residual = run.residual[at]
    readout = Readout(components, residual.double())
    direction, bias = readout.right_minus_wrong(batch.labels)
    values = [torch.einsum("snd,nd->sn", readout.normed(run.senders[:, *at]), direction)]
    names = [node.name for node in graph.senders]
    layers = [node.layer for node in graph.senders]
    for layer, block in enumerate(components.weights.layers):
        if block.b_O is not None:
            values.append((readout.normed(block.b_O.expand_as(residual)) * direction).sum(-1)[None])
            names.append(f"a{layer}.bias")
            layers.append(layer)
    if readout.shift is not None:
        values.append((direction @ readout.shift)[None])
        names.append("norm_shift")
        layers.append(graph.n_layers)
    if components.weights.b_U is not None:
        values.append(bias[None])
        names.append("unembed_bias")
        layers.append(graph.n_layers)
    own = logit_diff(wide(components.unembed(residual[None], capped=False)[0]), batch.labels)
    return DirectEffects(tuple(names), tuple(layers), torch.cat(values), own.double())
