"""A program: a plan for weights, the same thing in plain Python, and a way to draw examples; and matrices that plans use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.errors import BadSetting
from circuitdisc.known.compiled.plan import Neurons, ProgramPlan
from circuitdisc.tasks.base import Example

BOS = 0  # the first token of every prompt, in programs that need one
GAIN = 10.0  # logit of the right answer, where answers are tokens or classes


@dataclass(frozen=True)
class Program:
    """One program.

    Args:
        summary: what it computes, in a line.
        plan: its parts, ready to be compiled.
        answer: (prompt, position) -> the right answer there, computed without a model.
        logits: logits of the whole output vocabulary that the compiled model gives for each answer. [answers, Vout]
        draw: draws one example.
    """

    summary: str
    plan: ProgramPlan
    answer: Callable[[Sequence[int], int], int]
    logits: Float[Tensor, "A Vout"]
    draw: Callable[[np.random.Generator], Example]


def require(fits: bool, sentence: str) -> None:
    """Refuse sizes that a program cannot be built with.

    Raises:
        BadSetting: `fits` is False; the sentence says what is needed.
    """
    if not fits:
        raise BadSetting(sentence)


def eye(n: int) -> Float[Tensor, "n n"]:
    return torch.eye(n, dtype=torch.float64)


def nothing(n: int) -> Float[Tensor, "n"]:
    return torch.zeros(n, dtype=torch.float64)


def column(n: int, index: int) -> Float[Tensor, "n 1"]:
    """Reads one of n directions."""
    return eye(n)[:, index : index + 1]


def one_hot_of(read: str, values: Sequence[float], writes: str) -> Neurons:
    """Neurons that turn a number into classes: class i is 1 if it is nearest to values[i], exactly, and else 0.

    A step at the middle between neighbours is relu(s + 1/2) - relu(s - 1/2) with s steep enough that no value lies on the
    slope; a class is the difference of the steps on its two sides. Below the lowest value by half a gap all classes are 0.
    """
    x, order = torch.tensor(values, dtype=torch.float64).sort()
    half = (x[1:] - x[:-1]) / 2
    edges = torch.cat([x[:1] - half[:1], x[:-1] + half])
    steep = 1 / half.min()
    n = len(x)
    bias = torch.cat([-steep * edges + 0.5, -steep * edges - 0.5])
    steps = torch.cat([eye(n), -eye(n)])  # neurons -> step at the lower edge of each class
    out = steps.clone()
    out[:, :-1] -= steps[:, 1:]
    return Neurons({read: steep.expand(1, 2 * n).clone()}, bias, writes, out[:, order.argsort()])


def pairs_of(
    first: str, n_first: int, second: str, n_second: int, writes: str, n_out: int, result: Callable[[int, int], int | None]
) -> Neurons:
    """Neurons that combine two classes: one for each pair (i, j) with a result, which they write."""
    pairs = [(i, j, to) for i in range(n_first) for j in range(n_second) if (to := result(i, j)) is not None]
    left, right, out = (torch.zeros(n, len(pairs), dtype=torch.float64) for n in (n_first, n_second, n_out))
    for neuron, (i, j, to) in enumerate(pairs):
        left[i, neuron] = right[j, neuron] = out[to, neuron] = 1.0
    return Neurons({first: left, second: right}, -torch.ones(len(pairs), dtype=torch.float64), writes, out.T.clone())
