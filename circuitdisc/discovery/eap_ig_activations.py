"""Edge attribution patching with integrated gradients over activations, place by place.

1. Run the model on the clean prompts, and find what every sender carries when cut.
2. For each place where senders write (the embedding, the heads of a layer, an MLP): replace their outputs together by
   z' + k/m (z - z'), k = 0 .. m-1, let the rest of the model react, and take the metric's gradient with respect to the input
   of every receiver behind them. Everything before the place is clean, so that only the layers behind it run. Where the
   embedding's z' is 0 and goes into a norm, Gauss-Legendre points stand in for its own: see `path_points.py`.
3. Score the edges out of these senders by the sum over positions of (ablated_s - clean_s) . (mean of gradient_r over the
   points), averaged over examples.
4. Keep the edges with the best scores.

Source: Hanna, Pezzelle and Belinkov 2024 (https://arxiv.org/abs/2403.17806), in the form over activations of Mueller et al.
2025, "MIB: A Mechanistic Interpretability Benchmark" (https://arxiv.org/abs/2504.13151), after Marks et al. 2024,
"Sparse Feature Circuits" (https://arxiv.org/abs/2403.19647).
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
def eap_ig_activations(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    steps: int = 5,
    points: Points = "auto",
    **options: Unpack[Attributing],
) -> Discovery:
    """Score the edges out of every place with gradients averaged between its ablated and clean output.

    Args:
        steps: at how many points gradients are taken.
        points: `published`: k/m of the way, the ablated end among them; `gauss`: Gauss-Legendre points, all inside; `auto`:
            `gauss` between clean and ablated embedding where the latter is 0 and goes into a norm (ablation `zero`),
            `published` otherwise and at all other places.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut; in `path_sum`, whether
        those out of the embedding add up. The trace is empty.

    Raises:
        UnknownName: there is no such rule of points.
        BadSetting: a setting is out of its bounds, the metric's gradient vanishes, or the model, the ablation or the budget
            does not allow it.
    """
    of_embedding = (gauss_between if takes_gauss(points, model, ablation) else published_between)(steps)
    taken = gauss_between(steps) if points == "gauss" else published_between(steps)
    rule, selection = rule_and_selection(options)
    gradient = Gradient(rows=steps, places=True)
    return attribute(
        "eap_ig_activations",
        model,
        task,
        ablation,
        context,
        selection,
        gradient,
        lambda attribution: attribution.edges_between_activations(taken, of_embedding),
        rule,
    )
