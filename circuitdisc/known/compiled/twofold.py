"""A compiled model with two circuits for one task, either of which is enough: the planted case for whatever looks for others.

Induction twice, side by side: two previous-token heads, and two induction heads that read one of them each. An MLP says what at
least one of the two says, so that the model's logits stay exactly the same without either of them (under `zero`, and under
`mean` while no token is the answer to more than a quarter of the examples; under `resample` the ablated path votes for the
corrupted prompt's answer, and both are needed).
"""

from dataclasses import dataclass

import numpy as np
import torch

from circuitdisc.checks import EXAMPLES, SEED, Whole, bounded
from circuitdisc.known.compiled.lookup import induction, previous_token
from circuitdisc.known.compiled.plan import Head, Neurons, ProgramPlan
from circuitdisc.known.compiled.program import GAIN, eye
from circuitdisc.models.load import cut_toy
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.drawn import deal, draw_distinct

PATHS = (("a0.h0", "a1.h0"), ("a0.h1", "a1.h1"))
"""The heads of the two circuits."""


@dataclass(frozen=True)
class TwofoldCase:
    """A model with two circuits, and its task."""

    model: Model
    task: Task

    def path_of(self, heads: "list[str] | tuple[str, ...]") -> int | None:
        """Which of the two paths these heads of a circuit are; None if they are neither of them alone."""
        used = {head for path in PATHS for head in path} & set(heads)
        return next((index for index, path in enumerate(PATHS) if set(path) == used), None)


@bounded(n=EXAMPLES, n_heldout=EXAMPLES, seed=SEED, distractors=Whole(0, 10_000))
def twofold(
    *,
    n: int = 64,
    n_heldout: int = 64,
    seed: int = 0,
    rotate: int | None = None,
    distractors: int = 0,
    length: int = 6,
    n_tokens: int = 16,
) -> TwofoldCase:
    """Compile the model and draw its task; the arguments are those of `build`.

    Raises:
        BadSetting: a number cannot be used.
    """
    program, tokens = induction(length, n_tokens), eye(n_tokens)
    positions = program.plan.positions["position"]
    first = [
        Head(head.query, head.key, head.value, f"previous{path}")
        for path in (0, 1)
        for head in [previous_token(len(positions), n_tokens)]
    ]
    second = [Head({"token": tokens}, {f"previous{path}": tokens}, {"token": tokens}, f"next{path}") for path in (0, 1)]
    steps = torch.cat([2 * tokens, 2 * tokens], dim=1)  # from 0 at a quarter to 1 at three quarters, for each token
    bias = torch.cat([torch.full((n_tokens,), -0.5), torch.full((n_tokens,), -1.5)]).double()
    either = Neurons({"next0": steps, "next1": steps}, bias, "next", torch.cat([tokens, -tokens]))
    plan = ProgramPlan(
        causal=True,
        tokens={"token": tokens},
        positions={"position": positions},
        heads={0: first, 1: second},
        output="next",
        unembed=GAIN * tokens,
        neurons={1: [either]},
    )
    generator = np.random.default_rng(seed)
    examples = draw_distinct(lambda: program.draw(generator), n + n_heldout)
    task = deal("compiled/twofold", examples, n, n_heldout, settings={"seed": seed})
    return TwofoldCase(cut_toy(plan.compile(rotate, distractors, seed), name="compiled/twofold"), task)
