"""Attribution patching with an exact attention softmax for edges into queries and keys.

1. Run the model on the clean prompts, and find what every sender carries when cut.
2. Take the metric's gradient with respect to the input of every receiver and to every attention pattern, at the clean run.
3. Edges into v, MLPs and `logits`: the sum over positions of (ablated_s - clean_s) . gradient_r, as `eap` has it.
4. Edges into q and k: pass the changed input (clean + ablated_s - clean_s) exactly through norm, projection, rotation, softcap
   and softmax, and score the edge by the sum of (changed pattern - clean pattern) . gradient of the pattern. A gradient
   through a saturated softmax is nearly 0 even where the pattern would move; this is not fooled by it.
5. Average over examples; keep the edges with the best scores.

There is no GradDrop: gradients that cancel between paths do so here, too.

Source: Kramar, Lieberum, Shah and Nanda 2024, "AtP*: An efficient and scalable method for localizing LLM behaviour to
components", section 3.1 (https://arxiv.org/abs/2403.00745), there for nodes, here taken to edges.
"""

from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.scored import attribute
from circuitdisc.discovery.selection import Ranking, Selection
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.pattern_scores import edges_through_patterns
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.tasks.base import Task


@takes(Ranking)
def atp(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    **options: Unpack[Ranking],
) -> Discovery:
    """Score every edge by its difference times the gradient, edges into q and k through the exact softmax.

    Returns:
        A circuit and the score of every edge: an estimate of how the metric changes when it is cut. The trace is empty.

    Raises:
        BadSetting: a setting is out of its bounds, the metric's gradient vanishes, or the model, the ablation or the budget
            does not allow it.
    """
    selection = Selection(**options)
    gradient = Gradient(at_full=True, patterns=True)
    return attribute("atp", model, task, ablation, context, selection, gradient, edges_through_patterns, by_token=False)
