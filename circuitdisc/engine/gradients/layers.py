"""A layer at once: all heads' projections and outputs as single matrix products, and the places where senders write.

Shape letters: C rows, B examples, T positions, D residual width, H heads, K head width.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import wide
from circuitdisc.models.backward import PLAIN, BackwardRule
from circuitdisc.models.components import Components
from circuitdisc.models.frame import Frame

# A place in the residual stream: a layer, and before its heads or before its MLP. The embedding writes before (0, HEADS).
Place = tuple[int, int]
EMBEDDING, HEADS, MLP = -1, 0, 1


class SenderGroup(NamedTuple):
    """Senders that write at one place: the embedding, the heads of a layer, or an MLP.

    Args:
        place: (layer, HEADS), (layer, MLP), or (-1, EMBEDDING).
        first, stop: these senders are first .. stop - 1 of the graph's.
    """

    place: Place
    first: int
    stop: int

    def next_place(self, graph: ComputationGraph) -> Place:
        """The first place whose receivers read these senders; (n_layers, HEADS) is the final residual."""
        layer, kind = self.place
        if kind == HEADS and graph.has_mlp and not graph.parallel:
            return (layer, MLP)
        return (layer + 1, HEADS)


def sender_groups(graph: ComputationGraph) -> list[SenderGroup]:
    """All senders, place by place, in topological order."""
    first = 2 if graph.split_embeddings else 1
    groups = [SenderGroup((-1, EMBEDDING), 0, first)]
    for layer in range(graph.n_layers):
        groups.append(SenderGroup((layer, HEADS), first, first + graph.n_heads))
        first += graph.n_heads
        if graph.has_mlp:
            groups.append(SenderGroup((layer, MLP), first, first + 1))
            first += 1
    return groups


def projections(components: Components, layer: int, normed: Float[Tensor, "C B T D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Every query head's q, k and v before rotation, from the layer's input behind its norm. [H, C, B, T, K] each"""
    q, k, v = (
        components.projected(layer, "q", normed),
        components.projected(layer, "k", normed),
        components.projected(layer, "v", normed),
    )
    shared = components.heads_per_group
    if shared > 1:
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
    return q.contiguous(), k.contiguous(), v.contiguous()


def turned(
    components: Components,
    layer: int,
    q: Float[Tensor, "H C B T K"],
    k: Float[Tensor, "H C B T K"],
    frame: Frame,
    rule: BackwardRule = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Every query head's q and k as the pattern takes them, from `projections`."""
    heads, shared = range(q.shape[0]), components.heads_per_group
    return (
        components.turn(layer, "q", heads, q, frame, rule),
        components.turn(layer, "k", [head // shared for head in heads], k, frame, rule),
    )


def heads_sum(components: Components, layer: int, z: Float[Tensor, "H C B T K"]) -> Float[Tensor, "C B T D"]:
    """What all heads of a layer write together; `z` holds the scale of a norm after attention."""
    norm = components.weights.layers[layer].norm_after_attention
    total = components.heads_sum(layer, z)
    return total if norm is None or norm.scale is None else total * norm.scale


def heads_apart(components: Components, layer: int, z: Float[Tensor, "h n K"], heads: slice) -> Float[Tensor, "h n D"]:
    """What each of these heads of a layer writes at n tokens; `z` holds the scale of a norm after attention.

    On a CPU in float32 at least: batched products of narrower numbers are slow there when the weights are stored outputs first.
    """
    W_O, norm = components.writing(layer, heads), components.weights.layers[layer].norm_after_attention
    out = wide(z) @ wide(W_O) if z.device.type == "cpu" else z @ W_O
    return out if norm is None or norm.scale is None else out * norm.scale
