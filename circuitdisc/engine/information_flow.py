"""Information flow on one forward pass: how near each message comes to what its receiver reads, and the routes to the answer.

The importance of a part z of a sum y = z_1 + z_2 + ... is its proximity to the sum, as a share of all parts':

    proximity(z, y) = max(0, |y| - |z - y|)        with |.| the sum of absolute values

At receiver r and token i, y is the residual stream there; its parts are what the embedding and every MLP before r wrote at i,
the always-kept constants, and for every head before r one message from each token j: pattern[i, j] times the value at j,
through W_O.

A route at threshold t starts in `logits` at the readings. From a receiver at a token it goes to every part of importance t or
more: to an MLP at this token, or to a head from this token to the message's token j. From an MLP it goes on to its input at
the same token; from a head's message to the head's v (and k) input at j (and its q input at i). The width of an edge is the
largest t whose routes use it: the widest path from `logits`, where a path is as wide as its least important step.

Shape letters: S senders, R receivers, B examples, T positions of queries, T2 of keys, n rows (a token of an example each), p
plain senders (embedding and MLPs), h heads of all layers before a place, D residual width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.engine.backends import full_run
from circuitdisc.engine.full_run import FullRun
from circuitdisc.engine.gradients.layers import heads_apart
from circuitdisc.engine.memory import examples_that_fit, parse_memory
from circuitdisc.engine.patching import Cost
from circuitdisc.engine.requirements import require
from circuitdisc.engine.selfcheck import verify
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import wide
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch, collate

BLOCK_BYTES = 2**23  # what the messages of one head may take at once: on a CPU they should stay in the cache


@dataclass
class Importances:
    """The shares of all parts at one place of the residual stream.

    Args:
        plain: of the embedding's senders and of MLPs. [p, B, T]
        heads: of the heads' messages. [h, B, T, T2]
    """

    plain: Float[Tensor, "p B T"]
    heads: Float[Tensor, "h B T T2"]


class Flow:
    """One clean run of some examples, with the parts of every sum in it."""

    def __init__(self, model: Model, components: Components, batch: PromptBatch) -> None:
        self.components, self.graph, self.batch = components, model.graph, batch
        self.run: FullRun = full_run(model, batch.clean, batch.is_token, batch.position_ids, keep_patterns=True)
        kinds = [node.kind for node in self.graph.senders]
        self.plain = [index for index, kind in enumerate(kinds) if kind != "head"]
        self.heads = [index for index, kind in enumerate(kinds) if kind == "head"]
        self._values: dict[int, Float[Tensor, "H B T D"]] = {}

    def importances(self, n_senders: int, constant: Float[Tensor, "D"], wanted: Bool[Tensor, "B T"]) -> Importances:
        """The importances at a place that the first senders reach, 0 at tokens that are not wanted.

        Args:
            n_senders: how many senders come before the place.
            constant: what is added there by no sender.
        """
        at = wanted.nonzero(as_tuple=True)
        plain = [sender for sender in self.plain if sender < n_senders]
        heads = [sender for sender in self.heads if sender < n_senders]
        read = wide(self.run.senders[:n_senders].sum(0) + constant)[at]
        of_plain = torch.stack([_proximity(wide(self.run.senders[sender])[at], read) for sender in plain])
        of_heads = read.new_zeros(len(heads), len(read), wanted.shape[1])
        for row, sender in enumerate(heads):
            node = self.graph.senders[sender]
            of_heads[row] = self._of_messages(node.layer, node.head, at, read)
        total = of_plain.sum(0) + of_heads.sum((0, 2)) + _proximity(wide(constant).expand_as(read), read)
        share = torch.where(total > 0, 1 / total, 0.0)
        importances = Importances(
            read.new_zeros(len(plain), *wanted.shape), read.new_zeros(len(heads), *wanted.shape, wanted.shape[1])
        )
        importances.plain[:, *at] = of_plain * share
        importances.heads[:, *at] = of_heads * share[:, None]
        return importances

    def _of_messages(self, layer: int, head: int, at: tuple[Tensor, ...], read: Float[Tensor, "n D"]) -> Float[Tensor, "n T2"]:
        """Proximities of one head's messages, some rows at a time."""
        pattern = wide(self.run.patterns[layer][head])[at]
        assert self.run.frame is not None, "components have a frame"
        scale = self.run.frame.head_scale.get(layer)  # of a norm after attention, frozen as everywhere
        if scale is not None:
            pattern = pattern * wide(scale)[at]
        values = self._head_values(layer)[head]
        rows = max(1, BLOCK_BYTES // (4 * values.shape[1] * values.shape[2]))
        parts = []
        for first in range(0, len(read), rows):
            block = slice(first, first + rows)
            messages = pattern[block, :, None] * values[at[0][block]]
            parts.append(_proximity(messages, read[block, None]))
        return torch.cat(parts)

    def _head_values(self, layer: int) -> Float[Tensor, "H B T D"]:
        """Every head's value at every token, through W_O."""
        if layer not in self._values:
            H, (B, T) = self.graph.n_heads, self.batch.clean.shape
            n_before = int(self.graph.n_upstream[self.graph.receiver_index[f"a{layer}.h0<v>"]])
            x = self.run.senders[:n_before].sum(0) + self.components.constant_before(layer)
            v = self.components.read(layer, "v", range(H), x[None, None], self.run.frame)  # type: ignore[arg-type]  # has a frame
            self._values[layer] = wide(heads_apart(self.components, layer, v.reshape(H, B * T, -1), slice(None))).view(
                H, B, T, -1
            )
        return self._values[layer]


def _proximity(part: Float[Tensor, "... D"], total: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
    return (total.abs().sum(-1) - (part - total).abs().sum(-1)).clamp(min=0)


def edge_widths(flow: Flow, attention: bool) -> Float[Tensor, "R S B"]:
    """The width of every edge in every example, from `logits` downwards.

    Args:
        attention: routes go on to the q and k inputs of heads, too.
    """
    graph, batch = flow.graph, flow.batch
    shape = batch.clean.shape
    edges = flow.run.senders.new_zeros(graph.n_receivers, graph.n_senders, shape[0], dtype=torch.float64)
    at_mlp = {sender: edges.new_zeros(shape) for sender in flow.plain}
    at_heads = edges.new_zeros(len(flow.heads), *shape, shape[1])
    for group in reversed(graph.groups):
        widths = torch.stack([_receiver_width(flow, receiver, at_mlp, at_heads, attention) for receiver in group])
        n_senders = int(graph.n_upstream[group[0]])
        if not widths.any():
            continue
        shares = flow.importances(n_senders, _constant(flow.components, graph, group[0]), (widths > 0).any(0))
        plain, heads = flow.plain[: len(shares.plain)], flow.heads[: len(shares.heads)]
        for receiver, width in zip(group, widths, strict=True):
            through = torch.minimum(width, shares.plain.double())
            edges[receiver, plain] = through.amax(-1)
            for row, sender in enumerate(plain):
                at_mlp[sender] = torch.maximum(at_mlp[sender], through[row])
            through = torch.minimum(width[..., None], shares.heads.double())
            edges[receiver, heads] = through.amax((-2, -1))
            at_heads[: len(heads)] = torch.maximum(at_heads[: len(heads)], through)
    return edges


def _receiver_width(
    flow: Flow, receiver: int, at_mlp: dict[int, Tensor], at_heads: Float[Tensor, "h B T T2"], attention: bool
) -> Float[Tensor, "B T"]:
    """How wide the widest path from `logits` to a receiver is, at every token."""
    graph, batch = flow.graph, flow.batch
    node, kind = graph.receivers[receiver].node, graph.receivers[receiver].kind
    if kind == "logits":
        width = torch.zeros(batch.clean.shape, dtype=torch.float64, device=batch.clean.device)
        width[batch.reads] = 1.0
        return width
    sender = graph.sender_index[node.name]
    if kind == "mlp":
        return at_mlp[sender]
    messages = at_heads[flow.heads.index(sender)]
    if kind == "v" or attention:
        return messages.amax(-1 if kind == "q" else -2)
    return torch.zeros_like(messages[..., 0])


def _constant(components: Components, graph: ComputationGraph, receiver: int) -> Float[Tensor, "D"]:
    reader = graph.receivers[receiver]
    return components.constant_before(
        graph.n_layers if reader.kind == "logits" else reader.node.layer, mlp=reader.kind == "mlp"
    )


@torch.no_grad()
def flow_scores(
    model: Model,
    examples: Sequence[Example],
    *,
    attention: bool,
    memory: str | int,
    cost: Cost,
    on_progress: Callable[[int], object] = lambda n: None,
) -> Float[np.ndarray, "R S"]:
    """The mean width of every edge over examples; NaN where the graph has no edge.

    Args:
        attention: routes go on to the q and k inputs of heads, too.
        memory: budget for activations, as `8GiB`; examples are split to fit.
        cost: counted there.
        on_progress: called with the number of examples done.

    Raises:
        BadSetting: the model has no fast components.
    """
    require(model, "patterns", "algorithm 'information_flow' looks into heads token by token")
    verify(model)
    total = np.zeros(model.graph.edge_mask.shape)
    size = examples_that_fit(model, parse_memory(memory) // 4, max(len(example) for example in examples))
    for first in range(0, len(examples), size):
        part = examples[first : first + size]
        flow = Flow(model, model.components, collate(part, device=model.device))
        total += edge_widths(flow, attention).sum(-1).cpu().numpy()
        on_progress(len(part))
    cost.model_runs += 1
    return np.where(model.graph.edge_mask, total / len(examples), np.nan)
