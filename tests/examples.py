"""Random examples for tests: unequal lengths, several answer positions, groups, corrupted partners."""

import numpy as np

from circuitdisc.models import Model
from circuitdisc.tasks.base import Example, Task


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


def random_task(model: Model, n: int = 6, seed: int = 0) -> Task:
    examples = random_examples(model, 2 * n, seed)
    return Task("random", tuple(examples[:n]), tuple(examples[n:]))
