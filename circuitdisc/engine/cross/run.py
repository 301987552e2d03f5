"""Runs of one model with activations of another: cross-model activation patching.

The unpatched run is made once a chunk and its residual kept before every layer; a patched run begins at the first layer that is
patched. Runs that begin at the same layer share that layer's queries, keys, values and patterns. What is not patched is
computed from the residual as it now is, with this model's own weights.

In models with a norm after attention (Gemma 2) the norm's scale is frozen at the unpatched run's, so that heads stay separate.

Shape letters: B examples, T positions, D residual width, H heads, K head width, N readings, X patches, n tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.cross.cache import Given
from circuitdisc.engine.cross.patch import HEAD_KINDS, SHARED_KINDS, Patch, patched_tokens
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.forward import LayerState, attend, clean_states, for_heads, write
from circuitdisc.engine.ranks import gathered, shared
from circuitdisc.engine.requirements import components_of
from circuitdisc.metrics import Metric
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch, collate


@dataclass
class CrossWork:
    """What was computed, in layers: 1 is one layer's part for all tokens of all examples.

    Args:
        reads: queries, keys and values of a layer, and its attention.
        writes: products with W_O, of either model.
        mlps: MLPs.
    """

    reads: float = 0.0
    writes: float = 0.0
    mlps: float = 0.0


@dataclass
class CrossRun:
    """Patched runs of one model.

    Args:
        model: the model that runs.
        given: the other model's activations on the same examples.
        positions: the tokens at which they are taken over, as when they were kept; None for all.
    """

    model: Model
    given: Given
    positions: Sequence[str | int] | None = None
    work: CrossWork = field(default_factory=CrossWork)

    def values(
        self,
        examples: Sequence[Example],
        patches: Sequence[Patch],
        metrics: Sequence[Metric],
        *,
        chunks: Sequence[int] | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> dict[str, Float[np.ndarray, "X B"]]:
        """Metric values of every patch, example by example. An empty patch is the model itself.

        Args:
            examples: those whose activations were kept.
            chunks: which of the chunks are run; None for all.
            on_progress: called with 1 after each distinct patch on each chunk.

        Returns:
            metric name -> values. [X, B]
        """
        distinct = sorted(dict.fromkeys(patches), key=lambda patch: patch.first(self.model.graph.n_layers))
        where = {patch: row for row, patch in enumerate(distinct)}
        by_metric: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
        share, chosen = shared(list(range(len(self.given.chunks)) if chunks is None else chunks))
        n = sum(self.given.chunks[chunk][1] - self.given.chunks[chunk][0] for chunk in chosen)
        for chunk in chosen:
            first, last = self.given.chunks[chunk]
            run = _ChunkRun(self, chunk, examples[first:last], (last - first) / n)
            rows: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
            for patch in distinct:
                logits = run.logits(patch)
                for name, values in of_logits(run.batch, run.labels, logits, metrics).items():
                    rows[name].append(values.double().cpu())
                if on_progress is not None:
                    on_progress(1)
            for name, values in rows.items():
                by_metric[name].append(torch.stack(values).numpy())
        rows_of = [where[patch] for patch in patches]
        whole = {name: gathered(np.concatenate(parts, axis=1), share, name, axis=1) for name, parts in by_metric.items()}
        return {name: values[rows_of] for name, values in whole.items()}


class _ChunkRun:
    """One chunk: the unpatched run, and patched ones that begin in it."""

    @torch.no_grad()
    def __init__(self, run: CrossRun, chunk: int, examples: Sequence[Example], share: float) -> None:
        self.components: Components = components_of(run.model, "cross-model patching", whole=True)
        self.graph, self.given, self.chunk, self.work, self.share = run.model.graph, run.given, chunk, run.work, share
        self.batch: PromptBatch = collate(examples, device=run.model.device)
        self.tokens = patched_tokens(self.batch, run.positions)
        self.everywhere = run.positions is None
        self.frame = self.components.frame(self.batch.is_token, self.batch.position_ids)
        self.before = [self.components.embed(self.batch.clean, self.batch.position_ids, split=False)[0]]
        self.before += [state.after for state in clean_states(self.components, self.graph, self.batch, self.frame)]
        self._count(reads=self.graph.n_layers, writes=self.graph.n_layers, mlps=self.graph.n_layers * self.graph.has_mlp)
        log_probs = run.given.log_probs.get(chunk)
        full = None if log_probs is None else log_probs.to(self.components.device)
        self.labels = replace(self.batch.labels, full_logprobs=full)
        self._shared: LayerState | None = None
        self._taken: tuple[int, dict[str, Tensor]] = (-1, {})

    def _count(self, reads: float = 0, writes: float = 0, mlps: float = 0) -> None:
        self.work.reads += reads * self.share
        self.work.writes += writes * self.share
        self.work.mlps += mlps * self.share

    @torch.no_grad()
    def logits(self, patch: Patch) -> Float[Tensor, "N V"]:
        """Logits at the readings when this is taken over."""
        n_layers = self.graph.n_layers
        first = patch.first(n_layers)
        x = self.before[first]
        for layer in range(first, n_layers):
            x = self._layer(layer, x, patch, shared=layer == first)
        if n_layers in patch.residual:
            x = self._put(x, self._take(n_layers, "residual"))
        readout = self.given.readout(self.components) if patch.readout else self.components
        return readout.unembed(x[self.batch.reads][None])[0]

    def _layer(self, layer: int, x: Float[Tensor, "B T D"], patch: Patch, shared: bool) -> Float[Tensor, "B T D"]:
        """The residual behind a layer."""
        graph = self.graph
        if layer in patch.residual:
            x, shared = self._put(x, self._take(layer, "residual")), False
        if patch.numbers("output", layer) == list(range(graph.n_heads)) and self.everywhere:
            state = None  # all that the heads write is taken over
        else:
            state = self._first_layer(layer) if shared else self._attend(layer, x)
        after = x + self._written(layer, patch, state, x)
        if graph.has_mlp and layer in patch.mlps:
            own = torch.zeros_like(x) if self.everywhere else self._mlp(layer, x if graph.parallel else after)
            after = after + self._put(own, self._take(layer, "mlp"))
        elif graph.has_mlp:
            after = after + self._mlp(layer, x if graph.parallel else after)
        return after

    def _attend(self, layer: int, x: Float[Tensor, "B T D"]) -> LayerState:
        self._count(reads=1)
        return attend(self.components, layer, x, self.frame)

    def _first_layer(self, layer: int) -> LayerState:
        """The unpatched run's state of the layer at which a run begins, kept for those that begin there, too."""
        if self._shared is None or self._shared.layer != layer:
            self._shared = None  # before the next one is made
            state = self._attend(layer, self.before[layer])
            state.written = self._write(layer, state.z)
            self._shared = state
        return self._shared

    def _mlp(self, layer: int, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        self._count(mlps=1)
        return self.components.mlp(layer, x)

    def _write(self, layer: int, z: Float[Tensor, "H B T K"]) -> Float[Tensor, "B T D"]:
        self._count(writes=1)
        return write(self.components, layer, z, self.frame)

    # --- heads -------------------------------------------------------------------------------------------------------

    def _written(self, layer: int, patch: Patch, state: LayerState | None, x: Float[Tensor, "B T D"]) -> Tensor:
        """What the heads of a layer write, with the attention output bias."""
        taken = patch.numbers("output", layer)
        if state is not None and not taken and not patch.touches(layer):
            written = state.written if state is self._shared else self._write(layer, state.z)
        elif state is None:
            b_O = self.components.weights.layers[layer].b_O
            written = torch.zeros_like(x) + (0.0 if b_O is None else b_O)
        else:
            z = self._changed(layer, patch, state) if patch.touches(layer) else state.z
            if taken:
                z = z.clone()
                nothing = z.new_zeros(len(taken), len(self.tokens), z.shape[-1])
                z[taken] = self._put(z[taken], nothing, heads=True)
            written = self._write(layer, z)
        if patch.biases:
            written = self._with_given_bias(layer, written)
        return written if not taken else written + self._given_written(layer, taken)

    def _given_written(self, layer: int, heads: list[int]) -> Float[Tensor, "B T D"]:
        """What these heads of the other model write, with its W_O; nothing at tokens that are not patched."""
        spec, shape = self.components.spec, self.before[0].shape
        packed, W_O = self._take(layer, "output"), self._take(layer, "W_O")
        z = self._put(packed.new_zeros(len(heads), *shape[:2], spec.d_head), packed[heads], heads=True)
        if len(heads) < spec.n_heads:
            W_O = W_O.reshape(spec.n_heads, spec.d_head, -1)[heads].flatten(0, 1)
        self._count(writes=len(heads) / spec.n_heads)
        return (z.permute(1, 2, 0, 3).reshape(-1, W_O.shape[0]) @ W_O).reshape(shape)

    def _with_given_bias(self, layer: int, written: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        own, theirs = self.components.weights.layers[layer].b_O, self.given.b_O(layer, written.device)
        if own is None or theirs is None:
            return written
        return self._put(written, (written - own).flatten(0, 1)[self.tokens] + theirs)

    def _changed(self, layer: int, patch: Patch, state: LayerState) -> Float[Tensor, "H B T K"]:
        """Weighted values of all heads, some of whose queries, keys, values or patterns are taken over."""
        chosen = {kind: patch.numbers(kind, layer) for kind in HEAD_KINDS if kind != "output"}
        shared = self.components.spec.n_heads // self.components.spec.n_kv_heads
        heads = sorted(
            {
                head
                for kind, numbers in chosen.items()
                for number in numbers
                for head in (range(number * shared, (number + 1) * shared) if kind in SHARED_KINDS else (number,))
            }
        )
        own = {"query": state.q, "key": state.k, "value": state.v}
        q, k, v = (self._replaced(layer, kind, x, chosen[kind]) for kind, x in own.items())
        k, v = (for_heads(self.components, x)[heads] for x in (k, v))
        pattern = state.pattern[heads]
        if chosen["query"] or chosen["key"]:
            pattern = self.components.pattern(layer, heads, q[heads][:, None], k[:, None], self.frame)[:, 0]
        if chosen["pattern"]:
            rows = [heads.index(head) for head in chosen["pattern"]]
            pattern[rows] = self._put(pattern[rows], self._take(layer, "pattern")[chosen["pattern"]], heads=True)
        z = state.z.clone()
        z[heads] = pattern @ v
        return z

    def _replaced(self, layer: int, kind: str, x: Float[Tensor, "n B T K"], numbers: list[int]) -> Float[Tensor, "n B T K"]:
        if not numbers:
            return x
        x = x.clone()
        x[numbers] = self._put(x[numbers], self._take(layer, kind)[numbers], heads=True)
        return x

    # --- the other model's activations --------------------------------------------------------------------------------

    def _take(self, layer: int, kind: str) -> Tensor:
        """Activations of the other model at one layer, or its W_O; read once while a layer runs."""
        if self._taken[0] != layer:
            self._taken = (layer, {})
        taken = self._taken[1]
        if kind not in taken:
            device = self.components.device
            taken[kind] = self.given.W_O(layer, device) if kind == "W_O" else self.given.of(self.chunk, layer, kind, device)
        return taken[kind]

    def _put(self, x: Tensor, packed: Tensor, heads: bool = False) -> Tensor:
        """A copy of [B, T, X], or of [n, B, T, X] for heads, with other values at the tokens that are patched."""
        flat = x.flatten(1, 2) if heads else x.flatten(0, 1)[None]
        flat = flat.clone()
        flat[:, self.tokens] = packed if heads else packed[None]
        return flat.view(x.shape)
