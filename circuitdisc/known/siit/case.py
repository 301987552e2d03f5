"""Trained cases by name: a model that was trained to have a known circuit, a task for it, and the true edges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from circuitdisc.checks import EXAMPLES, SEED, bounded
from circuitdisc.errors import UnknownName
from circuitdisc.files import read_json
from circuitdisc.known.causal import CausalModel
from circuitdisc.known.siit.combining import modular_sum, repeats
from circuitdisc.known.siit.counting import balance, histogram, majority
from circuitdisc.known.siit.lookup import copy_or_reverse, induction, pointers
from circuitdisc.known.siit.program import SiitProgram
from circuitdisc.known.siit.truth import SiitTruth, truth_of
from circuitdisc.models.load import DTYPES, read_model
from circuitdisc.models.model import Model
from circuitdisc.shipped import FOLDER
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.drawn import deal, draw_distinct, note_fewer

CASES: dict[str, Callable[[], SiitProgram]] = {
    "induction": induction,
    "pointers": pointers,
    "copy_or_reverse": copy_or_reverse,
    "histogram": histogram,
    "majority": majority,
    "balance": balance,
    "repeats": repeats,
    "modular_sum": modular_sum,
}
RESULTS = FOLDER / "siit" / "RESULTS.json"


@dataclass(frozen=True)
class SiitCase:
    """A model whose circuit is known.

    Args:
        model: the trained model.
        task: what it does, as pairs of prompts.
        truth: the true edges, under each ablation that they hold for.
        program: the causal model, the nodes that its variables live in, and the answers in plain Python.
    """

    model: Model
    task: Task
    truth: SiitTruth
    program: SiitProgram

    @property
    def causal(self) -> CausalModel:
        """The program's causal model."""
        return self.program.causal

    @property
    def alignment(self) -> Mapping[str, str]:
        """Variable -> the node that it lives in."""
        return self.program.nodes


def program_of(name: str) -> SiitProgram:
    """The program of a case.

    Raises:
        UnknownName: there is no such case.
    """
    if name not in CASES:
        raise UnknownName("trained case", name, CASES)
    return CASES[name]()


@bounded(n=EXAMPLES, n_heldout=EXAMPLES, seed=SEED)
def load(
    name: str, *, n: int = 32, n_heldout: int = 64, seed: int = 0, dtype: str = "float32", split_embeddings: bool = False
) -> SiitCase:
    """Load a trained case, draw its task, and name its true edges.

    Args:
        name: a name in `CASES`.
        n, n_heldout: examples to search and to judge on.
        seed: of the examples.
        dtype: of the model.
        split_embeddings: token and position embedding as two senders.

    Raises:
        UnknownName: there is no such case or dtype.
        BadSetting: a number cannot be used.
        BadTask: the program has not two different prompts.
    """
    program = program_of(name)
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    rng = np.random.default_rng(seed)
    examples = draw_distinct(lambda: program.pair(rng), n + n_heldout)
    task = deal(f"siit/{name}", examples, n, n_heldout, settings={"seed": seed})
    note_fewer(task, n, n_heldout)
    model = read_model(f"siit/{name}", dtype=dtype, split_embeddings=split_embeddings)
    return SiitCase(model, task, truth_of(program, model.graph, ablations_of(name)), program)


def ablations_of(name: str) -> tuple[str, ...]:
    """The ablations that a shipped case's truth was measured to hold for."""
    return tuple(read_json(RESULTS)["cases"][name]["ablations"])
