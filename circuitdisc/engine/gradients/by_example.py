"""Attribution example by example: the same scores as elsewhere, before they are averaged.

Of whole senders many examples go through one pass. Of edges each example has a pass of its own, since scores of edges are only
ever held as sums over examples.

Shape letters: B examples, S senders, E edges, R receivers.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.gradients.attribution import Attribution, AttributionChunk
from circuitdisc.engine.gradients.edge_scores import add_scores
from circuitdisc.engine.gradients.node_scores import sender_products
from circuitdisc.engine.patching import Cost
from circuitdisc.engine.ranks import Share, ranks, summed
from circuitdisc.tasks.base import Example


def on_examples(attribution: Attribution, examples: Sequence[Example]) -> Attribution:
    """The same attribution, with what its ablation has learned, of other examples; it counts its own cost."""
    other = copy(attribution)
    other.examples, other.cost = examples, Cost()
    return other


def edges_by_example(attribution: Attribution) -> Float[np.ndarray, "B E"]:
    """Score of every edge with the gradient at the clean run, for each example; edges as `graph.edge_mask` has them."""
    single, rows, edges = copy(attribution), list[np.ndarray](), torch.tensor(attribution.graph.edge_mask)
    single.chunk_size = 1

    def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> None:
        add_scores(scores, single.graph, chunk.differences, single.gradients(chunk, chunk.clean), single.groups)
        rows.append(single.components.agreed(scores).cpu()[edges].numpy()[None])

    single.over_chunks(single.edges, score)
    return _of_all_ranks(single, rows, single.graph.n_edges)


def senders_by_example(attribution: Attribution) -> Float[np.ndarray, "B S"]:
    """The same summed over the edges out of each sender."""
    rows: list[np.ndarray] = []

    def score(chunk: AttributionChunk, scores: Float[Tensor, "S"]) -> None:
        products = dict(sender_products(attribution, chunk))
        rows.append(torch.cat([products[first] for first in sorted(products)]).T.cpu().numpy())

    attribution.over_chunks((attribution.graph.n_senders,), score)
    return _of_all_ranks(attribution, rows, attribution.graph.n_senders)


def _of_all_ranks(attribution: Attribution, rows: list[np.ndarray], width: int) -> Float[np.ndarray, "B X"]:
    """Scores of all examples from those of this rank's chunks, which are every n-th of them."""
    ours = ranks()
    if ours.n == 1:
        return np.concatenate(rows)
    whole = torch.zeros((len(attribution.examples), width), dtype=torch.float64)
    for turn, block in enumerate(rows):
        first = (turn * ours.n + ours.index) * attribution.chunk_size
        whole[first : first + len(block)] = torch.from_numpy(block)
    return summed(whole, Share(len(whole)), "scores of examples").numpy()
