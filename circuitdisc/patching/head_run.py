"""Head circuits run the fast way: one residual stream, whole heads (or their attention patterns) replaced.

A head circuit cuts every edge out of the heads it drops, so all receivers at one place read the same residual and one run
costs no more than a run of the model.

Shape letters: L layers, H heads, B examples, T positions, D residual width, N readings.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Target
from circuitdisc.circuit import Circuit
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components
from circuitdisc.patching.prepared import Chunk


@torch.no_grad()
def head_logits(
    cut: Components,
    graph: ComputationGraph,
    chunk: Chunk,
    kept: Bool[np.ndarray, "L H"],
    target: Target = "output",
    layer: int = 0,
    before: Float[Tensor, "B T D"] | None = None,
) -> tuple[Float[Tensor, "N V"], list[Float[Tensor, "B T D"]]]:
    """Logits at the readings when only these heads are kept, and the residual before each layer from `layer` on.

    Args:
        target: what is cut of a dropped head: its `output`, or its attention `pattern`.
        before: the residual before `layer` under the same heads; None starts at the embedding.
    """
    batch, frame, seen = chunk.batch, chunk.frame, []
    assert frame is not None, "components need a frame"
    x = cut.embed(batch.clean, batch.position_ids, split=False)[0] if before is None else before
    for index in range(layer if before is not None else 0, cut.spec.n_layers):
        seen.append(x)
        outputs = written_by_heads(cut, graph, chunk, index, x, kept[index], target)
        b_O = cut.weights.layers[index].b_O
        after = x + outputs.sum(0) + (0.0 if b_O is None else b_O)
        if graph.has_mlp:
            after = after + cut.mlp(index, x if graph.parallel else after)
        x = after
    return cut.unembed(x[batch.read_example, batch.read_position][None])[0], seen


def written_by_heads(
    cut: Components,
    graph: ComputationGraph,
    chunk: Chunk,
    layer: int,
    x: Float[Tensor, "B T D"],
    kept: Bool[np.ndarray, "H"],
    target: Target,
) -> Float[Tensor, "H B T D"]:
    """What all heads of a layer write, the ablated ones replaced."""
    frame, heads = chunk.frame, range(cut.spec.n_heads)
    assert frame is not None, "components need a frame"
    rows, live = x[None, None], torch.from_numpy(kept).to(x.device)[:, None, None, None]
    q, k, v = (cut.read(layer, qkv, heads, rows, frame) for qkv in ("q", "k", "v"))
    pattern = cut.pattern(layer, q, k, frame)[:, 0]
    if target == "pattern":
        other = chunk.ablated_patterns.get(layer)
        pattern = torch.where(live, pattern, torch.zeros_like(pattern) if other is None else other)
    outputs = cut.head_output(layer, heads, pattern[:, None] @ v, frame)[:, 0]
    if target == "pattern":
        return outputs
    first = graph.sender_index[f"a{layer}.h0"]
    return torch.where(live, outputs, chunk.ablated[first : first + len(kept)])


def head_circuit(graph: ComputationGraph, kept: Bool[np.ndarray, "L H"]) -> Circuit:
    """The head circuit that keeps these heads."""
    return Circuit.from_heads(graph, [f"a{layer}.h{head}" for layer, head in np.argwhere(kept)])
