"""The run of a circuit in a model whose norms that couple heads are computed anew: every node, at every token.

    input of receiver r = sum over senders s of (live_s if s -> r is kept, else ablated_s)

A layer's heads are read together: the size of all queries, of all keys and of everything that the heads write is this run's.
What an ablated sender carries is its own run's, with that run's sizes.

Shape letters: S senders, R receivers, B examples, T positions, D residual width, K head width, N readings.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.graph import QKV, ComputationGraph
from circuitdisc.models.components import Components

Read = Callable[[list[int], Tensor], Tensor]


@torch.no_grad()
def coupled_run(
    components: Components, graph: ComputationGraph, chunk: Chunk, mask: Bool[np.ndarray, "R S"]
) -> Float[Tensor, "N D"]:
    """The final residual at the readings when the circuit `mask` runs."""
    kept = torch.tensor(mask).to(chunk.clean)
    written: list[Tensor] = []
    assert chunk.frame is not None, "components have a frame"
    frame = replace(chunk.frame, head_scale={}, turn_scale={})

    def read(receivers: list[int], constant: Float[Tensor, "D"]) -> Float[Tensor, "n B T D"]:
        n = int(graph.n_upstream[receivers[0]])
        live = torch.stack(written[:n]) - chunk.ablated[:n]
        return torch.einsum("rs,sbtd->rbtd", kept[receivers][:, :n], live) + (constant + chunk.ablated_before(n))

    written.extend(chunk.clean[: int(graph.n_upstream[0])])
    heads = range(graph.n_heads)
    for layer in range(graph.n_layers):
        inputs: dict[QKV, Tensor] = {}
        for qkv in ("q", "k", "v"):
            rows = [graph.receiver_index[f"a{layer}.h{head}<{qkv}>"] for head in heads]
            x = read(rows, components.constant_before(layer))[:, None]
            projected = components.project(layer, qkv, heads, x)
            if qkv != "v":
                components.fix_turn_scale(layer, qkv, projected, frame)
                groups = [head // components.heads_per_group if qkv == "k" else head for head in heads]
                projected = components.turn(layer, qkv, groups, projected, frame)
            inputs[qkv] = projected
        z = components.pattern(layer, heads, inputs["q"], inputs["k"], frame) @ inputs["v"]
        components.fix_head_scale(layer, z, frame)
        outputs = components.head_output(layer, heads, z, frame)[:, 0]
        mlp = None
        if graph.has_mlp and graph.parallel:  # it reads what the heads read
            mlp = _mlp(components, graph, layer, read)
        written.extend(outputs)
        if graph.has_mlp:
            written.append(_mlp(components, graph, layer, read) if mlp is None else mlp)
    residual = read([graph.n_receivers - 1], components.constant_before(graph.n_layers))[0]
    return residual[chunk.batch.reads]


def _mlp(components: Components, graph: ComputationGraph, layer: int, read: Read) -> Float[Tensor, "B T D"]:
    return components.mlp(layer, read([graph.receiver_index[f"m{layer}"]], components.constant_before(layer, mlp=True))[0])
