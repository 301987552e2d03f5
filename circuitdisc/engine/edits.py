"""What can be done to a forward pass, as hooks (`forward.py`).

    kept_heads      a head circuit: dropped heads write their ablated value, or attend as in the ablated run
    interventions   heads scaled, or their attention moved
    interchange     nodes write what they write on another prompt
    neurons         neurons ablated

Shape letters: L layers, H heads, M neurons of a layer, B examples, T positions, D residual width, N readings, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Target
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.forward import Hooks, forward, logits_at
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components


@torch.no_grad()
def edited_logits(
    components: Components, graph: ComputationGraph, chunk: Chunk, hooks: Hooks, first: int = 0
) -> Float[Tensor, "N V"]:
    """Logits at the readings of a run of the clean prompts under hooks.

    Args:
        first: the first layer that they change; those before it are not run again.
    """
    assert chunk.frame is not None, "components need a frame"
    final = forward(components, graph, chunk.frame, residual_before(components, graph, chunk, first), hooks, first=first)
    return logits_at(components, final, chunk.batch.reads)


def residual_before(components: Components, graph: ComputationGraph, chunk: Chunk, layer: int) -> Float[Tensor, "B T D"]:
    """The clean residual that a layer reads, from what the senders before it write."""
    n_senders = graph.sender_index[f"a{layer}.h0"] if layer < graph.n_layers else graph.n_senders
    return chunk.clean[:n_senders].sum(0) + components.constant_before(layer)


def kept_heads_hooks(graph: ComputationGraph, chunk: Chunk, kept: Bool[np.ndarray, "L H"], target: Target = "output") -> Hooks:
    """Only these heads are kept.

    Args:
        target: what is cut of a dropped head: its `output`, or its attention `pattern`.
    """
    live = torch.from_numpy(kept).to(chunk.clean.device)
    whole = [bool(row.all()) for row in kept]

    def leave_out(layer: int, z: Float[Tensor, "H B T K"]) -> Float[Tensor, "H B T K"]:
        return z if whole[layer] else torch.where(live[layer, :, None, None, None], z, 0.0)

    def add_ablated(layer: int, written: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if whole[layer]:
            return written
        first = graph.sender_index[f"a{layer}.h0"]
        return written + chunk.ablated[first : first + graph.n_heads][~live[layer]].sum(0)

    def attend_ablated(layer: int, pattern: Float[Tensor, "H B T T2"]) -> Float[Tensor, "H B T T2"]:
        ablated = chunk.ablated_patterns.get(layer)
        ablated = torch.zeros_like(pattern) if ablated is None else ablated
        return torch.where(live[layer, :, None, None, None], pattern, ablated)

    if target == "pattern":
        return {"pattern": attend_ablated}
    return {"z": leave_out, "attn_out": add_ablated}  # so that all heads stay one product with W_O


def interchange_hooks(graph: ComputationGraph, chunk: Chunk, nodes: Collection[str], where: Bool[Tensor, "B T"]) -> Hooks:
    """Heads and MLPs write what they write on the corrupted prompt.

    Args:
        where: at which positions.
    """
    heads = {(node.layer, node.head): graph.sender_index[node.name] for node in graph.senders if node.name in nodes}

    def write_heads(layer: int, result: Float[Tensor, "H B T D"]) -> Float[Tensor, "H B T D"]:
        rows = [
            torch.where(where[..., None], chunk.ablated[heads[layer, head]], row) if (layer, head) in heads else row
            for head, row in enumerate(result)
        ]
        return torch.stack(rows)

    def write_mlp(layer: int, written: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if f"m{layer}" not in nodes:
            return written
        return torch.where(where[..., None], chunk.ablated[graph.sender_index[f"m{layer}"]], written)

    return {"result": write_heads, "mlp_out": write_mlp}


def neuron_hooks(
    masked: Bool[np.ndarray, "L M"], ablated: Callable[[int, Float[Tensor, "B T M"]], Float[Tensor, "B T M"]]
) -> Hooks:
    """Neurons are ablated at every token.

    Args:
        masked: True at the neurons to ablate.
        ablated: layer and live activations -> what ablated neurons carry there.
    """

    def replace(layer: int, hidden: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        if not masked[layer].any():
            return hidden
        return torch.where(torch.from_numpy(masked[layer]).to(hidden.device), ablated(layer, hidden), hidden)

    return {"mlp_post": replace}


def first_changed(layers: Sequence[int], n_layers: int) -> int:
    """The first of these layers; behind the last one if there are none."""
    return min(layers, default=n_layers)
