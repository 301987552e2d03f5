"""Interventions: the whole model runs, and a few heads are made to do something else than they would.

    scale    what the head writes is multiplied by a number: 0 removes it, 2 doubles it, -1 turns it round
    attend   the head's attention from one position goes to another one: all of it, or a share, the rest as it was

Nothing else is changed; everything behind the head sees the change. Shape letters: B examples, T positions, D residual width,
H heads, N readings, V vocabulary.

Source: Merullo et al. 2024, "Circuit Component Reuse Across Tasks in Transformer Language Models" (four heads are made to do in
one task what they do in another, and the model answers what it failed before).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.edits import edited_logits
from circuitdisc.engine.evaluate import Values, evaluate
from circuitdisc.engine.forward import Hooks
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example

Position = str | int


@dataclass(frozen=True)
class Intervention:
    """What is done to one head.

    Args:
        head: its name, `a3.h1`.
        scale: what its output is multiplied by, at every position; None leaves it.
        attend: (query, key): the positions that attention is moved from and to, as roles of the task (`s2`, `s2+1`, `end`) or
            token indices; None leaves it.
        share: how much of the query's attention goes to the key, above 0 and up to 1; the rest keeps its proportions.

    Raises:
        BadSetting: there is nothing to do, or a number is out of its bounds.
    """

    head: str
    scale: float | None = None
    attend: tuple[Position, Position] | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.scale is None and self.attend is None:
            raise BadSetting(f"the intervention on {self.head} changes nothing: give scale=, or attend=(query, key)")
        if self.scale is not None and not math.isfinite(self.scale):
            raise BadSetting(f"scale={self.scale!r} of {self.head} cannot be used: give a finite number")
        if self.attend is not None and (isinstance(self.attend, str) or len(self.attend) != 2):
            raise BadSetting(f"attend={self.attend!r} of {self.head} cannot be used: give two positions, (query, key)")
        if not 0 < self.share <= 1:
            raise BadSetting(f"share={self.share!r} of {self.head} must be above 0 and at most 1")

    @property
    def change(self) -> str:
        """What is done, in words: `attention from end to s2, output x 2`."""
        parts = []
        if self.attend is not None:
            how_much = "" if self.share == 1 else f"{self.share:.3g} of the "
            parts.append(f"{how_much}attention from {self.attend[0]} to {self.attend[1]}")
        if self.scale is not None:
            parts.append(f"output x {self.scale:.3g}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_interventions(model: Model, interventions: Sequence[Intervention]) -> None:
    """The model can be changed so.

    Raises:
        BadSetting: it has no fast components.
        UnknownName: it has no head of this name.
    """
    components_of(model, "changing a head")
    heads = model.graph.heads
    for intervention in interventions:
        if intervention.head not in heads:
            raise UnknownName("head", intervention.head, heads, f"{model.name} has {model.graph.describe()}, counted from 0.")


def evaluate_interventions(
    model: Model,
    examples: Sequence[Example],
    sets: Mapping[str, Sequence[Intervention]],
    metrics: Sequence[Metric],
    *,
    memory: str | int = "4GiB",
    on_progress: Callable[[int], object] | None = None,
) -> Values:
    """Metric values of several sets of interventions, example by example; an empty set is the model itself.

    Args:
        sets: name -> interventions, made together.
        memory: budget for activations.
        on_progress: called with the number of examples after each set.

    Returns:
        name -> metric name -> values. [B]

    Raises:
        BadSetting, UnknownName: as `check_interventions`; UnknownName also for a role that an example lacks.
        BadSetting: the key comes after the query in an example of a causal model.
    """
    for interventions in sets.values():
        check_interventions(model, interventions)

    def run(chunk: Chunk, made: Sequence[Intervention]) -> Float[Tensor, "N V"]:
        logits = intervened_logits(model, chunk, made)
        if on_progress is not None:
            on_progress(chunk.n_examples)
        return logits

    chunks = Patching(model, Ablation("zero"), (), memory=memory).shares(examples)
    return evaluate(chunks, {name: partial(run, made=made) for name, made in sets.items()}, metrics)


@torch.no_grad()
def intervened_logits(model: Model, chunk: Chunk, interventions: Sequence[Intervention]) -> Float[Tensor, "N V"]:
    """Logits at the readings when these heads are changed. Layers before the first changed head are not run again."""
    components, graph = model.components, model.graph
    places = graph.heads
    layers = [places[change.head][0] for change in interventions]
    return edited_logits(
        components,
        graph,
        chunk,
        intervention_hooks(components, graph, chunk, interventions),
        min(layers, default=graph.n_layers),
    )


def intervention_hooks(
    components: Components, graph: ComputationGraph, chunk: Chunk, interventions: Sequence[Intervention]
) -> Hooks:
    """Attention is moved in the patterns, outputs are scaled where heads write."""
    places = graph.heads

    def move(layer: int, pattern: Float[Tensor, "H B T T2"]) -> Float[Tensor, "H B T T2"]:
        moved = pattern.clone()
        for change in interventions:
            at, head = places[change.head]
            if at == layer and change.attend is not None:
                _move_attention(components, chunk, layer, moved[head], change)
        return moved

    def scale(layer: int, result: Float[Tensor, "H B T D"]) -> Float[Tensor, "H B T D"]:
        scaled = result.clone()
        for change in interventions:
            at, head = places[change.head]
            if at == layer and change.scale is not None:
                scaled[head] *= change.scale
        return scaled

    return {"pattern": move, "result": scale}


def _move_attention(
    components: Components, chunk: Chunk, layer: int, pattern: Float[Tensor, "B T T2"], change: Intervention
) -> None:
    """Set a head's attention from one position to another, in place."""
    assert change.attend is not None, "there is nothing to move"
    query, key = (chunk.batch.position(position) for position in change.attend)
    rows = torch.arange(len(query), device=pattern.device)
    _check_allowed(components, chunk, layer, query, key, change)
    pattern[rows, query] *= 1 - change.share
    pattern[rows, query, key] += change.share


def _check_allowed(
    components: Components, chunk: Chunk, layer: int, query: Int[Tensor, "B"], key: Int[Tensor, "B"], change: Intervention
) -> None:
    assert chunk.frame is not None, "components need a frame"
    assert change.attend is not None, "there is nothing to move"
    allowed = chunk.frame.allowed[components.spec.window[layer] if components.spec.window else None]
    bad = (~allowed[torch.arange(len(query), device=query.device), query, key]).nonzero().flatten().tolist()
    if bad:
        at, to = (int(chunk.batch.position_ids[bad[0], position[bad[0]]]) for position in (query, key))
        raise BadSetting(
            f"{change.head} cannot attend from '{change.attend[0]}' (token {at}) to '{change.attend[1]}' (token {to}) in "
            f"{len(bad)} of {len(query)} examples: a head sees only tokens up to its own"
            f"{'' if not components.spec.window else ', within its window'}. Choose a key that comes first"
        )
