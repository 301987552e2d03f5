"""One run of the whole model with nothing cut: what every sender writes.

Shape letters: S senders, B examples, T positions, D residual width, H heads.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.engine.forward import Hook, forward
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components
from circuitdisc.models.frame import Frame


@dataclass
class FullRun:
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


def forward_run(
    components: Components,
    graph: ComputationGraph,
    tokens: Int[Tensor, "B T"],
    is_token: Bool[Tensor, "B T"],
    position_ids: Int[Tensor, "B T"],
    keep_patterns: bool,
) -> FullRun:
    """One forward pass that keeps what every sender writes."""
    frame = components.frame(is_token, position_ids)
    written = list(components.embed(tokens, position_ids, graph.split_embeddings))
    patterns: dict[int, Tensor] = {}

    def keep_heads(layer: int, result: Float[Tensor, "H B T D"]) -> Tensor:
        written.extend(result)
        return result

    def keep_mlp(layer: int, out: Float[Tensor, "B T D"]) -> Tensor:
        written.append(out)
        return out

    def keep_pattern(layer: int, pattern: Float[Tensor, "H B T T2"]) -> Tensor:
        patterns[layer] = pattern
        return pattern

    hooks: dict[str, Hook] = {"result": keep_heads, "mlp_out": keep_mlp}
    if keep_patterns:
        hooks["pattern"] = keep_pattern
    residual = forward(components, graph, frame, torch.stack(written).sum(0), hooks, fix_scale=True)
    return FullRun(torch.stack(written), residual, frame, patterns)
