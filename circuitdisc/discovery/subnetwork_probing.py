"""Subnetwork probing: learn which nodes, or which edges, the task needs, at a price for each.

1. Give every head and MLP (`unit=node`), or every edge (`unit=edge`), a hard concrete mask; in the beginning nearly all
   are kept.
2. In each step draw all masks, and run the model with every part at its mask: cut parts carry their ablated value.
3. Move the masks by Adam against the gradient of loss + regularisation x expected number of parts kept. The loss is
   KL(full model || masked model), or minus the metric.
4. Keep the parts whose mask is above one half without noise; or, for a circuit of a given size, the most probable ones.

Source: Cao, Sanh and Rush 2021, "Low-Complexity Probing via Finding Subnetworks" (https://arxiv.org/abs/2104.03514), who mask
weights of a model to probe it; on nodes, with ablated activations in place of 0, as in Conmy et al. 2023
(https://arxiv.org/abs/2304.14997). Masks on edges are the same with another unit. Their price is for all parts together; here
it is for one part, so that it means the same in graphs of all sizes.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import EDGES, Real, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.hard_concrete import deterministic, keep_probability, keep_score, sample
from circuitdisc.discovery.mask_training import MaskTraining, mask_dtype, prepare_runs, to_scores, train
from circuitdisc.discovery.selection import Selection
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task

UNITS = ("node", "edge")
START = 4.0  # logits in the beginning: masks are 1 most of the time


class PricedMasks:
    """Hard concrete masks of edges [R, S] or of senders [S], each at a price.

    Args:
        unit: `edge` or `node`. Embeddings have no mask of their own and are always kept.
        price: of keeping one of them, in units of the loss.
        rate: learning rate.
    """

    def __init__(
        self,
        graph: ComputationGraph,
        unit: str,
        price: float,
        rate: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.graph, self.unit, self.price, self.rate = graph, unit, price, rate
        is_node = np.array([node.kind in ("head", "mlp") for node in graph.senders])
        has_mask = graph.edge_mask if unit == "edge" else is_node
        self.has_mask = torch.from_numpy(has_mask.copy()).to(device)
        self.receiver_nodes = [graph.sender_index.get(receiver.node.name, -1) for receiver in graph.receivers]
        self.parameters = {unit: torch.full(has_mask.shape, START, dtype=dtype, device=device).requires_grad_()}

    @property
    def logits(self) -> Float[Tensor, "... S"]:
        return self.parameters[self.unit]

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.logits], "lr": self.rate}]

    def draw(self, generator: np.random.Generator) -> Float[Tensor, "R S"]:
        mask = sample(self.logits, generator)
        return mask * self.has_mask if self.unit == "edge" else torch.where(self.has_mask, mask, 1.0)[None]

    def penalty(self, step: int) -> Tensor:
        return self.price * keep_probability(self.logits)[self.has_mask].sum()

    def n_edges(self) -> float:
        """Expected; an edge of a node mask is kept with both its nodes."""
        return float((self._edges(keep_probability(self.logits.detach())) * self._is_edge()).sum())

    def kept(self) -> Bool[np.ndarray, "R S"]:
        """The edges whose masks are above one half without noise."""
        return (self._edges((deterministic(self.logits.detach()) > 0.5).double()) * self._is_edge()).cpu().numpy() > 0

    def scores(self) -> Float[Tensor, "R S"]:
        """-log of the probability that an edge is dropped; with node masks, that of its less probable node."""
        if self.unit == "edge":
            return keep_score(self.logits.detach())
        scores = self.node_scores()
        return torch.minimum(scores[None, :], self._of_receivers(scores, float(scores.max()))[:, None])

    def node_scores(self) -> Float[Tensor, "S"]:
        """-log of the probability that a node is dropped; what has no mask comes with the best."""
        scores = keep_score(self.logits.detach())
        return torch.where(self.has_mask, scores, scores[self.has_mask].max())

    def _edges(self, values: Float[Tensor, "... S"]) -> Float[Tensor, "R S"]:
        """Of edges as it is; of nodes the product of both ends, 1 where there is no mask."""
        if self.unit == "edge":
            return values
        values = torch.where(self.has_mask, values, 1.0)
        return values[None, :] * self._of_receivers(values, 1.0)[:, None]

    def _of_receivers(self, values: Float[Tensor, "S"], logits: float) -> Float[Tensor, "R"]:
        return torch.cat([values, values.new_tensor([logits])])[self.receiver_nodes]

    def _is_edge(self) -> Bool[Tensor, "R S"]:
        return torch.from_numpy(self.graph.edge_mask.copy()).to(self.logits.device)


@bounded(edges=EDGES, regularisation=Real(0, 1e6))
@takes(MaskTraining, steps=500)
def subnetwork_probing(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    unit: str = "edge",
    edges: int | None = None,
    regularisation: float = 0.03,
    **options: Unpack[MaskTraining],
) -> Discovery:
    """Learn masks on nodes or edges at a price for each, and keep those that are worth it.

    Args:
        unit: `node`: masks on heads and MLPs (a circuit keeps all edges among the nodes kept); `edge`: on edges.
        edges: size of the circuit in edges; None: what the masks keep. With `unit=node` the most probable nodes are kept, as
            long as there are no more edges than this among them. It does not change the training. Edges that lead nowhere are
            left out afterwards, so that the circuit may be smaller.
        regularisation: price of keeping one part, in units of the loss; larger gives smaller circuits.

    Returns:
        A circuit and the score of every edge: minus the logarithm of the probability that the mask drops it; with
        `unit=node` that of its less probable node, and in `node_scores` the score of every sender. The trace holds the loss and
        the expected number of edges every 50 steps.

    Raises:
        BadSetting: a setting is out of its bounds, or the model, the ablation, the metric or the budget does not allow it.
    """
    given: Any = options
    graph = model.graph
    check_choice("unit", unit, UNITS)
    selection = None if edges is None else Selection(edges)
    if selection is not None:
        selection.n_edges(graph)
    runs = prepare_runs(model, task, ablation, context, name="subnetwork_probing", options=given)
    masks = PricedMasks(graph, unit, regularisation, given["learning_rate"], mask_dtype(runs), model.device)
    train(masks, runs, context, name=f"subnetwork_probing on {model.name}", steps=given["steps"])
    scores = to_scores(graph, masks.scores())
    if selection is None:
        circuit = Circuit(graph, masks.kept()).prune()
    elif unit == "edge":
        circuit = selection.circuit(graph, scores)
    else:
        circuit = _best_nodes(graph, scores, selection.n_edges(graph))
    node_scores = masks.node_scores().cpu().double().numpy() if unit == "node" else None
    return Discovery(circuit, scores, context.journal.decisions, runs.cost, node_scores)


def _best_nodes(graph: ComputationGraph, scores: Float[np.ndarray, "R S"], n: int) -> Circuit:
    """The most probable nodes with at most n edges among them, all of which are kept."""
    for level in np.unique(
        scores[graph.edge_mask]
    ):  # an edge's score is that of its less probable node: from all nodes on, one less at a time
        mask = graph.edge_mask & (np.nan_to_num(scores, nan=-np.inf) >= level)
        if mask.sum() <= n:
            return Circuit(graph, mask).prune()
    return Circuit.empty(graph)
