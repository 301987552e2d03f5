"""Edge attribution patching along a path that follows a gradient, to get round flat stretches of the metric.

1. Run the model on the clean and the corrupted prompts.
2. From the clean embedding go k steps of length 1, each down the gradient of the squared distance between the logits at the
   current point and those of the corrupted prompt (`engine/gradients/grad_path.py`).
3. Score an edge s -> r by the sum over positions of (corrupted_s - clean_s) . (mean of gradient_r over the k points reached),
   averaged over examples.
4. Keep the edges with the best scores.

EAP-IG goes straight from one embedding to the other, wherever that leads through.

Source: Zhang et al. 2025, "EAP-GP: Mitigating Saturation Effect in Gradient-based Automated Circuit Identification"
(https://arxiv.org/abs/2502.06852), Algorithm 1, as published code of others has it; it was not compared with the authors' own.
What was left open is decided so: one path from the input serves all nodes (there each node u has a path of its own, at a cost
that is not the published one); the output is the logits at the positions that are read; an example's step is normalised over
all of its tokens; the start, where `eap` takes its gradient, is no point of the mean.
"""

from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import Whole, bounded
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.scored import attribute
from circuitdisc.discovery.selection import Consistent, Selection
from circuitdisc.engine.gradients.grad_path import edges_along_gradient
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.errors import BadSetting
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@bounded(steps=Whole(1, 10_000))
@takes(Consistent)
def eap_gp(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    steps: int = 5,
    **options: Unpack[Consistent],
) -> Discovery:
    """Score every edge by its difference times the gradient averaged along a path that follows a gradient.

    Args:
        steps: of the path, and points at which gradients are taken; each takes a forward pass and two backward ones.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut. The trace is empty.

    Raises:
        BadSetting: the ablation is not `resample`, a setting is out of its bounds, or the model or the budget does not
            allow it.
    """
    if not ablation.method.empty_is_corrupted:
        raise BadSetting(
            f"eap_gp goes from the clean prompts towards the output of the corrupted ones; ablation={ablation.kind} puts "
            "something else in their place: use ablation=resample, or eap_ig"
        )
    gradient = Gradient(all_columns=True)
    return attribute(
        "eap_gp",
        model,
        task,
        ablation,
        context,
        Selection(**options),
        gradient,
        lambda attribution: edges_along_gradient(attribution, steps),
    )
