"""The whole model runs, and some heads do something else than they would: differentiable with respect to what is done.

A change may touch a head's attention pattern, its pattern-weighted values z (before W_O), or what it writes. Everything
behind the head sees the change. What cannot change is not run again: layers before the first changed one, and, in a causal
model, tokens before the first changed one, whose keys and values are those of the clean run.

Shape letters: L layers, H heads, K head width, C components, B examples, T positions, D residual width, N readings,
W columns of the unembedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.evaluate import of_residual
from circuitdisc.engine.forward import Hooks, Past, forward, keys_values
from circuitdisc.engine.gradients.memory import Shapes
from circuitdisc.engine.masked_run import examples_in_piece
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.path_effects import ALL, Positions, positions_mask
from circuitdisc.engine.prepared import prepare
from circuitdisc.engine.requirements import gradients_of
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric
from circuitdisc.models.components import Components
from circuitdisc.models.frame import Frame
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example


@dataclass(frozen=True)
class Ready:
    """Examples made ready for runs with changed heads.

    Args:
        chunk: the examples; of its clean values only those of the embedding's senders are there, of the ablated ones those at
            the tokens that are run again.
        residual: what layer `first` reads in the clean run, at the tokens that are run again. [B, T, D]
        frame: angles and scales of these tokens, with the masks of all.
        first: the first layer that is run again.
        start: the first token that is.
        before: keys and values of the tokens before it, by layer. [G, B, start, K]
    """

    chunk: Chunk
    residual: Float[Tensor, "B T D"]
    frame: Frame
    first: int = 0
    start: int = 0
    before: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def places(self, positions: Positions) -> Bool[Tensor, "B T"]:
        """True at these positions, among the tokens that are run again."""
        return positions_mask(self.chunk.batch, positions)[:, self.start :]

    @property
    def reads(self) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
        """Example and token of each reading, among the tokens that are run again."""
        return self.chunk.batch.read_example, self.chunk.batch.read_position - self.start

    @property
    def n(self) -> int:
        return self.chunk.batch.n_examples


class HeadChange(Protocol):
    """What is done to heads, for examples at hand."""

    def hooks(self, ready: Ready) -> Hooks: ...


class MixedHeads:
    """Heads whose output is mixed with that of the corrupted run: (1 - m) * live + m * corrupted, at some positions.

    A component is a set of heads with one mask m. A head in two components keeps the product of the shares (1 - m).

    Args:
        mask: m of each component: 0 leaves it, 1 replaces it. [C]
        members: the heads of each component. [C, L, H]
        places: where each of them is patched, or all of them (C = 1), for examples at hand. [C, B, T]
        n_embed: senders before the first head.
        per_layer: senders of a layer.
    """

    def __init__(
        self,
        mask: Float[Tensor, "C"],
        members: Bool[Tensor, "C L H"],
        places: Callable[[Ready], Bool[Tensor, "C B T"]],
        n_embed: int,
        per_layer: int,
    ) -> None:
        self.mask, self.members, self.places = mask, members, places
        self.n_embed, self.per_layer = n_embed, per_layer

    def hooks(self, ready: Ready) -> Hooks:
        places = self.places(ready)

        def mix(layer: int, result: Float[Tensor, "H B T D"]) -> Float[Tensor, "H B T D"]:
            here = self.members[:, layer].any(-1).nonzero().flatten()
            if not len(here):
                return result
            where = places if places.shape[0] == 1 else places[here]
            share = self.mask[here, None, None, None] * self.members[here, layer, :, None, None] * where[:, None]
            share = 1 - (1 - share).prod(0)
            first = self.n_embed + layer * self.per_layer
            corrupted = ready.chunk.ablated[first : first + result.shape[0]]
            return result + share.to(result.dtype)[..., None] * (corrupted - result)

        return {"result": mix}


def changed_residual(model: Model, ready: Ready, hooks: Hooks) -> Float[Tensor, "N D"]:
    """The final residual at the readings under hooks, with gradients to whatever they are made of."""
    past = Past(ready.before, ready.start)
    x = forward(model.components, model.graph, ready.frame, ready.residual, hooks, first=ready.first, past=past)
    return x[ready.reads]


def changed_logits(model: Model, ready: Ready, change: HeadChange | None, columns: bool = False) -> Float[Tensor, "N W"]:
    """Logits at the readings under a change, with gradients to whatever it is made of.

    Args:
        change: None changes nothing.
        columns: of the answers' tokens alone, as `Labels.columns` has them; else of the whole vocabulary.
    """
    final = changed_residual(model, ready, {} if change is None else change.hooks(ready))
    return model.components.unembed(final[None], ready.chunk.labels.columns if columns else None)[0]


def metric_values(model: Model, ready: Ready, change: HeadChange, metric: Metric) -> Float[Tensor, "B"]:
    """A metric under a change, example by example."""
    return of_residual(model, ready.chunk, changed_residual(model, ready, change.hooks(ready))[None], metric)[0]


def hold(
    model: Model,
    ablation: Ablation,
    examples: Sequence[Example],
    metric: Metric,
    *,
    batch: int,
    first: int = 0,
    positions: Positions = ALL,
    memory: str | int = "4GiB",
    name: str = "changed heads",
) -> list[list[Ready]]:
    """Examples made ready in mini-batches, each in as few pieces as fit the budget.

    Args:
        ablation: `resample` keeps what every sender writes on the corrupted prompts.
        batch: examples in a mini-batch.
        first: the first layer that will be changed.
        positions: where heads will be changed: `all`, a position (see `tasks/roles.py`), or several.
        name: of the tool, for messages.

    Raises:
        BadSetting: the model runs by hooks, the metric has no gradient, or the examples do not fit the budget.
        BadTask: corrupted prompts are needed and missing.
    """
    components, graph = gradients_of(model, ablation, metric, name), model.graph
    piece = examples_in_piece(Shapes.of(components, metric), graph, ablation, examples, batch, parse_memory(memory))
    batches: list[list[Ready]] = []
    for at in range(0, len(examples), batch):
        chunks = prepare(model, ablation, examples[at : at + batch], None, piece)
        batches.append([_make_ready(components, graph, chunk, first, positions) for chunk in chunks])
    return batches


def _make_ready(components: Components, graph: ComputationGraph, chunk: Chunk, first: int, positions: Positions) -> Ready:
    """One piece made ready, and what is not needed of it let go."""
    frame, n_embed = chunk.frame, int(graph.n_upstream[0])
    assert frame is not None, "components need a frame"
    start = 0
    if components.spec.causal:  # nothing before the first changed token sees it; readings have to be there, too
        changed = int(positions_mask(chunk.batch, positions).any(0).nonzero().min())
        start = min(changed, int(chunk.batch.read_position.min()))
    residuals = {}
    for layer in range(first, graph.n_layers + 1):
        n_before = n_embed + layer * (graph.n_heads + graph.has_mlp)
        residuals[layer] = chunk.clean[:n_before].sum(0) + components.constant_before(layer)
    before = {}
    for layer in range(first, graph.n_layers) if start else ():
        k, v = keys_values(components, layer, residuals[layer], frame)
        before[layer] = (k[:, :, :start].clone(), v[:, :, :start].clone())
    ablated = chunk.ablated if chunk.ablated.shape[2] == 1 or not start else chunk.ablated[:, :, start:].clone()
    kept = replace(chunk, clean=chunk.clean[:n_embed].clone(), ablated=ablated)
    return Ready(kept, residuals[first][:, start:].clone(), frame.tail(start), first, start, before)


@torch.no_grad()
def head_values(model: Model, examples: Sequence[Ready]) -> Float[Tensor, "L H K"]:
    """Mean over examples of every head's pattern-weighted values z where the last answer is read."""
    total, n = torch.zeros(()), 0
    for ready in examples:
        layers: list[Float[Tensor, "H B T K"]] = []

        def keep(layer: int, z: Tensor, layers: list[Tensor] = layers) -> Tensor:
            layers.append(z)
            return z

        changed_residual(model, ready, {"z": keep})
        at = ready.chunk.batch.position("end") - ready.start
        rows = torch.arange(ready.n, device=at.device)
        total = total.to(at.device) + torch.stack([z[:, rows, at].double().sum(1) for z in layers])
        n += ready.n
    return (total / n).to(model.dtype)
