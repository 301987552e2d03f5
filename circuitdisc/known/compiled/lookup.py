"""Programs that look something up: induction and the two-hop lookup."""

from collections.abc import Sequence

import numpy as np
import torch

from circuitdisc.known.compiled.plan import Head, ProgramPlan
from circuitdisc.known.compiled.program import BOS, GAIN, Program, eye, nothing, require
from circuitdisc.tasks.base import Example


def previous_token(n_ctx: int, n_tokens: int) -> Head:
    """Position p attends to p - 1 and writes the token there into `previous`; position 0 attends to itself."""
    back = eye(n_ctx).roll(-1, dims=1)  # row p has its 1 in column p - 1
    back[0] = 0.0
    return Head({"position": back}, {"position": eye(n_ctx)}, {"token": eye(n_tokens)}, "previous")


def induction(length: int = 6, n_tokens: int = 16) -> Program:
    """After BOS ... A B ... A comes B: a previous-token head and an induction head.

    The second half says the first again, turned round so that it ends with A. In the corrupted prompt A and another token of
    the first half change places.

    Source: Elhage et al. 2021; Olsson et al. 2022.
    """
    require(length >= 5, f"length={length} is too short for compiled program 'induction': give at least 5")
    require(n_tokens > length, f"n_tokens={n_tokens} is too few for length={length}: give at least {length + 1}")
    n_ctx = 1 + 2 * length

    def answer(prompt: Sequence[int], position: int) -> int:
        return prompt[prompt.index(prompt[position], 0, position) + 1]

    def draw(rng: np.random.Generator) -> Example:
        half = [int(token) for token in 1 + rng.choice(n_tokens - 1, size=length, replace=False)]
        at = int(rng.integers(length - 2))
        other = int(rng.choice([i for i in range(length - 1) if abs(i - at) > 1]))
        again = half[at + 1 :] + half[: at + 1]
        swapped = list(half)
        swapped[at], swapped[other] = half[other], half[at]
        roles = {"a1": 1 + at, "b1": 2 + at, "c1": 2 + other, "a2": n_ctx - 1}
        clean, corrupted = (BOS, *half, *again), (BOS, *swapped, *again)
        return Example(clean, corrupted, (n_ctx - 1,), ((half[at + 1],),), ((half[other + 1],),), roles=roles)

    tokens = eye(n_tokens)
    plan = ProgramPlan(
        causal=True,
        tokens={"token": tokens},
        positions={"position": eye(n_ctx)},
        heads={
            0: [previous_token(n_ctx, n_tokens)],
            1: [Head({"token": tokens}, {"previous": tokens}, {"token": tokens}, "next")],
        },
        output="next",
        unembed=GAIN * tokens,
    )
    return Program("after ... A B ... A comes B", plan, answer, GAIN * tokens, draw)


def two_hop(chains: int = 2, n_tokens: int = 14) -> Program:
    """From pairs a b and b c and the question a comes c: a previous-token head and two lookups, one after the other.

    A prompt is BOS, the pairs in random order, and the first token of a chain. A lookup finds the token after the one that is
    asked for, among the second tokens of pairs alone (a bias on the key tells them by their position). In the corrupted
    prompt all is drawn anew, so that the answer differs.
    """
    least = 3 * chains + 1
    require(chains >= 2, f"chains={chains} leaves no other answer: give at least 2")
    require(n_tokens >= least, f"n_tokens={n_tokens} is too few for chains={chains}: give at least {least}")
    n_pairs = 2 * chains
    n_ctx = 2 + 2 * n_pairs

    def answer(prompt: Sequence[int], position: int) -> int:
        pairs = {prompt[i]: prompt[i + 1] for i in range(1, position - 1, 2)}
        return pairs[pairs[prompt[position]]]

    def prompt(rng: np.random.Generator) -> tuple[int, ...]:
        words = [int(token) for token in 1 + rng.choice(n_tokens - 1, size=3 * chains, replace=False)]
        pairs = [(words[3 * chain + hop], words[3 * chain + hop + 1]) for chain in range(chains) for hop in (0, 1)]
        shuffled = [pairs[index] for index in rng.permutation(n_pairs)]
        return (BOS, *(token for pair in shuffled for token in pair), words[0])

    def draw(rng: np.random.Generator) -> Example:
        last = n_ctx - 1
        while True:
            clean, corrupted = prompt(rng), prompt(rng)
            right, wrong = answer(clean, last), answer(corrupted, last)
            if right != wrong:
                return Example(clean, corrupted, (last,), ((right,),), ((wrong,),))

    tokens = eye(n_tokens)
    padded = torch.cat([tokens, torch.zeros(n_tokens, 1, dtype=torch.float64)], dim=1)
    not_second = torch.zeros(n_ctx, n_tokens + 1, dtype=torch.float64)
    not_second[[p for p in range(n_ctx) if p == 0 or p % 2 or p == n_ctx - 1], -1] = -1.0
    always = nothing(n_tokens + 1)
    always[-1] = 1.0  # the query's side of the bias on the key

    def lookup(asks: str, writes: str) -> Head:
        return Head({asks: padded}, {"previous": padded, "position": not_second}, {"token": tokens}, writes, always)

    plan = ProgramPlan(
        causal=True,
        tokens={"token": tokens},
        positions={"position": eye(n_ctx)},
        heads={0: [previous_token(n_ctx, n_tokens)], 1: [lookup("token", "middle")], 2: [lookup("middle", "end")]},
        output="end",
        unembed=GAIN * tokens,
    )
    return Program("from a b and b c, a leads to c", plan, answer, GAIN * tokens, draw)
