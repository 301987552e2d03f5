"""What the algorithms that score every edge share: from settings to attribution, and from scores to a discovery."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
from jaxtyping import Float

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import Selection
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.patching.attribution import Attribution
from circuitdisc.patching.attribution_memory import Gradient
from circuitdisc.tasks.base import Task


def attribute(
    name: str,
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    selection: Selection,
    gradient: Gradient,
    scores_of: Callable[[Attribution], Float[np.ndarray, "R S"]],
) -> Discovery:
    """Score all edges on the train split and choose a circuit.

    Args:
        name: of the algorithm.
        selection: how the circuit is chosen.
        gradient: where gradients are taken.
        scores_of: the scores from an attribution that is ready.
    """
    started = perf_counter()
    selection.n_edges(model.graph)
    attribution = Attribution(
        model,
        ablation,
        task.train,
        get_metric(context.metric),
        gradient=gradient,
        memory=context.memory,
        name=name,
        progress=context.progress,
    )
    scores = scores_of(attribution)
    attribution.cost.seconds = perf_counter() - started
    return Discovery(selection.circuit(model.graph, scores), scores, cost=attribution.cost)


def shares_from_ablated(steps: int) -> list[float]:
    """The points 0/m, 1/m, ... (m-1)/m between ablated (0) and clean (1)."""
    return [step / steps for step in range(steps)]
