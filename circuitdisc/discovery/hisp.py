"""Head importance score for pruning: keep the heads whose output the metric is most sensitive to.

1. Run the model on the clean prompts, and find what every head carries when cut.
2. Take the metric's gradient with respect to the output of every head, at the clean run.
3. Score a head by the mean over examples of |sum over positions of (ablated - clean) . gradient|.
4. Keep the heads with the best scores, every MLP and every embedding, with all edges among them.

Source: Michel, Levy and Neubig 2019, "Are Sixteen Heads Really Better than One?", equation 2
(https://arxiv.org/abs/1905.10650), with the difference to the ablated output in place of the output itself, as in Conmy et al.
2023, appendix (https://arxiv.org/abs/2304.14997). With ablation=zero it is theirs.
"""

import math

import numpy as np

from circuitdisc.ablation import Ablation
from circuitdisc.checks import FRACTION, Whole, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.node_scores import node_scores
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task


@bounded(heads=Whole(1, 1_000_000), fraction=FRACTION)
def hisp(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    heads: int | None = None,
    fraction: float = 0.2,
) -> Discovery:
    """Score every head by how far the metric follows its output, and keep the best.

    Args:
        heads: how many heads to keep; None takes `fraction`.
        fraction: share of the heads to keep.

    Returns:
        A head circuit, and in `node_scores` the score of every sender (embeddings and MLPs have one, too, and are always
        kept). The trace is empty.

    Raises:
        BadSetting: a setting is out of its bounds, the metric's gradient vanishes, or the model, the ablation or the budget
            does not allow it.
    """
    graph = model.graph
    n_kept = _n_kept(heads, fraction, graph.n_layers * graph.n_heads)
    metric = get_metric(context.metric)
    attribution = Attribution(
        model,
        ablation,
        task.train,
        metric,
        gradient=Gradient(at_full=True),
        memory=context.memory,
        name="hisp",
        progress=context.progress,
    )
    scores = node_scores(attribution)
    is_head = np.array([node.kind == "head" for node in graph.senders])
    order = np.argsort(np.where(is_head, -scores, np.inf), kind="stable")
    kept = sorted(int(index) for index in order[:n_kept])
    circuit = Circuit.from_heads(graph, [graph.senders[index].name for index in kept])
    return Discovery(circuit, cost=attribution.cost, node_scores=scores)


def _n_kept(heads: int | None, fraction: float, n_heads: int) -> int:
    if heads is None:
        return math.ceil(fraction * n_heads)
    if isinstance(heads, bool) or not isinstance(heads, int) or not 1 <= heads <= n_heads:
        raise BadSetting(f"heads={heads!r} must be a whole number from 1 to {n_heads}, the heads of the model")
    return heads
