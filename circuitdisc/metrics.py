"""Metrics: a number for each example from the logits at its answer positions. Higher is better.

A *reading* is one answer position of one example; an example with several answer positions scores their mean. Shape
letters: N readings, W columns of the unembedding (the whole vocabulary V, or the answer tokens alone), A answers.

Whatever precision a model runs in, a metric sees logits in float32 at least: a softmax over a vocabulary in a 16-bit type has
an error as large as the divergences that are measured with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.errors import BadSetting, UnknownName


@dataclass(frozen=True)
class Labels:
    """What is right and wrong at each reading.

    Args:
        answers: columns of the right tokens, padded with 0. Shape [N, A].
        answers_mask: True where `answers` holds a token. Shape [N, A].
        wrong: columns of the wrong tokens, padded with 0. Shape [N, A'].
        wrong_mask: True where `wrong` holds a token. Shape [N, A'].
        full_logprobs: log-probabilities of the full model on the clean prompt, for KL. Shape [N, V].
        targets: the right number at each reading, for models whose output is a number; it is read in the column that
            `answers` names. Shape [N].
    """

    answers: Int[Tensor, "N A"]
    answers_mask: Bool[Tensor, "N A"]
    wrong: Int[Tensor, "N A2"]
    wrong_mask: Bool[Tensor, "N A2"]
    full_logprobs: Float[Tensor, "N V"] | None = None
    targets: Float[Tensor, "N"] | None = None

    @property
    def columns(self) -> Int[Tensor, "N W"]:
        """The columns of the unembedding that the answers need: right tokens first, then wrong ones."""
        return torch.cat([self.answers, self.wrong], dim=1)

    def among_columns(self) -> "Labels":
        """The same labels as positions in `columns`, for logits that hold those columns alone."""
        n, n_answers = self.answers.shape
        first = torch.arange(n_answers, device=self.answers.device).expand(n, -1)
        second = torch.arange(self.wrong.shape[1], device=self.answers.device).expand(n, -1) + n_answers
        return replace(self, answers=first, wrong=second)


@dataclass(frozen=True)
class Metric:
    """A metric: one of `METRICS`, or one of your own, which every call takes in place of a name.

    Args:
        name: as on the command line and on pages; not that of another metric.
        function: logits [..., N, W] in float32 at least, and labels, to values [..., N].
        columns: `answers` if the logits of the answer tokens suffice, `all` if the whole vocabulary is needed.
        needs_wrong: True if every example must name wrong answers.
        summary: one line for `circuitdisc list metrics`.
        zero_at_full: True if the full model's value is 0 by construction, so that no fraction of it can be a threshold;
            it is then a maximum, too, so that its gradient at the full model vanishes.
        differentiable: False if the value is constant almost everywhere, so that it has no gradient to follow.
        needs_targets: True if every example must name the number that the model should put out.
        least_outputs: columns of the unembedding below which the value is the same whatever the model computes.
    """

    name: str
    function: Callable[[Float[Tensor, "... N W"], Labels], Float[Tensor, "... N"]]
    columns: Literal["answers", "all"] = "all"
    needs_wrong: bool = False
    summary: str = ""
    zero_at_full: bool = False
    differentiable: bool = True
    needs_targets: bool = False
    least_outputs: int = 1

    def __call__(self, logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
        """Values of every reading, in float32 at least.

        Raises:
            BadSetting: the function did not give a number for each reading.
        """
        values = self.function(wide(logits), labels)
        if not isinstance(values, Tensor) or values.shape != logits.shape[:-1]:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise BadSetting(
                f"metric '{self.name}' gave {shape} for logits of shape {tuple(logits.shape)}: it must give a number for "
                f"each reading, {tuple(logits.shape[:-1])}"
            )
        return values


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_probabilities(logits: Float[Tensor, "... W"]) -> Float[Tensor, "... W"]:
    """Log-softmax, in nats, in float32 at least."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _pick(values: Float[Tensor, "... N W"], columns: Int[Tensor, "N A"]) -> Float[Tensor, "... N A"]:
    return values.gather(-1, columns.expand(*values.shape[:-1], -1))


def _masked_mean(values: Float[Tensor, "... N A"], mask: Bool[Tensor, "N A"]) -> Float[Tensor, "... N"]:
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def _masked_sum(values: Float[Tensor, "... N A"], mask: Bool[Tensor, "N A"]) -> Float[Tensor, "... N"]:
    return torch.where(mask, values, 0.0).sum(-1)


def logit_diff(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Mean logit of the right answers minus mean logit of the wrong ones (Wang et al. 2022)."""
    right = _masked_mean(_pick(logits, labels.answers), labels.answers_mask)
    return right - _masked_mean(_pick(logits, labels.wrong), labels.wrong_mask)


def prob_diff(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Probability of the right answers minus that of the wrong ones (Hanna et al. 2023)."""
    probabilities = logits.softmax(-1)
    right = _masked_sum(_pick(probabilities, labels.answers), labels.answers_mask)
    return right - _masked_sum(_pick(probabilities, labels.wrong), labels.wrong_mask)


def log_prob(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Log-probability, in nats, that the next token is one of the right answers."""
    picked = _pick(logits.log_softmax(-1), labels.answers)
    return torch.where(labels.answers_mask, picked, -torch.inf).logsumexp(-1)


def accuracy(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """1 where the most likely token of the whole vocabulary is a right answer, else 0."""
    hit = (logits.argmax(-1, keepdim=True) == labels.answers) & labels.answers_mask
    return hit.any(-1).to(logits.dtype)


def pair_accuracy(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """1 where the highest logit of a right answer lies above that of every wrong one, else 0; all other tokens are ignored."""
    right = torch.where(labels.answers_mask, _pick(logits, labels.answers), -torch.inf).amax(-1)
    wrong = torch.where(labels.wrong_mask, _pick(logits, labels.wrong), -torch.inf).amax(-1)
    return (right > wrong).to(logits.dtype)


def negative_kl(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """-KL(full model || circuit), in nats, over the whole vocabulary (Conmy et al. 2023)."""
    if labels.full_logprobs is None:
        raise ValueError("the KL metric needs the full model's log-probabilities: Labels.full_logprobs")
    full = labels.full_logprobs
    return -(full.exp() * (full - logits.log_softmax(-1))).sum(-1)


def squared_error(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """Minus the squared difference between the model's number and the right one."""
    if labels.targets is None:
        raise ValueError("the squared error needs the right numbers: Labels.targets")
    return -(model_output(logits, labels) - labels.targets.to(logits.dtype)).square()


def model_output(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """The number that a model puts out: the logit in the column that `answers` names (their mean, if it names several)."""
    return _masked_mean(_pick(logits, labels.answers), labels.answers_mask)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", logit_diff, "answers", True, "logit of right minus wrong answers"),
        Metric("prob_diff", prob_diff, "all", True, "probability of right minus wrong answers", least_outputs=2),
        Metric("log_prob", log_prob, "all", False, "log-probability of the right answers, in nats", least_outputs=2),
        Metric(
            "accuracy", accuracy, "all", False, "share of examples whose top token is right",
            differentiable=False, least_outputs=2,
        ),
        Metric(
            "pair_accuracy", pair_accuracy, "answers", True, "share with a right answer above every wrong",
            differentiable=False, least_outputs=2,
        ),
        Metric("kl", negative_kl, "all", False, "minus KL(full model || circuit), in nats", True, least_outputs=2),
        Metric("squared_error", squared_error, "answers", False, "minus the squared error of a number", needs_targets=True),
    )
}  # fmt: skip
OUTPUT = Metric("output", model_output, "answers", summary="the number that the model puts out")  # what scores correlate


def get_metric(*wanted: str | Metric | None) -> Metric:
    """The first metric that is given, by name or as an object.

    Args:
        wanted: what the caller asks for, then what stands in for it (the metric a circuit was found with, the task's own).
            None and an empty name are passed over. A name may also be that of an object further on.

    Raises:
        UnknownName: there is none of this name; the message offers the nearest ones.
        BadSetting: an object that is no metric, or one with the name of another metric.
    """
    given = [one for one in wanted if one is not None and one != ""]
    if not given:
        raise BadSetting(f"no metric is named: give metric=, one of {', '.join(METRICS)}")
    own = {one.name: one for one in given if isinstance(one, Metric)}
    first = given[0]
    if isinstance(first, Metric):
        if not isinstance(first.name, str) or METRICS.get(first.name, first) != first:
            raise BadSetting(f"a metric of your own is named {first.name!r}, as one of circuitdisc is: give it another name")
        return first
    if not isinstance(first, str):
        raise BadSetting(f"metric={first!r} is no metric: give a name ({', '.join(METRICS)}), or cd.Metric(name, function)")
    if first in own:
        return get_metric(own[first])
    if first in METRICS:
        return METRICS[first]
    if first == "correlation":
        raise BadSetting(
            "a correlation is a figure of a whole data set and no mean over its examples, so that no edge can be judged by it: "
            "search with metric=squared_error; scores of a task with targets name the correlation beside it"
        )
    raise UnknownName("metric", first, METRICS, "A metric of your own is given as an object: metric=Metric(...).")
