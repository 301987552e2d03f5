"""Soft top-k: one score for every edge, learned so that the best k edges make a good circuit at every k.

1. Give every edge a score; all are equal in the beginning, or, with `start`, in the order of another algorithm's.
2. In each step draw a size k between `smallest` and all edges, evenly in its logarithm, and noise for every score; find the
   threshold at which the masks sigmoid((score + noise - threshold) / temperature) sum to k.
3. Run the model with every edge at its mask, and move the scores by Adam against the gradient of KL(full model || masked
   model), which flows through the threshold, too: an edge rises at the expense of the others.
4. Rank the edges by their scores once; keep as many as are asked for.

Source: relatives are uniform gradient sampling (Li and Janson 2024, "Optimal Ablation for Interpretability",
https://arxiv.org/abs/2409.09951), which samples masks to rank edges; the soft top-k whose threshold makes masks sum
to k (Xie et al. 2020, "Differentiable Top-k Operator with Optimal Transport", https://arxiv.org/abs/2002.06504, solve the
like by entropic transport); and slimmable networks (Yu et al. 2019, https://arxiv.org/abs/1812.08928), which train one set of
parameters at sizes drawn at random. The combination, one ranking of edges trained over sizes drawn log-uniformly, is ours; we
know of no paper for it.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import EDGES, RATE, Real, bounded
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.mask_training import SizedMaskTraining, head_start, mask_dtype, prepare_runs, to_scores, train
from circuitdisc.discovery.selection import Selection
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.options import from_options, takes
from circuitdisc.tasks.base import Task

HALVINGS = 60  # of the interval that holds the threshold


class SoftTopK:
    """Scores of all edges, and soft masks of the best k of them.

    Args:
        smallest: the smallest size drawn.
        temperature: over what range of scores a mask goes from 0 to 1.
        noise: scale of the logistic noise on the scores, in temperatures.
        rate: learning rate of the scores.
        places: how far below the others each edge begins, from -1 to 0; None: all alike. [R, S]
    """

    def __init__(
        self,
        graph: ComputationGraph,
        *,
        smallest: int,
        temperature: float,
        noise: float,
        rate: float,
        places: Float[Tensor, "R S"] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.graph, self.smallest, self.temperature, self.noise, self.rate = graph, smallest, temperature, noise, rate
        self.is_edge = torch.from_numpy(graph.edge_mask.copy()).to(device)
        apart = torch.zeros(graph.edge_mask.shape) if places is None else places
        scores = 2 * temperature * apart.to(device, dtype)[self.is_edge]
        self.parameters = {"scores": scores.requires_grad_()}
        self.size = graph.n_edges  # drawn last

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.parameters["scores"]], "lr": self.rate}]

    def draw(self, generator: np.random.Generator) -> Float[Tensor, "R S"]:
        scores = self.parameters["scores"]
        low, high = np.log(self.smallest), np.log(self.graph.n_edges)
        self.size = int(np.rint(np.exp(generator.uniform(low, high))))
        noise = torch.from_numpy(generator.logistic(scale=self.noise * self.temperature, size=len(scores)))
        mask = torch.zeros(self.is_edge.shape, dtype=scores.dtype, device=scores.device)
        return mask.masked_scatter(self.is_edge, soft_top_k(scores + noise.to(scores), self.size, self.temperature))

    def penalty(self, step: int) -> Tensor:
        return torch.zeros(())

    def n_edges(self) -> float:
        """The size drawn last."""
        return float(self.size)

    def scores(self) -> Float[Tensor, "R S"]:
        """How far each edge lies above the worst one; only their order and their distances mean something."""
        values = self.parameters["scores"].detach()
        scores = torch.zeros(self.is_edge.shape, dtype=values.dtype, device=values.device)
        return scores.masked_scatter(self.is_edge, values - values.min())


def soft_top_k(scores: Float[Tensor, "n"], k: float, temperature: float) -> Float[Tensor, "n"]:
    """Masks between 0 and 1 that sum to k and grow with the scores, with gradients.

    The threshold is found by halving. One step of Newton's method on top of it changes nothing in its value and gives it the
    gradient of the equation that it solves: d threshold / d score_i = mask'_i / sum of mask'.
    """
    n = len(scores)
    if k >= n:
        return (scores - scores).exp()  # all 1, with a gradient of 0
    with torch.no_grad():
        spread = temperature * (np.log(n) + 40)
        low, high = scores.min() - spread, scores.max() + spread
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            too_many = ((scores - middle) / temperature).sigmoid().sum() > k
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        threshold = (low + high) / 2
        masks = ((scores - threshold) / temperature).sigmoid()
        slope = (masks * (1 - masks)).sum().clamp(min=1e-12) / temperature
    excess = ((scores - threshold) / temperature).sigmoid().sum() - k
    threshold = threshold + (excess - excess.detach()) / slope
    return ((scores - threshold) / temperature).sigmoid()


@bounded(smallest=EDGES, temperature=RATE, noise=Real(0, 1000))
@takes(SizedMaskTraining, batch=20)
def soft_topk(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    smallest: int | None = None,
    temperature: float = 0.5,
    noise: float = 1.0,
    **options: Unpack[SizedMaskTraining],
) -> Discovery:
    """Learn one score for every edge over circuits of all sizes, and keep the best.

    Args:
        edges: size of the circuit in edges; None takes `fraction`. It does not change the training. Edges that lead nowhere
            are left out afterwards, so that the circuit may be smaller.
        smallest: the smallest size drawn; None takes a hundredth of the edges.
        learning_rate: of the scores.
        temperature: over what range of scores a mask goes from 0 to 1.
        noise: scale of the logistic noise on the scores, in temperatures; 0 for none.

    Returns:
        A circuit and the score of every edge, from 0 for the worst; `top_k` gives a circuit of any size. The trace holds the
        loss every 50 steps, averaged over the sizes drawn, with the size drawn last.

    Raises:
        BadSetting: a setting is out of its bounds, or the model, the ablation, the metric or the budget does not allow it.
    """
    graph = model.graph
    given: Any = options
    selection = from_options(Selection, given)
    selection.n_edges(graph)
    smallest = max(1, graph.n_edges // 100) if smallest is None else smallest
    if smallest > graph.n_edges:
        raise BadSetting(f"smallest={smallest} is more than the {graph.n_edges} edges of the graph")
    runs = prepare_runs(model, task, ablation, context, name="soft_topk", options=given)
    masks = SoftTopK(
        graph,
        smallest=smallest,
        temperature=temperature,
        noise=noise,
        rate=given["learning_rate"],
        places=head_start(given["start"], model, task, ablation, context, runs),
        dtype=mask_dtype(runs),
        device=model.device,
    )
    train(masks, runs, context, name=f"soft_topk on {model.name}", steps=given["steps"])
    scores = to_scores(graph, masks.scores())
    return Discovery(selection.circuit(graph, scores), scores, context.journal.decisions, runs.cost)
