"""Train and held-out examples that share no clean prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Example
from circuitdisc.tasks.notes import note


class Split(NamedTuple):
    """Two sets of examples that share no clean prompt, and how many repeated ones were dropped."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    n_duplicates: int


def drop_duplicates(examples: Sequence[Example]) -> list[Example]:
    """The first example of each clean prompt; the others are counted in a note."""
    first: dict[tuple[int, ...], Example] = {}
    for example in examples:
        first.setdefault(example.clean, example)
    if len(first) < len(examples):
        said: dict[tuple[int, ...], set[str]] = {}
        for example in examples:
            said.setdefault(example.clean, set()).add(example.text)
        merged = next((sorted(texts) for texts in said.values() if len(texts) > 1), None)
        alike = "" if merged is None else f"; the tokenizer reads {merged[0][-40:]!r} and {merged[1][-40:]!r} alike"
        note(f"{len(examples) - len(first)} of {len(examples)} examples repeat a clean prompt and are dropped{alike}")
    return list(first.values())


def split_examples(
    examples: Sequence[Example], n_train: int | None, seed: int | None, *, n_heldout: int | None = None
) -> Split:
    """Deal distinct examples into two sets.

    The held-out ones are dealt first: with the same seed they stay the same whatever `n_train` is.

    Args:
        examples: the examples; of those with one clean prompt the first counts.
        n_train: train examples; None: all that are not held out.
        seed: seed of the shuffle; None keeps the order.
        n_heldout: held-out examples; None: all that are not for training, or half if `n_train` is None too.

    Raises:
        BadTask: there are too few distinct examples, or one set would be empty.
    """
    distinct = drop_duplicates(examples)
    total = len(distinct)
    if seed is not None:
        distinct = [distinct[index] for index in np.random.default_rng(seed).permutation(total)]
    if n_heldout is None:
        n_heldout = total - n_train if n_train is not None else total - total // 2
    if n_train is None:
        n_train = total - n_heldout
    if min(n_train, n_heldout) < 1 or n_train + n_heldout > total:
        raise BadTask(
            f"{total} distinct examples cannot be split into {max(n_train, 1)} for training (n) and "
            f"{max(n_heldout, 1)} held out (n_heldout): give more examples or ask for fewer"
        )
    return Split(tuple(distinct[n_heldout : n_heldout + n_train]), tuple(distinct[:n_heldout]), len(examples) - total)
