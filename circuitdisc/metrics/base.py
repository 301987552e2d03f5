"""What a metric is: a number for each example from the logits at its answer positions. Higher is better.

A *reading* is one answer position of one example; an example with several answer positions scores their mean. Shape
letters: N readings, W columns of the unembedding (the whole vocabulary V, or the answer tokens alone), A answers.

Whatever precision a model runs in, a metric sees logits in float32 at least: a softmax over a vocabulary in a 16-bit type has
an error as large as the divergences that are measured with it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.errors import BadSetting


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
    """A metric: one of this folder, or one of your own, which every call takes in place of a name.

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
        least, most: values lie between these, and so do the ends of an interval.
        least_outputs: columns of the unembedding below which the value is the same whatever the model computes.
        of_blocks: the same values from blocks of columns (adjacent, all of them in order), for a metric of the whole vocabulary
            that need not see it at once; None: it must. It follows no gradient. Another `function` needs another one, or None.
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
    least: float = -math.inf
    most: float = math.inf
    of_blocks: Callable[[Iterable[Float[Tensor, "... N W"]], Labels], Float[Tensor, "... N"]] | None = None

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


def pick(values: Float[Tensor, "... N W"], columns: Int[Tensor, "N A"]) -> Float[Tensor, "... N A"]:
    """The values in the columns of each reading's answers."""
    return values.gather(-1, columns.expand(*values.shape[:-1], -1))


def masked_mean(values: Float[Tensor, "... N A"], mask: Bool[Tensor, "N A"]) -> Float[Tensor, "... N"]:
    """Mean over the answers that there are."""
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def masked_sum(values: Float[Tensor, "... N A"], mask: Bool[Tensor, "N A"]) -> Float[Tensor, "... N"]:
    """Sum over the answers that there are."""
    return torch.where(mask, values, 0.0).sum(-1)


def model_output(logits: Float[Tensor, "... N W"], labels: Labels) -> Float[Tensor, "... N"]:
    """The number that a model puts out: the logit in the column that `answers` names (their mean, if it names several)."""
    return masked_mean(pick(logits, labels.answers), labels.answers_mask)
