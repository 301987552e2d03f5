"""Conductance edge attribution patching: what flows through every edge between clean and corrupted embedding.

1. Run the model on the clean and the corrupted prompts.
2. Cut the way from the clean embedding to the corrupted one into m stretches. On each, take how far every sender's output moves
   from one end to the other, and the metric's gradient with respect to the input of every receiver at its middle.
3. Score an edge s -> r by the sum over stretches and positions of (movement of s) . gradient_r, averaged over examples.
4. Keep the edges with the best scores.

EAP-IG multiplies the mean gradient with the whole difference of s; here each stretch counts by what s does on it.

Source: Wu, Tonin and Cevher 2026, "Demystifying Variance in Circuit Discovery of LLMs" (https://arxiv.org/abs/2606.16920); the
stretches and their middles are our own choice.
"""

from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import Whole, bounded
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.scored import Attributing, attribute, rule_and_selection
from circuitdisc.engine.gradients.conductance import edges_by_conductance
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.errors import BadSetting
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@bounded(steps=Whole(1, 10_000))
@takes(Attributing)
def ceap(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    steps: int = 5,
    **options: Unpack[Attributing],
) -> Discovery:
    """Score every edge by its conductance between clean and corrupted embeddings.

    Args:
        steps: stretches of the way; each takes two forward passes and a backward one.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut; in `path_sum`, whether
        those into `logits` add up. The trace is empty.

    Raises:
        BadSetting: the ablation is not `resample`, a setting is out of its bounds, or the model or the budget does not
            allow it.
    """
    if not ablation.method.empty_is_corrupted:
        raise BadSetting(
            f"ceap follows what senders write from the clean to the corrupted prompts; under ablation={ablation.kind} a cut "
            "edge carries something else: use ablation=resample, or eap_ig"
        )
    rule, selection = rule_and_selection(options)
    gradient = Gradient(copies=2)
    return attribute(
        "ceap",
        model,
        task,
        ablation,
        context,
        selection,
        gradient,
        lambda attribution: edges_by_conductance(attribution, steps),
        rule,
    )
