"""The plain loop that ACDC is compared with: one masked run of the whole model for every tested edge.

Written to be fair: all heads of a layer at once, each receiver's input as one matrix product over senders, nothing unembedded
but the readings. It uses none of the package's runs, only the weights (GPT-2 alone).
"""

import numpy as np
import torch
from common import CLOCK
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from circuitdisc.engine.chunk import Chunk
from circuitdisc.metrics import Metric
from circuitdisc.models import Model
from circuitdisc.models.weights import NormWeights


@torch.no_grad()
def masked_run(model: Model, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> Float[Tensor, "N V"]:
    """Logits at the readings: every receiver reads each sender live if its edge is kept, else ablated."""
    cut, graph, batch = model.components, model.graph, chunk.batch
    spec, weights, n_heads = cut.spec, cut.weights, cut.spec.n_heads
    keep = torch.from_numpy(mask.astype(np.float32)).to(chunk.clean)
    S, B, T, D = chunk.clean.shape
    difference = chunk.clean.new_zeros(S, B, T, D)  # live - ablated
    difference[0] = chunk.clean[0] - chunk.ablated[0]
    constant = torch.zeros(D, dtype=cut.dtype)
    reach = torch.ones(T, T, dtype=torch.bool).tril()

    def read(receivers: list[int]) -> Tensor:
        n = int(graph.n_upstream[receivers[0]])
        kept = (keep[receivers, :n] @ difference[:n].flatten(1)).view(len(receivers), B, T, D)
        return constant + chunk.ablated_before(n) + kept

    def norm(x: Tensor, by: NormWeights) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], by.scale, by.shift, spec.eps)

    for layer, block in enumerate(weights.layers):
        projected = []
        for qkv, weight, bias in (("q", block.W_Q, block.b_Q), ("k", block.W_K, block.b_K), ("v", block.W_V, block.b_V)):
            assert bias is not None
            x = norm(read([graph.receiver_index[f"a{layer}.h{head}<{qkv}>"] for head in range(n_heads)]), block.norm_attention)
            projected.append((x.view(n_heads, B * T, D) @ weight + bias[:, None]).view(n_heads, B, T, -1))
        q, k, v = projected
        scores = (q @ k.transpose(-1, -2)) * spec.attn_scale[layer]
        z = scores.masked_fill(~reach, -torch.inf).softmax(-1) @ v
        first = graph.sender_index[f"a{layer}.h0"]
        heads = slice(first, first + n_heads)
        difference[heads] = (z.view(n_heads, B * T, -1) @ block.W_O).view(n_heads, B, T, D) - chunk.ablated[heads]
        assert block.b_O is not None
        constant = constant + block.b_O
        x = read([graph.receiver_index[f"m{layer}"]])[0]
        difference[first + n_heads] = cut.mlp(layer, x) - chunk.ablated[first + n_heads]
    final = norm(read([graph.n_receivers - 1])[0][batch.reads], weights.norm_final)
    return final @ weights.W_U


def seconds_an_edge(model: Model, chunks: list[Chunk], mask: Bool[np.ndarray, "R S"], metric: Metric) -> float:
    """Time of one tested edge: the masked run and its metric, on all examples."""
    started = CLOCK()
    for chunk in chunks:
        metric(masked_run(model, chunk, mask), chunk.labels)
    return CLOCK() - started
