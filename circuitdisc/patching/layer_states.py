"""The uncut run of a model, layer by layer: queries, keys, values, patterns and outputs of one layer at a time.

Nothing of a layer is kept once the next one is asked for, so that large models fit. Heads' outputs are added up in one
product of matrices, and never held apart.

Shape letters: B examples, T positions, D residual width, H heads, G groups of heads that share keys and values, K head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components, Frame
from circuitdisc.tasks.base import PromptBatch


@dataclass
class LayerState:
    """What one layer computes from the residual before it.

    Args:
        x: the residual before the layer. [B, T, D]
        q, k, v: queries and keys as the pattern takes them (turned by their positions), and values. [H or G, B, T, K]
        pattern: attention patterns. [H, B, T, T2]
        z: the values weighted by the patterns, before W_O. [H, B, T, K]
        written: what all heads write together, with the attention output bias. [B, T, D]
        mlp: what the MLP writes; None for models without. [B, T, D]
    """

    layer: int
    x: Float[Tensor, "B T D"]
    q: Float[Tensor, "H B T K"]
    k: Float[Tensor, "G B T K"]
    v: Float[Tensor, "G B T K"]
    pattern: Float[Tensor, "H B T T2"]
    z: Float[Tensor, "H B T K"]
    written: Float[Tensor, "B T D"]
    mlp: Float[Tensor, "B T D"] | None = None


@torch.no_grad()
def layer_states(cut: Components, graph: ComputationGraph, batch: PromptBatch, frame: Frame) -> Iterator[LayerState]:
    """Run the clean prompts; yields every layer's state, then one whose `x` is the final residual and the rest empty.

    The scales of norms after attention are recorded in `frame`.
    """
    x = cut.embed(batch.clean, batch.position_ids, split=False)[0]
    for layer in range(cut.spec.n_layers):
        state = attend(cut, layer, x, frame)
        cut.fix_head_scale(layer, state.z[:, None], frame)
        state.written = write(cut, layer, state.z, frame)
        after = x + state.written
        if graph.has_mlp:
            state.mlp = cut.mlp(layer, x if graph.parallel else after)
            after = after + state.mlp
        yield state
        x = after
    empty = x[:0]
    yield LayerState(cut.spec.n_layers, x, empty, empty, empty, empty, empty, empty)


def attend(cut: Components, layer: int, x: Float[Tensor, "B T D"], frame: Frame) -> LayerState:
    """All heads of a layer up to their weighted values; nothing is written yet."""
    block = cut.weights.layers[layer]
    normed = cut.norm(x, block.norm_attention)
    q = cut.rotate(_project(normed, block.W_Q, block.b_Q)[:, None], frame)[:, 0]
    k = cut.rotate(_project(normed, block.W_K, block.b_K)[:, None], frame)[:, 0]
    v = _project(normed, block.W_V, block.b_V)
    pattern = cut.pattern(layer, q[:, None], for_heads(cut, k)[:, None], frame)[:, 0]
    return LayerState(layer, x, q, k, v, pattern, pattern @ for_heads(cut, v), x[:0])


def write(cut: Components, layer: int, z: Float[Tensor, "H B T K"], frame: Frame) -> Float[Tensor, "B T D"]:
    """What all heads write, with the attention output bias."""
    written = cut.after_attention(layer, cut.heads_sum(layer, z[:, None])[0], frame)
    b_O = cut.weights.layers[layer].b_O
    return written if b_O is None else written + b_O


def for_heads(cut: Components, x: Float[Tensor, "G ..."]) -> Float[Tensor, "H ..."]:
    """Keys or values of groups, once for every query head."""
    shared = cut.spec.n_heads // cut.spec.n_kv_heads
    return x if shared == 1 else x.repeat_interleave(shared, 0)


def _project(
    normed: Float[Tensor, "B T D"], weight: Float[Tensor, "n D K"], bias: Float[Tensor, "n K"] | None
) -> Float[Tensor, "n B T K"]:
    """One product of matrices for all heads."""
    n, D, K = weight.shape
    flat = normed @ weight.permute(1, 0, 2).reshape(D, n * K)
    flat = flat if bias is None else flat + bias.reshape(-1)
    return flat.view(*normed.shape[:-1], n, K).permute(2, 0, 1, 3)
