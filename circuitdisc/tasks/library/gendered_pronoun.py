"""Gendered pronoun: "So Dave is a really great friend, isn't" is continued with "he", not with "she".

The name alone tells which pronoun agrees with it. In the corrupted prompt a name of the other gender stands in its place.
Examples of one frame form a group.

Roles: `name`; the last token is `end`.

Source: Mathwin et al. 2023 (tag questions after a name); own frames and names.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import one_token_words
from circuitdisc.tasks.library.drawn import draw_examples
from circuitdisc.tasks.library.gendered_pronoun_text import FRAMES, MEN, WOMEN
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.roles import fill
from circuitdisc.tasks.split import split_examples

PRONOUNS = ("he", "she")


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    frames: str | Sequence[str] | None = None,
    prepend_bos: bool | None = None,
) -> Task:
    """Draw gendered-pronoun examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        frames: names of the frames to draw from; None: all.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such frame.
        BadSetting: `frames` is not a list of names.
        BadTask: the model has no tokenizer, or it knows too few of the words as single tokens.
    """
    chosen = check_names("frame of task 'gendered_pronoun'", frames, FRAMES)
    tokenizer = need_tokenizer(model, "gendered_pronoun")
    names = [
        one_token_words(words, tokenizer, task="gendered_pronoun", kind=kind, need=1)
        for words, kind in ((MEN, "men's names"), (WOMEN, "women's names"))
    ]
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        frame = chosen[int(rng.integers(len(chosen)))]
        gender = int(rng.integers(2))
        name, other = (names[one][int(rng.integers(len(names[one])))] for one in (gender, 1 - gender))
        clean = fill(FRAMES[frame], name=name)
        corrupted = fill(FRAMES[frame], name=other).text
        answer, wrong = (f" {PRONOUNS[one]}" for one in (gender, 1 - gender))
        return TextExample(clean.text, corrupted, (answer,), (wrong,), group=frame, roles=clean.roles)

    examples = draw_examples(draw, tokenizer, n + n_heldout, "gendered_pronoun", prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("gendered_pronoun", split.train, split.heldout)
