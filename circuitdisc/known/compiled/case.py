"""Compiled cases by name: a model whose circuit is known by construction, a task for it, and the true edges."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from circuitdisc.checks import EXAMPLES, SEED, Whole, bounded, check_whole
from circuitdisc.errors import UnknownName
from circuitdisc.known.compiled.counting import balance, histogram, proportion
from circuitdisc.known.compiled.lookup import induction, two_hop
from circuitdisc.known.compiled.order import reverse, sort
from circuitdisc.known.compiled.program import Program
from circuitdisc.known.compiled.truth import CompiledTruth, true_edges
from circuitdisc.models.load import DTYPES, cut_toy
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.drawn import deal, draw_distinct, note_fewer

PROGRAMS: dict[str, Callable[..., Program]] = {
    "induction": induction,
    "reverse": reverse,
    "proportion": proportion,
    "histogram": histogram,
    "two_hop": two_hop,
    "sort": sort,
    "balance": balance,
}


@dataclass(frozen=True)
class CompiledCase:
    """A model whose circuit is known.

    Args:
        model: the compiled program.
        task: what the program does, as pairs of prompts.
        truth: the true edges, under each ablation, on the task's train split.
        program: the program itself, with its run in plain Python.
    """

    model: Model
    task: Task
    truth: CompiledTruth
    program: Program


@bounded(n=EXAMPLES, n_heldout=EXAMPLES, seed=SEED, distractors=Whole(0, 10_000))
def build(
    name: str,
    *,
    n: int = 32,
    n_heldout: int = 32,
    seed: int = 0,
    rotate: int | None = None,
    distractors: int = 0,
    split_embeddings: bool = False,
    dtype: str = "float64",
    **sizes: int,
) -> CompiledCase:
    """Compile a program, draw its task, and find its true edges.

    Args:
        name: a name in `PROGRAMS`.
        n, n_heldout: examples to search and to judge on.
        seed: of the examples and of the distractors' weights.
        rotate: seed of a random rotation of the residual stream, so that its axes tell nothing; None leaves it.
        distractors: heads added to every layer that read everything and write what nothing else reads.
        split_embeddings: token and position embedding as two senders.
        dtype: of the model; the true edges are found in float64.
        **sizes: the program's own settings: `length`, `n_tokens`, ...

    Raises:
        UnknownName: there is no such program, setting or dtype.
        BadSetting: a number cannot be used.
        BadTask: the program has not two different prompts.
    """
    if name not in PROGRAMS:
        raise UnknownName("compiled program", name, PROGRAMS)
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    program = PROGRAMS[name](**_check_sizes(name, sizes))
    rng = np.random.default_rng(seed)
    examples = draw_distinct(lambda: program.draw(rng), n + n_heldout)
    task = deal(f"compiled/{name}", examples, n, n_heldout, settings={"seed": seed, **sizes})
    note_fewer(task, n, n_heldout)
    toy = program.plan.compile(rotate, distractors, seed)
    graph = cut_toy(toy, split_embeddings=split_embeddings).graph
    truth = true_edges(toy, graph, task.train)
    model = cut_toy(toy.to(DTYPES[dtype]), name=f"compiled/{name}", split_embeddings=split_embeddings)
    return CompiledCase(model, task, truth, program)


def _check_sizes(name: str, sizes: dict[str, int]) -> dict[str, int]:
    """The program's own settings, if it can be built with them."""
    known = inspect.signature(PROGRAMS[name]).parameters
    for setting in sizes:
        if setting not in known:
            raise UnknownName(f"setting of compiled program '{name}'", setting, known)
        check_whole(setting, sizes[setting], low=2)
    return sizes
