"""Random examples for tests: unequal lengths, several answer positions, groups, corrupted partners."""

from dataclasses import replace
from typing import Any

import numpy as np

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.graph import ComputationGraph
from circuitdisc.models import Model
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.desiderata import Desideratum, of_task


def random_examples(model: Model, n: int, seed: int = 0, first_change: int = 1) -> list[Example]:
    """Examples whose prompts differ from `first_change` on, in two groups."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(n):
        length = int(generator.integers(5, 9))
        clean = generator.integers(0, model.d_vocab, length)
        corrupted = clean.copy()
        corrupted[first_change:] = generator.integers(0, model.d_vocab, length - first_change)
        positions = (length - 1,) if index % 2 else (length - 2, length - 1)
        tokens = generator.permutation(model.d_vocab_out)[:3].tolist()
        found.append(
            Example(
                clean=tuple(clean.tolist()),
                corrupted=tuple(corrupted.tolist()),
                positions=positions,
                answers=((tokens[0],), (tokens[0], tokens[2]))[: len(positions)],
                wrong=((tokens[1],),) * len(positions),
                group="ab"[index % 2],
            )
        )
    return found


def examples_with_role(model: Model, n: int) -> tuple[Example, ...]:
    """Random prompts of unequal length with the role `s2` at different places."""
    return tuple(replace(one, roles={"s2": 1 + index % 3}) for index, one in enumerate(random_examples(model, n)))


def random_task(model: Model, n: int = 6, seed: int = 0) -> Task:
    examples = random_examples(model, 2 * n, seed)
    return Task("random", tuple(examples[:n]), tuple(examples[n:]))


def toy_desideratum(n: int = 40) -> tuple[Model, Desideratum]:
    """The induction toy: what follows A is another token in the corrupted prompt, and the toy should say that one."""
    model = cd.load_model("toys/induction")
    return model, of_task(cd.load_task("induction", model, n=n, n_heldout=40, length=8))


def some_circuit(graph: ComputationGraph, seed: int = 0, share: float = 0.5) -> Circuit:
    """About this share of all edges."""
    return Circuit(graph, graph.edge_mask & (np.random.default_rng(seed).random(graph.edge_mask.shape) < share))


TINY_RUN = [
    "discover", "model=tpp/lightweight", "task=tpp", "task.n=4", "task.n_heldout=4", "scoring.n_random=1", "progress=false",
    "algorithm=random",
]  # fmt: skip
"""A command that runs in a second."""


def unchecked(settings: dict[str, Any]) -> Any:
    """Settings put together at run time, whose kinds the type checker cannot tell apart."""
    return settings
