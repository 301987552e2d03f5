"""Programs that move tokens: reverse and sort, both bidirectional and after a BOS token."""

from collections.abc import Sequence

import numpy as np
import torch

from circuitdisc.known.compiled.plan import Head, ProgramPlan
from circuitdisc.known.compiled.program import BOS, GAIN, Program, column, eye, one_hot_of, pairs_of, require
from circuitdisc.tasks.base import Example


def reverse(length: int = 5, n_tokens: int = 10, longest: int = 7) -> Program:
    """Position p of BOS x1 ... xn holds x(n + 1 - p).

    1. A head that attends evenly writes the share of BOS, 1 / (n + 1). 2. An MLP turns it into a class.
    3. An MLP combines it with the position into the place to look at. 4. A head looks there.

    All examples have one length, so that steps 1 to 3 carry the same values on each of them.

    Args:
        length: tokens after BOS in each example.
        longest: the model works for all lengths up to it.
    """
    require(2 <= length <= longest, f"length={length} must lie between 2 and longest={longest}")
    require(n_tokens >= 3, f"n_tokens={n_tokens} leaves no other answer: give at least 3")
    n_ctx = 1 + longest
    sizes = range(2, n_ctx + 1)  # tokens of a prompt, BOS with them

    def answer(prompt: Sequence[int], position: int) -> int:
        return [BOS, *reversed(prompt[1:])][position]

    def draw(rng: np.random.Generator) -> Example:
        shown = [int(token) for token in rng.integers(1, n_tokens, size=length)]
        other = [1 + (token - 1 + int(rng.integers(1, n_tokens - 1))) % (n_tokens - 1) for token in shown]
        positions = tuple(range(1, length + 1))
        return Example(
            (BOS, *shown), (BOS, *other), positions, tuple((token,) for token in shown[::-1]), tuple((t,) for t in other[::-1])
        )

    def place(size: int, position: int) -> int | None:
        there = sizes[size] - position
        return there if 1 <= position < sizes[size] else None

    tokens = eye(n_tokens)
    plan = ProgramPlan(
        causal=False,
        tokens={"token": tokens},
        positions={"position": eye(n_ctx)},
        heads={
            0: [Head({}, {}, {"token": column(n_tokens, BOS)}, "share_of_bos")],
            2: [Head({"place": eye(n_ctx)}, {"position": eye(n_ctx)}, {"token": tokens}, "reversed")],
        },
        neurons={
            0: [one_hot_of("share_of_bos", [1 / size for size in sizes], "size")],
            1: [pairs_of("size", len(sizes), "position", n_ctx, "place", n_ctx, place)],
        },
        output="reversed",
        unembed=GAIN * tokens,
    )
    return Program("the sequence backwards", plan, answer, GAIN * tokens, draw)


def sort(length: int = 5, n_tokens: int = 12) -> Program:
    """Position p of BOS x1 ... xn, all different, holds the p-th smallest.

    1. A head attends evenly to BOS and every smaller token, and writes the share of BOS, 1 / (smaller tokens + 1). BOS itself
    attends to all. 2. An MLP turns it into a class, the token's rank. 3. A head at position p looks for rank p - 1.
    """
    require(length >= 2, f"length={length} is too short for compiled program 'sort': give at least 2")
    require(n_tokens >= length + 2, f"n_tokens={n_tokens} is too few for length={length}: give at least {length + 2}")
    n_ctx = 1 + length

    def answer(prompt: Sequence[int], position: int) -> int:
        return sorted(prompt)[position]  # BOS is the smallest

    def draw(rng: np.random.Generator) -> Example:
        while True:
            shown, other = (
                [int(token) for token in 1 + rng.choice(n_tokens - 1, size=length, replace=False)] for _ in range(2)
            )
            right, wrong = sorted(shown), sorted(other)
            positions = tuple(p for p in range(1, n_ctx) if right[p - 1] != wrong[p - 1])
            if positions:
                answers, wrongs = (tuple((words[p - 1],) for p in positions) for words in (right, wrong))
                return Example((BOS, *shown), (BOS, *other), positions, answers, wrongs)

    tokens = eye(n_tokens)
    smaller = torch.ones(n_tokens, n_tokens, dtype=torch.float64).tril(-1)  # query token -> keys below it
    smaller[:, BOS] = 1.0
    smaller[BOS] = 1.0
    at_rank = torch.zeros(n_ctx, n_ctx, dtype=torch.float64)
    at_rank[torch.arange(1, n_ctx), torch.arange(n_ctx - 1)] = 1.0
    plan = ProgramPlan(
        causal=False,
        tokens={"token": tokens},
        positions={"position": eye(n_ctx)},
        heads={
            0: [Head({"token": smaller}, {"token": tokens}, {"token": column(n_tokens, BOS)}, "share_of_bos")],
            1: [Head({"position": at_rank}, {"rank": eye(n_ctx)}, {"token": tokens}, "sorted")],
        },
        neurons={0: [one_hot_of("share_of_bos", [1 / (1 + rank) for rank in range(n_ctx)], "rank")]},
        output="sorted",
        unembed=GAIN * tokens,
    )
    return Program("the sequence in order", plan, answer, GAIN * tokens, draw)
