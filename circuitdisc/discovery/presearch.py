"""What is measured before a search: whether the ablation takes anything away that a circuit could give back."""

import warnings

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.patching.engine import Patching
from circuitdisc.tasks.base import Task


def corruption_notes(
    model: Model, task: Task, ablation: Ablation, metric: Metric, memory: str | int = "4GiB"
) -> tuple[str, ...]:
    """Warn if the corrupted prompts take nothing away: a circuit is then judged by noise.

    Under `resample` ablation a run of the empty circuit is the model on the corrupted prompts. Example by example, the
    metric there is taken from the metric on the clean prompts, for the same answers; the mean of the differences must lie two
    standard errors above 0. Other ablations are not measured here.

    Args:
        model: the model.
        task: its train split is measured.
        ablation: what the search will use.
        metric: what the search will use.
        memory: budget for activations, as `4GiB`.

    Returns:
        The warning as a note for the circuit's provenance; nothing if all is well.
    """
    if ablation.kind != "resample" or ablation.target != "output":
        return ()
    graph = model.graph
    masks = {"clean": graph.edge_mask, "corrupted": Circuit.empty(graph).mask}
    values = Patching(model, ablation, task.train, memory=memory).evaluate(task.train, masks, [metric])
    clean, corrupted = (values[name][metric.name].double() for name in masks)
    gap = clean - corrupted
    error = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0
    if float(gap.mean()) - 2 * error > 0:
        return ()
    sentence = (
        f"the corrupted prompts of task '{task.name}' take nothing away: {metric.name} of the clean prompts' answers is "
        f"{float(clean.mean()):.3g} on the clean and {float(corrupted.mean()):.3g} on the corrupted prompts "
        f"({len(gap)} train examples; the gap is {float(gap.mean()):.2g} ± {2 * error:.2g}), so that a circuit is judged by "
        "noise. Use corrupted prompts after which the answer does not follow, or another ablation"
    )
    warnings.warn(sentence, CircuitdiscWarning, stacklevel=3)
    return (sentence,)
