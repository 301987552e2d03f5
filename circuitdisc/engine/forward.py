"""The one forward pass: a model's layers on one residual stream, with hooks at named points.

    resid_pre   the residual before the layer                                  [B, T, D]
    q           queries as the pattern takes them (after rotation and norm)     [H, B, T, K]
    k, v        keys (as the pattern takes them) and values, once a group       [G, B, T2, K]
    pattern     attention patterns                                              [H, B, T, T2]
    z           the values weighted by the patterns, before W_O                 [H, B, T, K]
    result      what each head writes                                           [H, B, T, D]
    attn_out    what all heads write together, with the attention output bias   [B, T, D]
    mlp_post    neurons after the activation (and the gate); of a mixture of    [B, T, M]
                experts what it reads
    mlp_out     what the MLP writes                                             [B, T, D]
    resid_post  the residual after the layer                                    [B, T, D]

A hook is called with the layer's number and the value, and gives the value to go on with. Everything that runs a whole model
with something changed (head circuits, interventions, interchange, neurons, mixed heads) is a set of hooks; everything that only
looks is a hook that hands on what it saw. What each head writes is computed apart only where `result` is hooked; otherwise all
heads are one product with W_O.

In models with a norm after attention its scale is frozen at the full run's (`Frame.head_scale`), so that heads stay separate.

Shape letters: B examples, T positions, T2 positions attended to, D residual width, H heads, G groups of heads that share keys
and values, K head width, M MLP width, V vocabulary, N readings.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components
from circuitdisc.models.frame import Frame
from circuitdisc.tasks.base import PromptBatch

POINTS = ("resid_pre", "q", "k", "v", "pattern", "z", "result", "attn_out", "mlp_post", "mlp_out", "resid_post")

Hook = Callable[[int, Tensor], Tensor]
Hooks = Mapping[str, Hook]


@dataclass(frozen=True)
class Past:
    """Keys and values of the tokens before those that run, by layer.

    Args:
        keys_values: layer -> keys and values. [G, B, start, K] each
        start: how many tokens they are of; the tokens that run begin there.
    """

    keys_values: Mapping[int, tuple[Float[Tensor, "G B start K"], Float[Tensor, "G B start K"]]]
    start: int


@dataclass
class LayerState:
    """What one layer computes from the residual before it, hooks applied.

    Args:
        x: the residual before the layer. [B, T, D]
        q, k, v: queries and keys as the pattern takes them, and values. [H or G, B, T, K]
        pattern: attention patterns. [H, B, T, T2]
        z: the values weighted by the patterns, before W_O. [H, B, T, K]
        written: what all heads write together, with the attention output bias. [B, T, D]
        after: the residual after the layer. [B, T, D]
        mlp: what the MLP writes; None for models without. [B, T, D]
    """

    layer: int
    x: Float[Tensor, "B T D"]
    q: Float[Tensor, "H B T K"]
    k: Float[Tensor, "G B T2 K"]
    v: Float[Tensor, "G B T2 K"]
    pattern: Float[Tensor, "H B T T2"]
    z: Float[Tensor, "H B T K"]
    written: Float[Tensor, "B T D"]
    after: Float[Tensor, "B T D"]
    mlp: Float[Tensor, "B T D"] | None = None


def forward(
    components: Components,
    graph: ComputationGraph,
    frame: Frame,
    x: Float[Tensor, "B T D"],
    hooks: Hooks | None = None,
    *,
    first: int = 0,
    past: Past | None = None,
    fix_scale: bool = False,
) -> Float[Tensor, "B T D"]:
    """The final residual of a run; see `layer_states` for the arguments."""
    for state in layer_states(components, graph, frame, x, hooks, first=first, past=past, fix_scale=fix_scale):
        x = state.after
    return x


def layer_states(
    components: Components,
    graph: ComputationGraph,
    frame: Frame,
    x: Float[Tensor, "B T D"],
    hooks: Hooks | None = None,
    *,
    first: int = 0,
    past: Past | None = None,
    fix_scale: bool = False,
) -> Iterator[LayerState]:
    """Run the layers one by one. Nothing of a layer is kept here once the next is asked for, so that large models fit.

    Args:
        x: the residual before the first layer.
        hooks: point -> hook.
        first: the layer to begin with.
        past: keys and values of tokens before those in x.
        fix_scale: record the scales of norms after attention in `frame`, as a run with nothing changed does.
    """
    hooks = {} if hooks is None else hooks
    for layer in range(first, graph.n_layers):
        x = apply(hooks, "resid_pre", layer, x)
        state = attend(components, layer, x, frame, hooks, past, fix_scale)
        if fix_scale:
            components.fix_head_scale(layer, state.z[:, None], frame)
        state.written = write(components, layer, state.z, frame, hooks)
        x = x + state.written
        if graph.has_mlp:
            read = state.x if graph.parallel else x
            if "mlp_post" in hooks:
                out = components.mlp_output(layer, hooks["mlp_post"](layer, components.hidden(layer, read)))
            else:
                out = components.mlp(layer, read)
            state.mlp = apply(hooks, "mlp_out", layer, out)
            x = x + state.mlp
        x = state.after = apply(hooks, "resid_post", layer, x)
        yield state
        del state


@torch.no_grad()
def clean_states(components: Components, graph: ComputationGraph, batch: PromptBatch, frame: Frame) -> Iterator[LayerState]:
    """The layers of a run of the clean prompts, with nothing changed; records the scales of norms after attention."""
    x = components.embed(batch.clean, batch.position_ids, split=False)[0]
    yield from layer_states(components, graph, frame, x, fix_scale=True)


def apply(hooks: Hooks, point: str, layer: int, value: Tensor) -> Tensor:
    """The value that a hook gives, or the value itself where there is none."""
    return hooks[point](layer, value) if point in hooks else value


def attend(
    components: Components,
    layer: int,
    x: Float[Tensor, "B T D"],
    frame: Frame,
    hooks: Hooks | None = None,
    past: Past | None = None,
    fix_scale: bool = False,
) -> LayerState:
    """All heads of a layer up to their weighted values; nothing is written yet."""
    hooks = {} if hooks is None else hooks
    normed = components.norm(x, components.weights.layers[layer].norm_attention)
    q, k = components.projected(layer, "q", normed), components.projected(layer, "k", normed)
    if fix_scale:
        components.fix_turn_scale(layer, "q", q, frame)
        components.fix_turn_scale(layer, "k", k, frame)
    q = apply(hooks, "q", layer, components.turn(layer, "q", range(q.shape[0]), q, frame))
    k = apply(hooks, "k", layer, components.turn(layer, "k", range(k.shape[0]), k, frame))
    v = apply(hooks, "v", layer, components.projected(layer, "v", normed))
    queries = None
    if past is not None and past.start:
        k, v = (torch.cat([before, here], dim=2) for before, here in zip(past.keys_values[layer], (k, v), strict=True))
        queries = torch.arange(past.start, past.start + x.shape[1], device=x.device)
    pattern = components.pattern(layer, range(q.shape[0]), q, for_heads(components, k), frame, queries)
    pattern = apply(hooks, "pattern", layer, pattern)
    z = apply(hooks, "z", layer, pattern @ for_heads(components, v))
    return LayerState(layer, x, q, k, v, pattern, z, x[:0], x[:0])


def keys_values(
    components: Components, layer: int, x: Float[Tensor, "B T D"], frame: Frame
) -> tuple[Float[Tensor, "G B T K"], Float[Tensor, "G B T K"]]:
    """Keys, as the pattern takes them, and values of a layer that reads this residual."""
    normed = components.norm(x, components.weights.layers[layer].norm_attention)
    k = components.projected(layer, "k", normed)
    return components.turn(layer, "k", range(k.shape[0]), k, frame), components.projected(layer, "v", normed)


def write(
    components: Components, layer: int, z: Float[Tensor, "H B T K"], frame: Frame, hooks: Hooks | None = None
) -> Float[Tensor, "B T D"]:
    """What all heads write, with the attention output bias."""
    hooks = {} if hooks is None else hooks
    if "result" in hooks:
        written = hooks["result"](layer, components.head_output(layer, range(z.shape[0]), z, frame)).sum(0)
    else:
        written = components.after_attention(layer, components.heads_sum(layer, z[:, None])[0], frame)
    b_O = components.weights.layers[layer].b_O
    return apply(hooks, "attn_out", layer, written if b_O is None else written + b_O)


def for_heads(components: Components, x: Float[Tensor, "G ..."]) -> Float[Tensor, "H ..."]:
    """Keys or values of groups, once for every query head."""
    return x if components.heads_per_group == 1 else x.repeat_interleave(components.heads_per_group, 0)


def joined(*parts: Hooks) -> Hooks:
    """Several sets of hooks as one; at a point where two have one, the later sees what the earlier gives."""
    hooks: dict[str, Hook] = {}
    for part in parts:
        for point, hook in part.items():
            hooks[point] = _then(hooks[point], hook) if point in hooks else hook
    return hooks


def _then(first: Hook, second: Hook) -> Hook:
    return lambda layer, value: second(layer, first(layer, value))


def logits_at(components: Components, x: Float[Tensor, "B T D"], reads: tuple[Tensor, Tensor]) -> Float[Tensor, "N V"]:
    """Logits of the whole vocabulary at some tokens, from a final residual.

    Args:
        reads: example and position of each.
    """
    return components.unembed(x[reads][None])[0]
