"""What is measured before a search: whether the corrupted prompts take anything away that a circuit could give back."""

import warnings
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.memory import examples_that_fit, parse_memory
from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task, collate

LOGITS_BYTES = 3 * 4  # of one logit: three copies in float32


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
    if not ablation.method.empty_is_corrupted or any(example.corrupted is None for example in task.train):
        return ()  # without corrupted prompts the search refuses the task by itself
    clean, corrupted = clean_and_corrupted(model, task, metric, memory)
    gap = clean - corrupted
    error = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0
    if float(gap.mean()) - 2 * error > 0:
        return ()
    sentence = (
        f"the corrupted prompts of task '{task.name}' take nothing measurable away: {metric.name} of the clean prompts' "
        f"answers is {float(clean.mean()):.3g} on the clean and {float(corrupted.mean()):.3g} on the corrupted prompts "
        f"({len(gap)} train examples; the gap is {float(gap.mean()):.2g} ± {2 * error:.2g}), so that a circuit is judged by "
        "noise. Use corrupted prompts after which the answer does not follow, or another ablation"
    )
    warnings.warn(sentence, CircuitdiscWarning, stacklevel=3)
    return (sentence,)


@torch.no_grad()
def clean_and_corrupted(
    model: Model, task: Task, metric: Metric, memory: str | int = "4GiB"
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """The metric of the clean prompts' answers, by the model's own logits, on the clean and on the corrupted train prompts."""
    longest, budget = max(len(example) for example in task.train), parse_memory(memory) // 2
    fitting = examples_that_fit(model, budget, longest)
    at_once = max(1, min(fitting, budget // (longest * model.d_vocab_out * LOGITS_BYTES)))
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(task.train), at_once):
        batch = collate(task.train[start : start + at_once], device=model.device)
        labels = batch.labels
        for tokens, values in zip((batch.clean, batch.corrupted), parts, strict=True):
            assert tokens is not None
            logits = model.own_logits(tokens, batch.is_token.long(), batch.position_ids)[batch.reads]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if labels.full_logprobs is None:  # the clean prompts come first
                labels = replace(labels, full_logprobs=logits.log_softmax(-1))
            values.append(of_logits(batch, labels, logits, [metric])[metric.name].double().cpu())
    clean, corrupted = (torch.cat(values) for values in parts)
    return clean, corrupted
