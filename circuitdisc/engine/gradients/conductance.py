"""Edge conductance: what flows through an edge while the embedding goes from clean to ablated.

    score(s -> r) = integral over the way of (d metric / d input of r) . d(what s writes)

Integrated gradients multiply the mean gradient with the whole change of s; conductance follows what s writes along the same
way, so that a stretch where s does not move counts nothing, however steep the metric is there. The scores of all edges
across any cut of the graph, those out of the embedding or those into `logits` say, add up to the same change of the metric.

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


def edges_by_conductance(attribution: Attribution, steps: int) -> Float[np.ndarray, "R S"]:
    """Scores of all edges; sets `path_sum`.

    Args:
        steps: stretches of the way.
    """
    embedding, ablated = attribution.groups[0], equal(0.0)

    def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> Float[Tensor, "B"]:
        before = _written(attribution, chunk, 1.0)
        for step in range(steps):
            after = _written(attribution, chunk, 1 - (step + 1) / steps)
            changes = {place: after.values[place] - values for place, values in before.values.items()}
            changes[embedding.place] = chunk.differences.values[embedding.place] / steps
            middle = attribution.interpolated(chunk, embedding, (1 - (step + 0.5) / steps,))
            gradients = attribution.gradients(chunk, middle)
            moved = Differences(attribution.components, chunk.differences.tokens, changes)
            add_scores(scores, attribution.graph, moved, gradients, attribution.groups)
            before = after
            attribution.bar.update(1)
            del middle, gradients, moved, changes, after
        last = attribution.interpolated(chunk, embedding, ablated.shares, gradients=False)
        return attribution.change_of_embedding(chunk, last, ablated)

    scores, changes = attribution.over_chunks(attribution.edges, score, steps)
    return attribution.add_up(attribution.finish(scores), changes, steps)


def _written(attribution: Attribution, chunk: AttributionChunk, share: float) -> Recorder:
    """What every sender behind the embedding writes at a point of the way."""
    record = Recorder(chunk.differences.tokens)
    attribution.interpolated(chunk, attribution.groups[0], (share,), gradients=False, write=record)
    return record
