"""Edge attribution patching with integrated gradients over the inputs.

1. Run the model on the clean prompts, and find what every sender carries when cut.
2. Between the ablated embedding z' (corrupted, mean, or zero) and the clean one z lie the points z' + k/m (z - z'),
   k = 0 .. m-1; run the model from each and take the metric's gradient with respect to the input of every receiver. Where z' is
   0 and goes into a norm, Gauss-Legendre points stand in for them: at 0 the norm's slope is 1 / sqrt(eps) (`path_points.py`).
3. Score an edge s -> r by the sum over positions of (ablated_s - clean_s) . (mean of gradient_r over the points), averaged over
   examples.
4. Keep the edges with the best scores.

Gradients away from the full model see what a flat spot of the metric (a saturated probability, the maximum of KL) hides at it.

Source: Hanna, Pezzelle and Belinkov 2024, "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model
Mechanisms", section 3 (https://arxiv.org/abs/2403.17806).
"""

from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import Whole, bounded
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.scored import Attributing, attribute, rule_and_selection, takes_gauss
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import Points, gauss_between, published_between
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@bounded(steps=Whole(1, 10_000))
@takes(Attributing)
def eap_ig(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    steps: int = 5,
    points: Points = "auto",
    **options: Unpack[Attributing],
) -> Discovery:
    """Score every edge by its difference times the gradient averaged between ablated and clean embeddings.

    Args:
        steps: at how many points gradients are taken.
        points: `published`: k/m of the way, the ablated end among them; `gauss`: Gauss-Legendre points, all inside; `auto`:
            `gauss` where the ablated embedding is 0 and goes into a norm (ablation `zero`), `published` otherwise.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut; in `path_sum`, whether
        those out of the embedding add up. The trace is empty.

    Raises:
        UnknownName: there is no such rule of points.
        BadSetting: a setting is out of its bounds, the metric's gradient vanishes, or the model, the ablation or the budget
            does not allow it.
    """
    taken = (gauss_between if takes_gauss(points, model, ablation) else published_between)(steps)
    rule, selection = rule_and_selection(options)
    gradient = Gradient(rows=steps)
    return attribute(
        "eap_ig",
        model,
        task,
        ablation,
        context,
        selection,
        gradient,
        lambda attribution: attribution.edges_between(taken),
        rule,
    )
