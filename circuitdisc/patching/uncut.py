"""One run of the whole model with nothing cut: what every sender writes.

Shape letters: S senders, B examples, T positions, D residual width, H heads.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.models.components import Components, Frame
from circuitdisc.models.model import Model


@dataclass
class UncutRun:
    """What one run of the whole model gives.

    Args:
        senders: what every sender writes. [S, B, T, D]
        residual: the final residual as the model computes it. [B, T, D]
        frame: masks, rotary angles and norm scales of this run; None for a hook-based run.
        patterns: attention patterns by layer, if asked for. [H, B, T, T2]
    """

    senders: Float[Tensor, "S B T D"]
    residual: Float[Tensor, "B T D"]
    frame: Frame | None = None
    patterns: dict[int, Float[Tensor, "H B T T2"]] = field(default_factory=dict)


@torch.no_grad()
def uncut_run(
    model: Model,
    tokens: Int[Tensor, "B T"],
    is_token: Bool[Tensor, "B T"],
    position_ids: Int[Tensor, "B T"],
    keep_patterns: bool = False,
) -> UncutRun:
    """Run the whole model and keep what every sender writes."""
    cut = model.cut
    if not isinstance(cut, Components):
        senders, residual, _ = cut.run(tokens, is_token.long(), position_ids)
        return UncutRun(senders, residual)
    graph, heads = model.graph, range(cut.spec.n_heads)
    frame = cut.frame(is_token, position_ids)
    written = list(cut.embed(tokens, position_ids, graph.split_embeddings))
    x = torch.stack(written).sum(0)
    run = UncutRun(x[None], x, frame)
    for layer in range(cut.spec.n_layers):
        rows = x[None, None]
        q, k, v = (cut.read(layer, qkv, heads, rows, frame) for qkv in ("q", "k", "v"))
        pattern = cut.pattern(layer, q, k, frame)
        if keep_patterns:
            run.patterns[layer] = pattern[:, 0]
        z = pattern @ v
        cut.fix_head_scale(layer, z, frame)
        outputs = cut.head_output(layer, heads, z, frame)[:, 0]
        written += list(outputs)
        before, b_O = x, cut.weights.layers[layer].b_O
        x = x + outputs.sum(0) + (0.0 if b_O is None else b_O)
        if graph.has_mlp:
            written.append(cut.mlp(layer, before if graph.parallel else x))
            x = x + written[-1]
    run.senders, run.residual = torch.stack(written), x
    return run
