"""What is measured before a search: whether the model does the task, and whether the corrupted prompts take anything away."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.memory import examples_that_fit, parse_memory
from circuitdisc.errors import CircuitdiscWarning, NothingToExplain
from circuitdisc.metrics import METRICS, Metric
from circuitdisc.models.model import Model
from circuitdisc.stats import plain, standard_error
from circuitdisc.tasks.base import Example, Task, collate
from circuitdisc.tasks.measured import constant_errors, is_numeric
from circuitdisc.wording import percent

LOGITS_BYTES = 3 * 4  # of one logit: three copies in float32
SMALL_SHARE = 0.2
"""Below this share of the metric what the corrupted prompts take away is little."""

ByMetric = dict[str, Float[Tensor, "B"]]


# --- whether the model does the task --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ability:
    """How a model does a task, against chance.

    Args:
        metric: that decides.
        mean: of it.
        error: two standard errors of its distance from chance.
        does: whether that distance is more.
        chance: what it is compared with, in words.
    """

    metric: str
    mean: float
    error: float
    does: bool
    chance: str


def ability_metric(examples: Sequence[Example]) -> Metric:
    """What decides whether a model does a task: squared error, logit difference or accuracy, as its answers are."""
    usual = "logit_diff" if all(all(example.wrong) for example in examples) else "accuracy"
    return METRICS["squared_error" if is_numeric(examples) else usual]


def ability_of(model: Model, examples: Sequence[Example], values: Float[Tensor, "B"]) -> Ability:
    """Whether these values of `ability_metric` lie two standard errors above chance.

    With wrong answers: the mean logit difference above 0. Without: the accuracy above one in the size of the vocabulary. With
    numbers as targets: the squared error below that of the best constant.
    """
    metric, values = ability_metric(examples).name, values.double().cpu()
    chance = {"logit_diff": 0.0, "accuracy": 1.0 / model.d_vocab_out, "squared_error": 0.0}[metric]
    numeric = metric == "squared_error"
    above = values - torch.from_numpy(constant_errors(examples)) if numeric else values - chance
    error = plain(float(standard_error(above.numpy()))) or 0.0
    mean = float(values.mean())
    does = bool(torch.isfinite(values).all()) and float(above.mean()) - 2 * error > 0
    words = f"chance ({chance:.2g})" if not numeric else f"the best constant ({mean - float(above.mean()):.3g})"
    return Ability(metric, mean, 2 * error, does, words)


# --- what the corrupted prompts take away ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorruptionGap:
    """What the corrupted prompts take away of a metric of the clean prompts' answers.

    Args:
        clean, corrupted: means.
        mean: of the differences, example by example.
        error: two standard errors of that mean; 0 for a single example.
        n: examples.
    """

    clean: float
    corrupted: float
    mean: float
    error: float
    n: int

    @classmethod
    def between(cls, clean: Float[Tensor, "B"], corrupted: Float[Tensor, "B"]) -> "CorruptionGap":
        """The gap between the values of the same examples."""
        apart = clean - corrupted
        error = float(apart.std() / len(apart) ** 0.5) if len(apart) > 1 else 0.0
        return cls(float(clean.mean()), float(corrupted.mean()), float(apart.mean()), 2 * error, len(apart))

    @property
    def is_nothing(self) -> bool:
        """Whether it cannot be told from 0, so that there is nothing for a circuit to explain."""
        return not abs(self.mean) > self.error

    @property
    def share(self) -> float:
        """Of the metric on the clean prompts; NaN where that is not above 0."""
        return self.mean / self.clean if self.clean > 0 else np.nan

    @property
    def is_small(self) -> bool:
        return self.share < SMALL_SHARE

    def words(self, metric: str) -> str:
        return (
            f"{metric} of the clean prompts' answers is {self.clean:.3g} on the clean and {self.corrupted:.3g} on the "
            f"corrupted prompts ({self.n} train examples; the gap is {self.mean:.2g} ± {self.error:.2g})"
        )


def corruption_notes(
    model: Model, task: Task, ablation: Ablation, metric: Metric, memory: str | int = "4GiB", *, allow_nothing: bool = False
) -> tuple[str, ...]:
    """Refuse, or warn, if the corrupted prompts take nothing, or little, away: a circuit is then judged by noise.

    Under `resample` ablation a run of the empty circuit is the model on the corrupted prompts. Example by example, the
    metric there is taken from the metric on the clean prompts, for the same answers. Where the mean of the differences lies
    within two standard errors of 0 there is nothing to explain; where it lies below, or is a small share of the metric, that is
    said. Other ablations are not measured here.

    Args:
        model: the model.
        task: its train split is measured.
        ablation: what the search will use.
        metric: what the search will use.
        memory: budget for activations, as `4GiB`.
        allow_nothing: warn where it would refuse.

    Returns:
        The warning as a note for the circuit's provenance; nothing if all is well.

    Raises:
        NothingToExplain: the difference cannot be told from 0.
    """
    if not ablation.method.empty_is_corrupted or any(example.corrupted is None for example in task.train):
        return ()  # without corrupted prompts the search refuses the task by itself
    clean, corrupted = clean_and_corrupted(model, task.train, [metric], memory)
    gap = CorruptionGap.between(clean[metric.name], corrupted[metric.name])
    advice = "Use corrupted prompts after which the answer does not follow, or another ablation"
    if gap.is_nothing and not allow_nothing:
        raise NothingToExplain(
            f"the corrupted prompts of task '{task.name}' take nothing measurable away: {gap.words(metric.name)}, so that "
            f"there is nothing for a circuit to explain. {advice}; to search all the same set allow_chance=true"
        )
    if gap.mean - gap.error > 0 and not gap.is_small:
        return ()
    what = f"only {percent(gap.share)}" if gap.mean - gap.error > 0 else "nothing measurable"
    sentence = (
        f"the corrupted prompts of task '{task.name}' take {what} away: {gap.words(metric.name)}, so that a circuit is judged "
        f"by {'little' if gap.mean - gap.error > 0 else 'noise'}. {advice}"
    )
    warnings.warn(sentence, CircuitdiscWarning, stacklevel=3)
    return (sentence,)


@torch.no_grad()
def clean_and_corrupted(
    model: Model, examples: Sequence[Example], metrics: Sequence[Metric], memory: str | int = "4GiB"
) -> tuple[ByMetric, ByMetric]:
    """Metrics of the clean prompts' answers, by the model's own logits, on the clean and on the corrupted prompts.

    Returns:
        Values by metric on each; the second is empty if an example has no corrupted prompt.
    """
    longest, budget = max(len(example) for example in examples), parse_memory(memory) // 2
    fitting = examples_that_fit(model, budget, longest)
    at_once = max(1, min(fitting, budget // (longest * model.d_vocab_out * LOGITS_BYTES)))
    paired = all(example.corrupted is not None for example in examples)
    parts: tuple[dict[str, list[Tensor]], ...] = tuple({metric.name: [] for metric in metrics} for _ in range(1 + paired))
    for start in range(0, len(examples), at_once):
        batch = collate(examples[start : start + at_once], device=model.device)
        labels = batch.labels
        for tokens, values in zip((batch.clean, batch.corrupted), parts, strict=False):
            assert tokens is not None
            logits = model.own_logits(tokens, batch.is_token.long(), batch.position_ids)[batch.reads]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if labels.full_logprobs is None:  # the clean prompts come first
                labels = replace(labels, full_logprobs=logits.log_softmax(-1))
            for name, of_batch in of_logits(batch, labels, logits, metrics).items():
                values[name].append(of_batch.double().cpu())
    clean, corrupted = (
        {name: torch.cat(values) for name, values in by_metric.items()} for by_metric in (*parts, *[{}] * (not paired))
    )
    return clean, corrupted
