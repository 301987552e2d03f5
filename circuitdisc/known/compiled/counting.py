"""Programs that count: the share of a token so far, how often each token occurs, and whether brackets balance."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

from circuitdisc.known.compiled.plan import Head, Neurons, ProgramPlan
from circuitdisc.known.compiled.program import BOS, GAIN, Program, column, eye, nothing, one_hot_of, require
from circuitdisc.tasks.base import Example

MARKED = 0  # the token whose share is asked for
STEEP = 100.0  # logits are -STEEP (share - answer)^2, up to a constant


def proportion(length: int = 6, n_tokens: int = 4) -> Program:
    """The share of token 0 among all tokens so far; the answers are the fractions of denominators up to `length`.

    1. An MLP writes 1 at the marked token. 2. A head that attends evenly averages it into the share s.
    3. The logit of a fraction f is 2 s f - f^2, which is largest at f = s.
    """
    require(length >= 2, f"length={length} is too short for compiled program 'proportion': give at least 2")
    require(n_tokens >= 2, f"n_tokens={n_tokens} is too few: give at least 2")
    fractions = sorted({Fraction(k, n) for n in range(1, length + 1) for k in range(n + 1)})
    f = torch.tensor([float(fraction) for fraction in fractions], dtype=torch.float64)

    def answer(prompt: Sequence[int], position: int) -> int:
        return fractions.index(Fraction(prompt[: position + 1].count(MARKED), position + 1))

    def sequence(rng: np.random.Generator, share: float) -> tuple[int, ...]:
        return tuple(MARKED if rng.random() < share else int(token) for token in rng.integers(1, n_tokens, size=length))

    def draw(rng: np.random.Generator) -> Example:
        while True:
            share = rng.uniform(0.1, 0.9)  # else extreme shares would be rare
            clean, corrupted = sequence(rng, share), sequence(rng, 1 - share)
            right, wrong = answer(clean, length - 1), answer(corrupted, length - 1)
            if right != wrong:
                return Example(clean, corrupted, (length - 1,), ((right,),), ((wrong,),))

    plan = ProgramPlan(
        causal=True,
        tokens={"token": eye(n_tokens)},
        positions={"position": eye(length)},
        heads={1: [Head({}, {}, {"is_marked": eye(1)}, "share")]},
        neurons={0: [Neurons({"token": column(n_tokens, MARKED)}, nothing(1), "is_marked", eye(1))]},
        output="share",
        unembed=STEEP * 2 * f[None, :],
        unembed_bias=-STEEP * f**2,
    )
    logits = STEEP * (2 * f[:, None] * f[None, :] - f[None, :] ** 2)
    return Program("the share of a token so far", plan, answer, logits, draw)


def histogram(length: int = 6, n_tokens: int = 5) -> Program:
    """How often the token at each position occurs in BOS x1 ... xn; the answers are counts less 1.

    1. A head attends evenly to BOS and all tokens like its own, and writes the share of BOS, 1 / (count + 1).
    2. An MLP turns it into a class.
    """
    require(length >= 2, f"length={length} is too short for compiled program 'histogram': give at least 2")
    require(n_tokens >= 3, f"n_tokens={n_tokens} leaves only one count: give at least 3")
    n_ctx = 1 + length
    counts = range(1, n_ctx)

    def answer(prompt: Sequence[int], position: int) -> int:
        return prompt.count(prompt[position]) - 1

    def draw(rng: np.random.Generator) -> Example:
        while True:
            clean, corrupted = ((BOS, *(int(token) for token in rng.integers(1, n_tokens, size=length))) for _ in range(2))
            positions = tuple(p for p in range(1, n_ctx) if answer(clean, p) != answer(corrupted, p))
            if positions:
                right, wrong = (tuple((answer(prompt, p),) for p in positions) for prompt in (clean, corrupted))
                return Example(clean, corrupted, positions, right, wrong)

    tokens = eye(n_tokens)
    alike = tokens.clone()
    alike[:, BOS] = 1.0
    plan = ProgramPlan(
        causal=False,
        tokens={"token": tokens},
        positions={"position": eye(n_ctx)},
        heads={0: [Head({"token": alike}, {"token": tokens}, {"token": column(n_tokens, BOS)}, "share_of_bos")]},
        neurons={0: [one_hot_of("share_of_bos", [1 / (1 + count) for count in counts], "count")]},
        output="count",
        unembed=GAIN * eye(length),
    )
    return Program("how often each token occurs", plan, answer, GAIN * eye(length), draw)


def balance(length: int = 10) -> Program:
    """Whether brackets balance: token 0 opens, token 1 closes; answer 1 if no prefix closes too many and none stays open.

    1. A head that attends evenly writes the mean of +1 and -1 so far, the depth over the number of tokens. 2. An MLP writes
    whether it is negative, and whether it is positive. 3. A head that attends evenly writes the share of negative places.
    4. An MLP writes 1 if that share is 0 and the depth at this place is not positive.

    Half of the examples balance; of the others about half close too many, the rest leave one open at the end alone.
    """
    require(length >= 6 and length % 2 == 0, f"length={length} cannot be used: give an even number of at least 6")

    def depths(prompt: Sequence[int]) -> list[int]:
        return np.cumsum([1 - 2 * token for token in prompt]).tolist()

    def answer(prompt: Sequence[int], position: int) -> int:
        so_far = depths(prompt[: position + 1])
        return int(min(so_far) >= 0 and so_far[-1] == 0)

    def sequence(rng: np.random.Generator, closes_too_many: bool, ends_open: bool) -> tuple[int, ...]:
        while True:
            prompt = tuple(int(token) for token in rng.integers(2, size=length))
            if (min(depths(prompt)) < 0, depths(prompt)[-1] > 0) == (closes_too_many, ends_open):
                return prompt

    def draw(rng: np.random.Generator) -> Example:
        closes_too_many = bool(rng.integers(2))
        pair = [sequence(rng, False, False), sequence(rng, closes_too_many, not closes_too_many)]
        first = int(rng.integers(2))
        return Example(pair[first], pair[1 - first], (length - 1,), ((1 - first,),), ((first,),))

    steep = float(length)  # a mean that is not 0 is at least 1 / length
    both = torch.tensor([[-steep, -steep, steep, steep]], dtype=torch.float64)
    step = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    signs = Neurons({"mean_sign": both}, -step.new_tensor([0.0, 1.0, 0.0, 1.0]), "signs", step)  # negative, positive
    is_balanced = Neurons(
        {"share_negative": -steep * eye(1), "signs": -column(2, 1)}, torch.ones(1, dtype=torch.float64), "balanced", eye(1)
    )
    plan = ProgramPlan(
        causal=True,
        tokens={"sign": step.new_tensor([[1.0], [-1.0]])},
        positions={"position": eye(length)},
        heads={0: [Head({}, {}, {"sign": eye(1)}, "mean_sign")], 1: [Head({}, {}, {"signs": column(2, 0)}, "share_negative")]},
        neurons={0: [signs], 1: [is_balanced]},
        output="balanced",
        unembed=GAIN * step.new_tensor([[-1.0, 1.0]]),
        unembed_bias=GAIN * step.new_tensor([1.0, 0.0]),
    )
    return Program("whether brackets balance", plan, answer, GAIN * eye(2), draw)
