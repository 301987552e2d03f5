"""Metrics: a number for each example from the logits at its answer positions. Higher is better.

A *reading* is one answer position of one example; an example with several answer positions scores their mean. Shape
letters: N readings, W columns of the unembedding (the whole vocabulary V, or the answer tokens alone), A answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.errors import UnknownName


@dataclass(frozen=True)
class Labels:
    """What is right and wrong at each reading.

    Args:
        answers: columns of the right tokens, padded with 0. Shape [N, A].
        answers_mask: True where `answers` holds a token. Shape [N, A].
        wrong: columns of the wrong tokens, padded with 0. Shape [N, A'].
        wrong_mask: True where `wrong` holds a token. Shape [N, A'].
        full_logprobs: log-probabilities of the full model on the clean prompt, for KL. Shape [N, V].
    """

    answers: Int[Tensor, "N A"]
    answers_mask: Bool[Tensor, "N A"]
    wrong: Int[Tensor, "N A2"]
    wrong_mask: Bool[Tensor, "N A2"]
    full_logprobs: Float[Tensor, "N V"] | None = None

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
    """A metric by name.

    Args:
        name: as on the command line.
        function: logits [..., N, W] and labels to values [..., N].
        columns: `answers` if the logits of the answer tokens suffice, `all` if the whole vocabulary is needed.
        needs_wrong: True if every example must name wrong answers.
        summary: one line for `circuitdisc list metrics`.
        zero_at_full: True if the full model's value is 0 by construction, so that no fraction of it can be a threshold;
            it is then a maximum, too, so that its gradient at the full model vanishes.
        differentiable: False if the value is constant almost everywhere, so that it has no gradient to follow.
    """

    name: str
    function: Callable[[Float[Tensor, "... N W"], Labels], Float[Tensor, "... N"]]
    columns: Literal["answers", "all"]
    needs_wrong: bool
    summary: str
    zero_at_full: bool = False
    differentiable: bool = True

    def __call__(self, logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
        return self.function(logits, labels)


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


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", logit_diff, "answers", True, "logit of right minus wrong answers"),
        Metric("prob_diff", prob_diff, "all", True, "probability of right minus wrong answers"),
        Metric("log_prob", log_prob, "all", False, "log-probability of the right answers, in nats"),
        Metric("accuracy", accuracy, "all", False, "share of examples whose top token is right", differentiable=False),
        Metric(
            "pair_accuracy", pair_accuracy, "answers", True, "share with a right answer above every wrong", differentiable=False
        ),
        Metric("kl", negative_kl, "all", False, "minus KL(full model || circuit), in nats", True),
    )
}


def get_metric(name: str | Metric) -> Metric:
    """The metric with this name.

    Raises:
        UnknownName: there is none; the message offers the nearest names.
    """
    if isinstance(name, Metric):
        return name
    if name not in METRICS:
        raise UnknownName("metric", name, METRICS)
    return METRICS[name]
