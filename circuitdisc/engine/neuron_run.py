"""Runs of the whole model with neurons replaced: a neuron's activation is set at every token, everything else runs on.

A neuron is one unit of an MLP's hidden layer: what the activation function gives, in a gated MLP times the other branch; it
writes its activation times its row of W_out. Heads may be ablated in the same run, as in a head circuit.

Shape letters: L layers, H heads, M neurons of a layer, B examples, T positions, D residual width, N readings, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Means, Scope
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.edits import kept_heads_hooks, neuron_hooks
from circuitdisc.engine.evaluate import Values, evaluate
from circuitdisc.engine.forward import Hooks, forward, joined, logits_at
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadModel, BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch


@dataclass
class NeuronTrace:
    """What neurons do at the readings of one run.

    Args:
        hidden: by layer, activations. [N, M]
        before: by layer, the residual that the MLP's output is added to. [N, D]
        after_scale: by layer, for models with a norm after the MLP, its reciprocal root mean square. [N, 1]
        final: the final residual. [N, D]
    """

    final: Float[Tensor, "N D"]
    hidden: dict[int, Float[Tensor, "N M"]] = field(default_factory=dict)
    before: dict[int, Float[Tensor, "N D"]] = field(default_factory=dict)
    after_scale: dict[int, Float[Tensor, "N 1"]] = field(default_factory=dict)


def n_neurons(model: Model) -> int:
    """Neurons in each layer.

    Raises:
        BadSetting: the model has no fast components.
        BadModel: it has no MLPs.
    """
    components = components_of(model, "looking at neurons", whole=True)
    layers = components.weights.layers
    if any(block.experts is not None for block in layers):
        raise BadModel(f"{model.name} has mixtures of experts in place of MLPs: their neurons are not told apart")
    if layers[0].W_out is None:
        raise BadModel(f"{model.name} has no MLPs, so it has no neurons")
    return layers[0].d_mlp


class NeuronRuns:
    """Runs of one model with neurons (and heads) replaced.

    Args:
        patching: model and ablation; neurons are ablated to zero or to their mean, as the ablation says.
        reference: the examples that `mean` averages neurons over: the train split; None where no neuron will be ablated.

    Raises:
        BadSetting: the ablation is of another kind, or the model has no fast components.
        BadModel: the model has no MLPs.
    """

    def __init__(self, patching: Patching, reference: Sequence[Example] | None) -> None:
        self.patching, self.graph = patching, patching.graph
        self.components = components_of(patching.model, "looking at neurons", whole=True)
        self.n_neurons = n_neurons(patching.model)
        ablation = patching.ablation
        if reference is not None and (not ablation.method.ablates_neurons or ablation.target == "pattern"):
            raise BadSetting(
                f"neurons cannot be ablated by {ablation.label}: use ablation=zero, or ablation=mean over clean prompts"
            )
        self.means: dict[int, Means] = {}
        if ablation.method.averages is not None and reference is not None:
            self._fit_means(reference, ablation.method.averages)

    @torch.no_grad()
    def _fit_means(self, reference: Sequence[Example], scope: Scope) -> None:
        self.means = {layer: Means(scope) for layer in range(self.graph.n_layers)}
        for chunk in self.patching.chunks(reference):
            batch = chunk.batch

            def add(layer: int, hidden: Tensor, batch: PromptBatch = batch) -> Tensor:
                self.means[layer].add(hidden[None], batch.position_ids, batch.is_token, batch.groups)
                return hidden

            self._run(chunk, None, {"mlp_post": add})

    @torch.no_grad()
    def logits(
        self, chunk: Chunk, masked: Bool[np.ndarray, "L M"], kept: Bool[np.ndarray, "L H"] | None = None
    ) -> Float[Tensor, "N V"]:
        """Logits at the readings when neurons are ablated.

        Args:
            masked: True at the neurons to ablate.
            kept: the heads to keep; None keeps all.
        """
        hooks = neuron_hooks(masked, lambda layer, hidden: self._ablated(layer, chunk, hidden))
        return logits_at(self.components, self._run(chunk, kept, hooks), chunk.batch.reads)

    @torch.no_grad()
    def trace(
        self, examples: Sequence[Example], layers: Sequence[int], kept: Bool[np.ndarray, "L H"] | None = None
    ) -> NeuronTrace:
        """What the neurons of some layers do at all readings of the examples, no neuron replaced.

        Args:
            kept: the heads to keep; None keeps all.
        """
        return _joined([self._trace(chunk, layers, kept) for chunk in self.patching.chunks(examples)])

    def _trace(self, chunk: Chunk, layers: Sequence[int], kept: Bool[np.ndarray, "L H"] | None) -> NeuronTrace:
        at = chunk.batch.reads
        trace = NeuronTrace(chunk.clean[0][at])

        def look(layer: int, hidden: Tensor) -> Tensor:
            if layer not in layers:
                return hidden
            trace.hidden[layer] = hidden[at]
            block = self.components.weights.layers[layer]
            if block.norm_after_mlp is not None and block.W_out is not None:
                out = hidden[at] @ block.W_out
                out = (out if block.b_out is None else out + block.b_out).to(torch.promote_types(out.dtype, torch.float32))
                scale = torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + self.components.spec.eps)
                trace.after_scale[layer] = scale.to(hidden.dtype)
            return hidden

        def before_mlp(layer: int, written: Tensor) -> Tensor:
            trace.before[layer] = written[at]
            return written

        def residual(layer: int, x: Tensor) -> Tensor:
            before[layer] = x[at]
            return x

        before: dict[int, Tensor] = {}
        hooks: Hooks = {"resid_pre": residual, "attn_out": before_mlp, "mlp_post": look}
        trace.final = self._run(chunk, kept, hooks)[at]
        trace.before = {layer: before[layer] + written for layer, written in trace.before.items()}
        return trace

    def _ablated(self, layer: int, chunk: Chunk, like: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """What the layer's neurons carry when ablated."""
        if layer not in self.means:
            return torch.zeros_like(like)
        return self.means[layer].values(chunk.batch.position_ids, chunk.batch.groups, like.dtype)[0]

    def _run(self, chunk: Chunk, kept: Bool[np.ndarray, "L H"] | None, hooks: Hooks) -> Float[Tensor, "B T D"]:
        """The final residual of one run under hooks, with only these heads kept."""
        components, graph, batch = self.components, self.graph, chunk.batch
        assert chunk.frame is not None, "components need a frame"
        heads = {} if kept is None else kept_heads_hooks(graph, chunk, kept, self.patching.ablation.target)
        self.patching.cost.circuit_runs += 1
        self.patching.cost.node_evaluations += chunk.weight * graph.n_layers * (graph.n_heads + 1)
        x = components.embed(batch.clean, batch.position_ids, split=False)[0]
        return forward(components, graph, chunk.frame, x, joined(heads, hooks))

    @torch.no_grad()
    def evaluate(
        self,
        examples: Sequence[Example],
        masked: Mapping[str, Bool[np.ndarray, "L M"]],
        metrics: Sequence[Metric],
        on_progress: Callable[[int], object] | None = None,
    ) -> Values:
        """Metric values with several sets of neurons ablated, example by example.

        Args:
            masked: name -> True at the neurons to ablate.
            on_progress: called with 1 after each set of each chunk.

        Returns:
            name -> metric name -> values. [B]
        """
        variants = {name: partial(self.logits, masked=neurons) for name, neurons in masked.items()}
        return evaluate(self.patching.shares(examples), variants, metrics, on_progress)


def _joined(traces: Sequence[NeuronTrace]) -> NeuronTrace:
    """One trace of all readings."""

    def join(parts: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
        return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}

    return NeuronTrace(
        torch.cat([trace.final for trace in traces]),
        join([trace.hidden for trace in traces]),
        join([trace.before for trace in traces]),
        join([trace.after_scale for trace in traces]),
    )
