"""Attribution patching with an exact attention softmax for edges into queries and keys.

1. Run the model on the clean prompts, and find what every sender carries when cut.
2. Take the metric's gradient with respect to the input of every receiver and to every attention pattern, at the clean run.
3. Edges into v, MLPs and `logits`: the sum over positions of (ablated_s - clean_s) . gradient_r, as `eap` has it.
4. Edges into q and k: pass the changed input (clean + ablated_s - clean_s) exactly through norm, projection, rotation, softcap
   and softmax, and score the edge by the sum of (changed pattern - clean pattern) . gradient of the pattern. A gradient
   through a saturated softmax is nearly 0 even where the pattern would move; this is not fooled by it.
5. Average over examples; keep the edges with the best scores.

With `grad_drop=true` (then it is AtP*) steps 2 to 4 are taken once for each layer, with no gradient through what that layer
writes; an edge's score is the mean size over these passes and over examples, without a sign (`engine/gradients/grad_drop.py`).
Without it gradients that cancel between paths do so here, too.

Source: Kramar, Lieberum, Shah and Nanda 2024, "AtP*: An efficient and scalable method for localizing LLM behaviour to
components", section 3.1 (https://arxiv.org/abs/2403.00745), there for nodes, here taken to edges.
"""

from dataclasses import replace

from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.scored import attribute
from circuitdisc.discovery.selection import Ranking, Selection
from circuitdisc.engine.gradients.grad_drop import edges_with_grad_drop
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.pattern_scores import edges_through_patterns
from circuitdisc.errors import BadSetting
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@takes(Ranking)
def atp(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    grad_drop: bool = False,
    **options: Unpack[Ranking],
) -> Discovery:
    """Score every edge by its difference times the gradient, edges into q and k through the exact softmax.

    Args:
        grad_drop: a backward pass for each layer, without the gradient through what it writes; scores are then sizes.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut, with `grad_drop` of how far
        it moves on an example. The trace is empty.

    Raises:
        BadSetting: a setting is out of its bounds, the metric's gradient vanishes, or the model, the ablation or the budget
            does not allow it; or `grad_drop` stands beside `by=signed` or meets a model of a single layer.
    """
    selection = Selection(**options)
    if not grad_drop:
        gradient = Gradient(at_full=True, patterns=True)
        return attribute("atp", model, task, ablation, context, selection, gradient, edges_through_patterns, by_token=False)
    if selection.by == "signed":
        raise BadSetting("by=signed needs scores with a sign, and those of grad_drop=true are sizes: use by=absolute")
    gradient = Gradient(at_full=True, patterns=True, drops=True)
    found = attribute("atp", model, task, ablation, context, selection, gradient, edges_with_grad_drop, by_token=False)
    return replace(found, notes=(*found.notes, SIZES), signed=False)


SIZES = (
    "atp with grad_drop=true: a score is the mean size of an edge's estimates over backward passes and examples. It has "
    "no sign, and says nothing of whether the edge helps or works against the task."
)
