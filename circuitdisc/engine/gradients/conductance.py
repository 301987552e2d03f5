"""Edge conductance: what flows through an edge while the embedding goes from clean to ablated.

    score(s -> r) = integral over the way of (d metric / d input of r) . d(what s writes)

Integrated gradients multiply the mean gradient with the whole change of s; conductance follows what s writes along the same
way, so that a stretch where s does not move counts nothing, however steep the metric is there. The scores of all edges
across any cut of the graph, those out of the embedding or those into `logits` say, add up to the same change of the metric.
In models whose norms couple the heads of a layer the way is the model's own, and each point's scales are held in its
gradients: those into `logits` still add up, those out of the embedding need not.

The way is cut into m stretches; on each, the change of every sender is taken between its ends, and the gradient at its middle.

Source: Dhamdhere, Sundararajan and Yan 2018, "How Important Is a Neuron?" (https://arxiv.org/abs/1805.12233); for edges Wu,
Tonin and Cevher 2026, "Demystifying Variance in Circuit Discovery of LLMs" (https://arxiv.org/abs/2606.16920). The points at
which the integral is taken are our own choice.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.gradients.attribution import Attribution, AttributionChunk
from circuitdisc.engine.gradients.differences import Differences, Recorder
from circuitdisc.engine.gradients.edge_scores import add_scores
from circuitdisc.engine.gradients.path_points import equal
from circuitdisc.engine.gradients.segments import SegmentedRun


def edges_by_conductance(attribution: Attribution, steps: int) -> Float[np.ndarray, "R S"]:
    """Scores of all edges; sets `path_sum`.

    Args:
        steps: stretches of the way.
    """
    embedding, ablated = attribution.groups[0], equal(0.0)

    def at(chunk: AttributionChunk, share: float, write: Recorder | None = None) -> SegmentedRun:
        """The model itself at a point of the way: where norms couple heads, with its own scales there."""
        return attribution.interpolated(chunk, embedding, (share,), write is None, write, own_scales=True)

    def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> Float[Tensor, "B"]:
        tokens = chunk.differences.tokens
        before = Recorder(tokens)
        run = at(chunk, 1.0, before)
        for step in range(steps):
            after = Recorder(tokens)
            run = at(chunk, 1 - (step + 1) / steps, after)
            for place, values in before.values.items():  # in their place: what is written now less what was
                values.neg_().add_(after.values[place])
            before.values[embedding.place] = chunk.differences.values[embedding.place] / steps
            gradients = attribution.gradients(chunk, at(chunk, 1 - (step + 0.5) / steps))
            moved = Differences(attribution.components, tokens, before.values)
            add_scores(scores, attribution.graph, moved, gradients, attribution.groups, attribution.units)
            before = after
            attribution.bar.update(1)
        return attribution.change_of_embedding(chunk, run, ablated)

    scores, changes = attribution.over_chunks(attribution.edges, score, steps)
    return attribution.add_up(attribution.finish(scores), changes, steps, into_logits=True)
