"""Programs that count: how often a token occurs, which kind of token is in the majority, and whether brackets balance.

Shape letters: n prompts, B prompts, T positions.
"""

from itertools import product

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuitdisc.known.causal import Variable
from circuitdisc.known.siit.program import BOS, BOTH_WAYS, SiitProgram, small, with_bos


def same(value: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The value itself: a node that only changes how a number is written."""
    return value


def histogram() -> SiitProgram:
    """How often the token at each position of BOS x1 ... x6 occurs."""
    length, n_tokens = 7, 5

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        shares = rng.dirichlet(np.full(n_tokens - 1, 0.7), size=n).cumsum(1)  # uneven, else high counts would be rare
        words = 1 + (rng.random((n, length - 1))[:, :, None] > shares[:, None, :-1]).sum(-1)
        return with_bos(words)

    def count(q: Int[Tensor, "B T"], k: Int[Tensor, "B T"], v: Tensor) -> Int[Tensor, "B T"]:
        return ((q[:, :, None] == k[:, None, :]) & (k != BOS)[:, None, :]).sum(-1)

    return SiitProgram(
        name="histogram",
        summary="how often each token occurs",
        variables=(
            Variable("share", {"q": "tokens", "k": "tokens", "v": "positions"}, count),
            Variable("count", {"value": "share"}, same),
        ),
        nodes={"share": "a0.h3", "count": "m1"},
        positions=tuple(range(1, length)),
        config=small(n_tokens, length, d_model=32, d_head=8, d_mlp=64, d_vocab_out=length, **BOTH_WAYS),
        draw=draw,
        sizes={"tokens": n_tokens, "positions": length, "share": length, "count": length},
        scalars=frozenset({"share"}),
    )


def majority() -> SiitProgram:
    """Whether at least four of x1 ... x7 are odd tokens."""
    length, n_tokens = 8, 7

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        odd = rng.random((n, length - 1)) < rng.uniform(0.2, 0.8, size=(n, 1))
        words = 2 * rng.integers(1, 1 + n_tokens // 2, size=(n, length - 1)) - odd
        return with_bos(words)

    def odd(token: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return token % 2

    def total(v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return v.cumsum(1)

    def most(count: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return (count >= length // 2).long()

    return SiitProgram(
        name="majority",
        summary="whether most tokens are odd",
        variables=(
            Variable("odd", {"token": "tokens"}, odd),
            Variable("total", {"v": "odd"}, total),
            Variable("majority", {"count": "total"}, most),
        ),
        nodes={"odd": "m0", "total": "a1.h2", "majority": "m1"},
        positions=(length - 1,),
        config=small(n_tokens, length, d_model=16, d_head=4, d_mlp=48, d_vocab_out=2),
        draw=draw,
        sizes={"tokens": n_tokens, "positions": length, "odd": 2, "total": length, "majority": 2},
    )


def balance() -> SiitProgram:
    """Whether the ten brackets after BOS balance: token 1 opens, token 2 closes."""
    n_brackets = 10
    length, opens = 1 + n_brackets, 1
    every = np.array([(BOS, *brackets) for brackets in product((1, 2), repeat=n_brackets)])
    depths = np.cumsum(np.where(every == BOS, 0, 3 - 2 * every), axis=1)
    below, end = (depths < 0).any(1), np.sign(depths[:, -1])
    # half of the prompts balance, or all but: they end where they began, or never close too many
    kinds = [(~below & (end == 0), 0.4), (below & (end == 0), 0.2), (~below & (end > 0), 0.2), (below & (end > 0), 0.1)]
    kinds.append((below & (end < 0), 0.1))
    weights = sum(share * kind / kind.sum() for kind, share in kinds)

    def draw(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n T"]:
        return every[rng.choice(len(every), size=n, p=weights)]

    def depth(v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return n_brackets + torch.where(v == BOS, 0, torch.where(v == opens, 1, -1)).cumsum(1)  # counted from n_brackets

    def negative(depth: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return (depth < n_brackets).long()

    def anywhere(v: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return (v.cumsum(1) > 0).long()

    def balanced(below: Int[Tensor, "B T"], depth: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return ((below == 0) & (depth == n_brackets)).long()

    return SiitProgram(
        name="balance",
        summary="whether brackets balance",
        variables=(
            Variable("depth", {"v": "tokens"}, depth),
            Variable("negative", {"depth": "depth"}, negative),
            Variable("below", {"v": "negative"}, anywhere),
            Variable("balanced", {"below": "below", "depth": "depth"}, balanced),
        ),
        nodes={"depth": "a0.h0", "negative": "m0", "below": "a1.h2", "balanced": "m1"},
        positions=(length - 1,),
        config=small(3, length, d_model=32, d_head=8, d_mlp=64, d_vocab_out=2, normalization_type="LN"),
        draw=draw,
        sizes={"tokens": 3, "positions": length, "depth": 2 * n_brackets + 1, "negative": 2, "below": 2, "balanced": 2},
        scalars=frozenset({"depth", "below"}),
    )
