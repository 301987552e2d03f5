"""Induction on random tokens: after "... A B ... A" comes B.

The first half of a prompt holds different random tokens, among them the pair A B at a random place. The second half
says the first one again, turned round so that it begins with B and ends with A. Hence every token occurs twice, and
neither its place nor its count tells the answer. In the corrupted prompt A and another token of the first half change
places, so that A is followed by C there; C is the wrong answer. Only these two tokens differ, and B and C stay where they
are: what changes is which of them has A before it, the fact that a previous-token head passes on to the keys.

Roles: `a1` and `b1`, the pair in the first half; `c1`, where C stands in it; `a2`, the last token, which is also `end`. They
are places of the clean prompt: in the corrupted one, A stands before `c1`.

Source: Elhage et al. 2021 (induction heads on repeated random tokens); Olsson et al. 2022.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.checks import Whole, bounded
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.drawn import deal, draw_distinct, pick_several
from circuitdisc.tasks.encode import special_prefix
from circuitdisc.tasks.model import TaskModel

LEAST_LENGTH = 5


@bounded(length=Whole(LEAST_LENGTH, 100_000), tokens=Whole(0, 2**31 - 1, many=True))
def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    length: int = 16,
    tokens: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
) -> Task:
    """Draw induction examples, with and without a tokenizer; what every builder takes stands in `drawn_task`.

    Args:
        length: tokens in one half; a prompt has twice as many.
        tokens: ids to draw from; None: the whole vocabulary without special tokens.

    Raises:
        BadSetting: `length` is below 5, or `tokens` are not ids.
        BadTask: the prompt is too long for the model, or its vocabulary too small.
    """
    prefix = special_prefix(model.tokenizer, prepend_bos)
    if len(prefix) + 2 * length > model.n_ctx:
        raise BadTask(
            f"task 'induction' makes prompts of {len(prefix) + 2 * length} tokens, but model '{model.name}' reads at "
            f"most {model.n_ctx}: give length={(model.n_ctx - len(prefix)) // 2} or less"
        )
    pool = _token_pool(model, tokens)
    if len(pool) < length:
        raise BadTask(
            f"task 'induction' needs {length} different tokens, but model '{model.name}' offers {len(pool)}: "
            "give a smaller length"
        )
    rng = np.random.default_rng(seed)

    def draw() -> Example:
        half = pick_several(rng, pool, length)
        at = int(rng.integers(length - 2))  # A; B is not the last of its half, where it would follow itself
        other = int(rng.choice([i for i in range(length - 1) if abs(i - at) > 1]))
        return _example(prefix, half, at, other, model)

    examples = draw_distinct(draw, n + n_heldout)
    return deal("induction", examples, n, n_heldout)


def _token_pool(model: TaskModel, tokens: Sequence[int] | None) -> list[int]:
    size = min(model.d_vocab, model.d_vocab_out)
    if tokens is not None:
        if not isinstance(tokens, Sequence) or isinstance(tokens, str):
            raise BadSetting(f"tokens={tokens!r} is not a list: give token ids, as in [5, 6, 7, 8]")
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < size:
                raise BadSetting(f"tokens holds {token!r}: give token ids from 0 to {size - 1}")
        return sorted(set(tokens))
    if model.tokenizer is None:
        return list(range(size))
    special = set(model.tokenizer.all_special_ids)
    return [token for token in range(min(size, len(model.tokenizer))) if token not in special]


def _example(prefix: tuple[int, ...], half: list[int], at: int, other: int, model: TaskModel) -> Example:
    """The pair of prompts for a half, the index of A in it, and the index of the token before C."""
    again = half[at + 1 :] + half[: at + 1]
    swapped = list(half)
    swapped[at], swapped[other] = swapped[other], swapped[at]
    clean = (*prefix, *half, *again)
    start = len(prefix)
    return Example(
        clean=clean,
        corrupted=(*prefix, *swapped, *again),
        positions=(len(clean) - 1,),
        answers=((half[at + 1],),),
        wrong=((half[other + 1],),),
        text="" if model.tokenizer is None else str(model.tokenizer.decode([*half, *again])),
        roles={"a1": start + at, "b1": start + at + 1, "c1": start + other + 1, "a2": len(clean) - 1},
    )
