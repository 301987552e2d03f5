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
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.edits import kept_heads_hooks
from circuitdisc.engine.forward import forward, joined, logits_at
from circuitdisc.graph import ComputationGraph, heads_where
from circuitdisc.models.components import Components


@torch.no_grad()
def head_logits(
    components: Components,
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
    batch, seen = chunk.batch, []
    assert chunk.frame is not None, "components need a frame"

    def see(index: int, x: Float[Tensor, "B T D"]) -> Tensor:
        seen.append(x)
        return x

    start, x = (0, components.embed(batch.clean, batch.position_ids, split=False)[0]) if before is None else (layer, before)
    hooks = joined(kept_heads_hooks(graph, chunk, kept, target), {"resid_pre": see})
    return logits_at(components, forward(components, graph, chunk.frame, x, hooks, first=start), batch.reads), seen


def head_circuit(graph: ComputationGraph, kept: Bool[np.ndarray, "L H"]) -> Circuit:
    """The head circuit that keeps these heads."""
    return Circuit.from_heads(graph, heads_where(kept))
