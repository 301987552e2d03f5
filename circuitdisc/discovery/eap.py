"""Edge attribution patching: score every edge from two forward passes and one backward pass.

1. Run the model on the clean prompts, and find what every sender carries when cut (zero and mean ablation: without, and with
   one other pass; resample: a pass on the corrupted prompts).
2. Take the metric's gradient with respect to the input of every receiver, at the clean run.
3. Score an edge s -> r by the sum over positions of (ablated_s - clean_s) . gradient_r, averaged over examples.
4. Keep the edges with the best scores.

Source: Syed, Rager and Conmy 2023, "Attribution Patching Outperforms Automated Circuit Discovery", section 3
(https://arxiv.org/abs/2310.10348).
"""

from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.scored import Attributing, attribute, rule_and_selection
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@takes(Attributing)
def eap(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    **options: Unpack[Attributing],
) -> Discovery:
    """Score every edge by its difference times the gradient at the clean run.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut. The trace is empty.

    Raises:
        BadSetting: a setting is out of its bounds, the metric's gradient vanishes, or the model, the ablation or the budget
            does not allow it.
    """
    rule, selection = rule_and_selection(options)
    gradient = Gradient(at_full=True)
    return attribute(
        "eap", model, task, ablation, context, selection, gradient, lambda attribution: attribution.edges_at_full(), rule
    )
