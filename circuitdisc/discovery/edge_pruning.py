"""Edge pruning: learn which edges to keep, with a given number of them, so that the circuit says what the full model says.

1. Give every edge a hard concrete mask and, with `node_masks`, every head and MLP one for all edges out of it; an edge
   carries the product of the two. In the beginning nearly all are kept.
2. In each step draw all masks, and run the model with every edge at its mask: cut parts carry their ablated value.
3. Move the masks by Adam against the gradient of KL(full model || masked model) + E (l1 (t - s) + l2 (t - s)^2), where E is
   the number of edges, s is the expected share of edges dropped and t the share to be dropped, which grows from 0 to its
   target over a warm-up. The multipliers l1 and l2 climb the same gradient.
4. Keep the edges that are most likely to be kept, as many as were asked for.

Source: Bhaskar, Wettig, Friedman and Chen 2024, "Finding Transformer Circuits with Edge Pruning"
(https://arxiv.org/abs/2406.16778), section 3; Lagrangian as in Wang et al. 2020 (https://arxiv.org/abs/1910.04732). They also
have runs with a target and multipliers for nodes; here the one target counts edges, and a node is dropped where that is the
cheapest way to drop its edges. The factor E is ours: multipliers then mean the same in graphs of all sizes.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import RATE, SHARE, bounded
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.hard_concrete import keep_probability, keep_score, sample
from circuitdisc.discovery.mask_training import (
    SizedMaskTraining,
    head_start,
    is_fixed,
    mask_dtype,
    prepare_runs,
    to_scores,
    train,
)
from circuitdisc.discovery.selection import Selection
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.options import from_options, takes
from circuitdisc.tasks.base import Task

START = 4.0  # logits in the beginning: masks are 1 most of the time
APART = 4.0  # how far below that the logits of the smallest scores begin
ALWAYS = 50.0  # logit of a node that is not masked


class EdgeMasks:
    """Hard concrete masks of all edges, and of nodes, with a Lagrangian for the share of edges dropped.

    Args:
        share: of the edges to keep in the end.
        warm_up: steps over which the share falls from 1 to that.
        nodes: mask heads and MLPs, too.
        rate, multiplier_rate: learning rates of the masks and of the multipliers.
        places: how far below the others each edge begins, from -1 to 0; None: all alike. [R, S]
    """

    def __init__(
        self,
        graph: ComputationGraph,
        share: float,
        warm_up: float,
        *,
        nodes: bool,
        rate: float,
        multiplier_rate: float,
        places: Float[Tensor, "R S"] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.graph, self.share, self.warm_up = graph, share, warm_up
        self.rate, self.multiplier_rate = rate, multiplier_rate
        self.is_edge = torch.from_numpy(graph.edge_mask.copy()).to(device)
        self.fixed = torch.tensor(is_fixed(graph), device=device)

        apart = torch.zeros(graph.edge_mask.shape) if places is None else places

        def leaf(values: Tensor) -> Tensor:
            return values.to(device, dtype).requires_grad_()

        self.parameters = {"edges": leaf(START + APART * apart), "multipliers": leaf(torch.zeros(2))}
        if nodes:
            self.parameters["nodes"] = leaf(torch.full((graph.n_senders,), START))

    def groups(self) -> list[dict[str, Any]]:
        masks = [self.parameters[name] for name in ("edges", "nodes") if name in self.parameters]
        multipliers = {"params": [self.parameters["multipliers"]], "lr": self.multiplier_rate, "maximize": True}
        return [{"params": masks, "lr": self.rate}, multipliers]

    def draw(self, generator: np.random.Generator) -> Float[Tensor, "R S"]:
        mask = sample(self.parameters["edges"], generator) * self.is_edge
        if "nodes" not in self.parameters:
            return mask
        return mask * torch.where(self.fixed, 1.0, sample(self.parameters["nodes"], generator))

    def kept(self) -> Tensor:
        """The expected share of edges kept, with gradients."""
        probability = keep_probability(self.parameters["edges"]) * self.is_edge
        if "nodes" in self.parameters:
            probability = probability * keep_probability(self._node_logits())
        return probability.sum() / self.graph.n_edges

    def penalty(self, step: int) -> Tensor:
        target = 1 - (1 - self.share) * min(1.0, (step + 1) / max(1.0, self.warm_up))
        missing = self.kept() - target  # t - s: positive while too many are kept
        first, second = self.parameters["multipliers"]
        return self.graph.n_edges * (first * missing + second * missing**2)

    def n_edges(self) -> float:
        return float(self.kept().detach()) * self.graph.n_edges

    def scores(self) -> Float[Tensor, "R S"]:
        """-log of the probability that an edge is dropped."""
        if "nodes" not in self.parameters:
            return keep_score(self.parameters["edges"])
        return keep_score(self.parameters["edges"], self._node_logits().expand_as(self.parameters["edges"]))

    def _node_logits(self) -> Float[Tensor, "S"]:
        return torch.where(self.fixed, ALWAYS, self.parameters["nodes"])


@bounded(warm_up=SHARE, multiplier_rate=RATE)
@takes(SizedMaskTraining)
def edge_pruning(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    warm_up: float = 0.6,
    multiplier_rate: float = 0.02,
    node_masks: bool = True,
    **options: Unpack[SizedMaskTraining],
) -> Discovery:
    """Learn a mask with a given number of edges, and keep its most probable edges.

    Args:
        edges: size of the circuit in edges, which the training aims at; None takes `fraction`. Edges that lead nowhere are
            left out afterwards, so that the circuit may be smaller.
        warm_up: share of the steps over which the number of edges falls to its target.
        multiplier_rate: learning rate of the two multipliers, in units of the loss for each edge.
        node_masks: heads and MLPs have masks, too, each for all edges out of it.

    Returns:
        A circuit and the score of every edge: minus the logarithm of the probability that the mask drops it. The trace holds
        the loss and the expected number of edges every 50 steps.

    Raises:
        BadSetting: a setting is out of its bounds, or the model, the ablation, the metric or the budget does not allow it.
    """
    given: Any = options
    graph, steps = model.graph, given["steps"]
    selection = from_options(Selection, given)
    share = selection.n_edges(graph) / graph.n_edges
    runs = prepare_runs(model, task, ablation, context, name="edge_pruning", options=given)
    masks = EdgeMasks(
        graph,
        share,
        warm_up * steps,
        nodes=node_masks,
        rate=given["learning_rate"],
        multiplier_rate=multiplier_rate,
        places=head_start(given["start"], model, task, ablation, context, runs),
        dtype=mask_dtype(runs),
        device=model.device,
    )
    train(masks, runs, context, name=f"edge_pruning on {model.name}", steps=steps)
    scores = to_scores(graph, masks.scores())
    return Discovery(selection.circuit(graph, scores), scores, context.journal.decisions, runs.cost)
