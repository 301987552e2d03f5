"""A program of a trained case: a causal model, the node that each variable lives in, and the shape of its transformer.

Shape letters: B prompts, T positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdisc.graph import ComputationGraph
from circuitdisc.known.causal import CausalModel, Variable
from circuitdisc.models.toy import ToyConfig
from circuitdisc.tasks.base import Example

BOS = 0  # the first token of prompts that have one
BOTH_WAYS = {"normalization_type": "LN", "attention_dir": "bidirectional"}  # of cases whose heads look both ways
HELD_OUT = 5  # one prompt in so many is never trained on


@dataclass(frozen=True)
class SiitProgram:
    """One program.

    Args:
        name: of the case.
        summary: what it computes, in a line.
        variables: of its causal model; the last one is the answer.
        nodes: variable -> the head or MLP that it lives in.
        positions: where answers are read.
        config: shape of the transformer.
        draw: (generator, n) -> n prompts. [n, T]
        sizes: variable, `tokens` or `positions` -> how many values it takes: what a one-hot code of it needs.
        scalars: variables that a head writes as a number, a share of its attention, and that training does not read out.
    """

    name: str
    summary: str
    variables: tuple[Variable, ...]
    nodes: Mapping[str, str]
    positions: tuple[int, ...]
    config: ToyConfig
    draw: Callable[[np.random.Generator, int], Int[np.ndarray, "n T"]]
    sizes: Mapping[str, int]
    scalars: frozenset[str] = frozenset()

    @property
    def causal(self) -> CausalModel:
        """The variables as a causal model."""
        return CausalModel(self.variables, self.name)

    @property
    def graph(self) -> ComputationGraph:
        """Graph of the transformer, with one sender for the embedding."""
        return ComputationGraph(self.config.n_layers, self.config.n_heads, d_model=self.config.d_model)

    @property
    def one_hot_width(self) -> int:
        """Directions that the residual stream would need for a one-hot code of tokens, positions and all variables."""
        return sum(self.sizes.values())

    @property
    def superposed(self) -> bool:
        """Whether the residual stream is narrower than that."""
        return self.config.d_model < self.one_hot_width

    def answer(self, prompt: Sequence[int], position: int) -> int:
        """The right answer at a position, computed without a model."""
        return int(self.causal.run(torch.tensor([list(prompt)]))["logits"][0, position])

    def pair(self, rng: np.random.Generator) -> Example:
        """An example: two prompts drawn apart, read where their answers differ."""
        while True:
            examples = self.examples(torch.from_numpy(self.draw(rng, 2)))
            if examples:
                return examples[0]

    def examples(self, prompts: Int[Tensor, "n T"]) -> list[Example]:
        """Examples of every two prompts in turn, without those whose answers are the same everywhere."""
        answers = self.causal.run(prompts)["logits"].tolist()
        rows = [tuple(row) for row in prompts.tolist()]
        examples = []
        for index in range(0, len(rows) - 1, 2):
            right, wrong = answers[index], answers[index + 1]
            positions = tuple(p for p in self.positions if right[p] != wrong[p])
            if positions:
                answers_of, wrong_of = (tuple((row[p],) for p in positions) for row in (right, wrong))
                examples.append(Example(rows[index], rows[index + 1], positions, answers_of, wrong_of))
        return examples


def small(d_vocab: int, n_ctx: int, **more: Any) -> ToyConfig:
    """The shape that all trained cases share, two layers of four heads, and what is a case's own."""
    return ToyConfig(n_layers=2, n_heads=4, d_vocab=d_vocab, n_ctx=n_ctx, act_fn="gelu_new", **more)


def with_bos(words: Int[np.ndarray, "n T1"]) -> Int[np.ndarray, "n T"]:
    """Prompts that begin with BOS."""
    return np.concatenate([np.full((len(words), 1), BOS), words], axis=1)


def held_out(prompts: Int[np.ndarray, "n T"]) -> Bool[np.ndarray, "n"]:
    """Which prompts no model was trained on: by a number made from all of their tokens."""
    mixed = np.zeros(len(prompts), dtype=np.int64)
    for tokens in prompts.T:
        mixed = (31 * mixed + tokens + 7) % 1009
    return mixed % HELD_OUT == 0


def draw_prompts(program: SiitProgram, rng: np.random.Generator, n: int, *, trained: bool) -> Int[Tensor, "n T"]:
    """Prompts that the model was trained on, or prompts that it was not."""
    prompts = np.empty((0, program.config.n_ctx), dtype=np.int64)
    while len(prompts) < n:
        drawn = program.draw(rng, 2 * n if trained else HELD_OUT * n)
        prompts = np.concatenate([prompts, drawn[held_out(drawn) != trained]])
    return torch.from_numpy(prompts[:n])


def first_match(q: Int[Tensor, "B T"], k: Int[Tensor, "B T"], v: Int[Tensor, "B T"], *, causal: bool) -> Int[Tensor, "B T"]:
    """What a head that looks q up among the keys finds: the value at the one key that equals it; -1 if not exactly one does."""
    matches = q[:, :, None] == k[:, None, :]
    if causal:
        matches = matches & torch.ones(matches.shape[1:], dtype=torch.bool, device=q.device).tril()
    values = v.gather(1, matches.int().argmax(-1))
    return torch.where(matches.sum(-1) == 1, values, -1)
