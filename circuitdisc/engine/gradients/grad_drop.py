"""GradDrop: attribution with every layer's writes kept out of the backward pass in turn.

What an edge does directly and what it does through later layers may cancel in the gradient, at the clean run alone. With L
layers there are L backward passes; in the l-th no gradient passes through what layer l (its heads and its MLP) writes to the
residual stream. With I_l the score of an edge for one example in that pass,

    score(s -> r) = mean over examples of  1 / (L - 1)  sum over l of |I_l(s -> r)|

The pass of r's own layer leaves the edge no gradient, which is why it is L - 1. No pass does so for `logits`, so that edges
into it are divided by L. Layers before r, that of s among them, are no part of the edge's gradient and leave it as it is.

Source: Kramar et al. 2024, "AtP*", section 3.1.2 and equation 11 (https://arxiv.org/abs/2403.00745), for nodes. Edges are our
own: the receiver's layer is here what a node's own layer is there.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.gradients.attribution import Attribution, AttributionChunk
from circuitdisc.engine.gradients.edge_scores import Gradients, add_scores, at_tokens
from circuitdisc.engine.gradients.pattern_scores import add_pattern_scores, into_patterns
from circuitdisc.engine.gradients.segments import HeadsSegment, readout
from circuitdisc.errors import BadSetting


def edges_with_grad_drop(attribution: Attribution) -> Float[np.ndarray, "R S"]:
    """Scores at the clean run, never negative; edges into q and k through the exact softmax, as without GradDrop.

    Raises:
        BadSetting: the model has a single layer.
    """
    graph, n_layers = attribution.graph, attribution.graph.n_layers
    if n_layers < 2:
        raise BadSetting("grad_drop=true drops the gradient of one layer after the other, and this model has one: use false")
    exact = into_patterns(attribution)

    def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> None:
        end = readout(attribution.components, chunk.clean.residual, chunk.batch, attribution.metric)
        tokens = chunk.differences.tokens
        heads: dict[int, HeadsSegment] = {}
        outs: dict[int, list[Tensor]] = {layer: [] for layer in range(n_layers)}
        for dropped in range(n_layers):
            gradients = Gradients(attribution.components, tokens, at_tokens(end.into, tokens))
            for step in chunk.clean.backward(end.into, keep=True, dropped=dropped):
                gradients.add(step)
                if isinstance(step, HeadsSegment):
                    heads[step.layer] = step
                    outs[step.layer].append(step.out)
            attribution.count_backward(chunk, chunk.clean)
            linear = torch.zeros_like(scores)
            add_scores(linear, graph, chunk.differences, gradients, attribution.groups)
            scores += linear.abs().masked_fill(exact, 0)
        for layer, step in heads.items():
            add_pattern_scores(scores, attribution, chunk, step, outs[layer], sizes=True)

    sums = attribution.finish(attribution.over_chunks(attribution.edges, score)[0])
    passes = np.full(graph.n_receivers, n_layers - 1)
    passes[-1] = n_layers
    return sums / passes[:, None]
