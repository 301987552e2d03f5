"""Programs that look something up: induction, a chain of pointers, and copy or reverse.

Shape letters: n prompts, B prompts, T positions.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuitdisc.known.causal import Variable
from circuitdisc.known.siit.program import BOTH_WAYS, SiitProgram, first_match, small, with_bos


def previous_token(q: Tensor, k: Tensor, v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The value one position before; the first position has its own."""
    return torch.cat([v[:, :1], v[:, :-1]], dim=1)


def causal_match(q: Int[Tensor, "B T"], k: Int[Tensor, "B T"], v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """What a head that looks back finds."""
    return first_match(q, k, v, causal=True)


def any_match(q: Int[Tensor, "B T"], k: Int[Tensor, "B T"], v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """What a head that looks both ways finds."""
    return first_match(q, k, v, causal=False)


def induction() -> SiitProgram:
    """After BOS x1 ... x6 and one of x1 ... x5 comes the token that followed it; x1 ... x6 differ."""
    length, n_tokens = 8, 9

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        words = 1 + rng.random((n, n_tokens - 1)).argsort(1)[:, : length - 2]
        asked = words[np.arange(n), rng.integers(length - 3, size=n)]
        return with_bos(np.concatenate([words, asked[:, None]], axis=1))

    return SiitProgram(
        name="induction",
        summary="after ... A B ... A comes B",
        variables=(
            Variable("previous", {"q": "positions", "k": "positions", "v": "tokens"}, previous_token),
            Variable("next", {"q": "tokens", "k": "previous", "v": "tokens"}, causal_match),
        ),
        nodes={"previous": "a0.h2", "next": "a1.h1"},
        positions=(length - 1,),
        config=small(n_tokens, length, d_model=24, d_head=8, d_mlp=48, normalization_type="LN"),
        draw=draw,
        sizes={"tokens": n_tokens, "positions": length, "previous": n_tokens, "next": n_tokens},
    )


def pointers() -> SiitProgram:
    """In BOS x1 ... x6 q every token names a position: the answer is the token at the token at q."""
    length, n_tokens = 8, 7

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        return with_bos(rng.integers(1, n_tokens, size=(n, length - 1)))

    def hop(name: str, query: str) -> Variable:
        return Variable(name, {"q": query, "k": "positions", "v": "tokens"}, causal_match)

    return SiitProgram(
        name="pointers",
        summary="two steps along pointers",
        variables=(hop("first", "tokens"), hop("second", "first")),
        nodes={"first": "a0.h0", "second": "a1.h3"},
        positions=(length - 1,),
        config=small(n_tokens, length, d_model=24, d_head=8, d_mlp=48, normalization_type="LN"),
        draw=draw,
        sizes={"tokens": n_tokens, "positions": length, "first": n_tokens, "second": n_tokens},
    )


def copy_or_reverse() -> SiitProgram:
    """After flag 0 each position holds its own token, after flag 1 the sequence stands backwards."""
    length, n_tokens, n_flags = 7, 8, 2

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        words = rng.integers(n_flags, n_tokens, size=(n, length - 1))
        return np.concatenate([rng.integers(n_flags, size=(n, 1)), words], axis=1)

    def flag(q: Tensor, k: Tensor, v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return v[:, :1].expand_as(v)

    def place(mode: Int[Tensor, "B T"], position: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return torch.where((mode == 1) & (position > 0), length - position, position)

    return SiitProgram(
        name="copy_or_reverse",
        summary="the sequence, or backwards if the flag says so",
        variables=(
            Variable("mode", {"q": "positions", "k": "positions", "v": "tokens"}, flag),
            Variable("place", {"mode": "mode", "position": "positions"}, place),
            Variable("moved", {"q": "place", "k": "positions", "v": "tokens"}, any_match),
        ),
        nodes={"mode": "a0.h1", "place": "m0", "moved": "a1.h2"},
        positions=tuple(range(1, length)),
        config=small(n_tokens, length, d_model=24, d_head=8, d_mlp=64, **BOTH_WAYS),
        draw=draw,
        sizes={"tokens": n_tokens, "positions": length, "mode": n_flags, "place": length, "moved": n_tokens},
    )
