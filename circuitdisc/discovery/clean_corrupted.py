"""Edge attribution patching with gradients from both ends: the clean and the ablated embeddings.

1. Run the model on the clean prompts, and find what every sender carries when cut.
2. Take the metric's gradient with respect to the input of every receiver in two runs: from the clean embedding, and from the
   ablated one (corrupted, mean, or zero). Where that is 0 and goes into a norm, a point a third of the way stands in for it: at
   0 the norm's slope is 1 / sqrt(eps) (`path_points.py`).
3. Score an edge s -> r by the sum over positions of (ablated_s - clean_s) . (mean of the two gradients), averaged over
   examples.
4. Keep the edges with the best scores.

Source: the two-point variant of Hanna, Pezzelle and Belinkov 2024 (https://arxiv.org/abs/2403.17806).
"""

from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.scored import Attributing, attribute, rule_and_selection, takes_gauss
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import GAUSS_WITH_CLEAN_END, PUBLISHED_ENDS, Points
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@takes(Attributing)
def clean_corrupted(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    points: Points = "auto",
    **options: Unpack[Attributing],
) -> Discovery:
    """Score every edge with gradients averaged over the clean and the ablated embeddings.

    Args:
        points: `published`: both ends; `gauss`: the clean end and a third of the way, weights 1/4 and 3/4; `auto`: `gauss`
            where the ablated embedding is 0 and goes into a norm (ablation `zero`), `published` otherwise.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut; in `path_sum`, whether
        those out of the embedding add up. The trace is empty.

    Raises:
        UnknownName: there is no such rule of points.
        BadSetting: a setting is out of its bounds, the metric's gradient vanishes, or the model, the ablation or the budget
            does not allow it.
    """
    taken = GAUSS_WITH_CLEAN_END if takes_gauss(points, model, ablation) else PUBLISHED_ENDS
    rule, selection = rule_and_selection(options)
    gradient = Gradient(rows=2)
    return attribute(
        "clean_corrupted",
        model,
        task,
        ablation,
        context,
        selection,
        gradient,
        lambda attribution: attribution.edges_between(taken),
        rule,
    )
