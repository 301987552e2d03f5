"""Programs that fetch tokens and combine them in an MLP: same as the one before, and a modular sum.

Shape letters: n prompts, B prompts, T positions.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuitdisc.known.causal import UNDEFINED, Variable
from circuitdisc.known.siit.lookup import previous_token
from circuitdisc.known.siit.program import BOS, SiitProgram, small, with_bos


def repeats() -> SiitProgram:
    """Whether each token of BOS x1 ... x7, from x2 on, is the same as the one before it."""
    length, n_tokens = 8, 6

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        words = rng.integers(1, n_tokens, size=(n, length - 1))
        again = rng.random((n, length - 1)) < 0.4
        for place in range(1, length - 1):
            words[:, place] = np.where(again[:, place], words[:, place - 1], words[:, place])
        return with_bos(words)

    def equal(token: Int[Tensor, "B T"], previous: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return (token == previous).long()

    return SiitProgram(
        name="repeats",
        summary="whether a token is the same as the one before",
        variables=(
            Variable("previous", {"q": "positions", "k": "positions", "v": "tokens"}, previous_token),
            Variable("same", {"token": "tokens", "previous": "previous"}, equal),
        ),
        nodes={"previous": "a0.h1", "same": "m1"},
        positions=tuple(range(2, length)),
        config=small(n_tokens, length, d_model=24, d_head=8, d_mlp=64, d_vocab_out=2),
        draw=draw,
        sizes={"tokens": n_tokens, "positions": length, "previous": n_tokens, "same": 2},
    )


def modular_sum() -> SiitProgram:
    """The sum of the first, the second and the last token of BOS x1 ... x7, modulo 3 (token t stands for t - 1)."""
    length, modulus = 8, 3

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        return with_bos(rng.integers(1, 1 + modulus, size=(n, length - 1)))

    def digit_at(place: int) -> Variable:
        def fetch(q: Tensor, k: Tensor, v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
            digit = (v[:, place : place + 1] - 1).repeat(1, v.shape[1])
            digit[:, :place] = UNDEFINED  # not to be seen from there
            return digit

        reads = {"q": "positions", "k": "positions", "v": "tokens"}
        return Variable({1: "first", 2: "second"}[place], reads, fetch)

    def add(first: Int[Tensor, "B T"], second: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return torch.where((first == UNDEFINED) | (second == UNDEFINED), UNDEFINED, (first + second) % modulus)

    def add_last(partial: Int[Tensor, "B T"], token: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return torch.where((partial == UNDEFINED) | (token == BOS), UNDEFINED, (partial + token - 1) % modulus)

    return SiitProgram(
        name="modular_sum",
        summary="the sum of three tokens modulo 3",
        variables=(
            digit_at(1),
            digit_at(2),
            Variable("partial", {"first": "first", "second": "second"}, add),
            Variable("total", {"partial": "partial", "token": "tokens"}, add_last),
        ),
        nodes={"first": "a0.h1", "second": "a0.h3", "partial": "m0", "total": "m1"},
        positions=(length - 1,),
        config=small(1 + modulus, length, d_model=32, d_head=8, d_mlp=96, d_vocab_out=modulus, normalization_type="LN"),
        draw=draw,
        sizes={"tokens": 1 + modulus, "positions": length} | dict.fromkeys(("first", "second", "partial", "total"), modulus),
    )
