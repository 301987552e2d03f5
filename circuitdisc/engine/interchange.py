"""Interchange interventions: whole nodes write what they write on another prompt, and all that follows runs again.

The base prompt is a chunk's clean one, the source prompt its corrupted one. At chosen positions a node's output is replaced by
its value on the source prompt; nothing else is held. A replaced node behind another replaced node still writes its value on the
plain source prompt.

Shape letters: B examples, T positions, D residual width, N readings, S senders, V vocabulary.

Source: Geiger et al. 2021, "Causal Abstractions of Neural Networks".
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.edits import interchange_hooks
from circuitdisc.engine.forward import forward, logits_at
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import UnknownName
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example


def check_nodes(model: Model, nodes: Sequence[str]) -> None:
    """The model can be intervened on at these nodes.

    Raises:
        BadSetting: it has no fast components.
        UnknownName: it has no such node.
    """
    components_of(model, "an interchange intervention")
    for node in nodes:
        if node not in model.graph.sender_index:
            raise UnknownName("node", node, model.graph.sender_index, f"{model.name} has {model.graph.describe()}.")


def interchange_chunks(model: Model, pairs: Sequence[Example], memory: str | int = "4GiB") -> Iterator[Chunk]:
    """Base (clean) and source (corrupted) prompts made ready, as many at a time as fit."""
    yield from Patching(model, Ablation("resample"), (), memory=memory).chunks(pairs)


@torch.no_grad()
def interchanged_logits(
    model: Model, chunk: Chunk, nodes: Sequence[str], where: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "N V"]:
    """Logits at the readings when nodes write what they write on the source prompt.

    Args:
        nodes: heads, MLPs or embeddings.
        where: at which positions; None: at all of them.
    """
    components, graph = model.components, model.graph
    here = chunk.batch.is_token if where is None else where & chunk.batch.is_token
    n_embed = int(graph.n_upstream[0])
    embedding = [
        torch.where(here[..., None], chunk.ablated[sender], chunk.clean[sender])
        if graph.senders[sender].name in nodes
        else chunk.clean[sender]
        for sender in range(n_embed)
    ]
    assert chunk.frame is not None, "components need a frame"
    hooks = interchange_hooks(graph, chunk, nodes, here)
    return logits_at(
        components, forward(components, graph, chunk.frame, torch.stack(embedding).sum(0), hooks), chunk.batch.reads
    )
