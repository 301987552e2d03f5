"""Rephrase: "The king was very quick. In other words, the king was very" is continued with "swift", not with "quick".

A sentence says something with an adjective, and the prompt asks to say it again in other words: the synonym is the answer,
the adjective itself, which a copying head would give, the wrong one. In the corrupted prompt the sentence has the adjective of
another pair, so that neither follows. Examples of one frame form a group.

Roles: `adjective` and `noun`, where the sentence has them; the last token is `end`.

Source: the REPHRASE comparison of a base model with its instruction-tuned one (logit of "swift" minus logit of "quick"); own
frames and pairs.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import one_token_words
from circuitdisc.tasks.library.drawn import draw_examples
from circuitdisc.tasks.library.rephrase_text import FRAMES, NOUNS, PAIRS
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.roles import fill
from circuitdisc.tasks.split import split_examples


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    frames: str | Sequence[str] | None = None,
    prepend_bos: bool | None = None,
) -> Task:
    """Draw rephrase examples.

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
    chosen = check_names("frame of task 'rephrase'", frames, FRAMES)
    tokenizer = need_tokenizer(model, "rephrase")
    adjectives = list(dict.fromkeys(word for pairs in PAIRS.values() for pair in pairs for word in pair))
    known = set(one_token_words(adjectives, tokenizer, task="rephrase", kind="adjectives", need=4))
    nouns = set(one_token_words([n for of in NOUNS.values() for n in of], tokenizer, task="rephrase", kind="nouns", need=1))
    things = {
        kind: ([pair for pair in pairs if known.issuperset(pair)], [noun for noun in NOUNS[kind] if noun in nouns])
        for kind, pairs in PAIRS.items()
    }
    usable = [kind for kind, (pairs, named) in things.items() if len(pairs) > 1 and named]
    if not usable:
        raise BadTask(
            "task 'rephrase' needs two pairs of adjectives of one token each, but this model's tokenizer has fewer: "
            "choose a model with a larger English vocabulary, or another task"
        )
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        frame = chosen[int(rng.integers(len(chosen)))]
        pairs, named = things[usable[int(rng.integers(len(usable)))]]
        noun = named[int(rng.integers(len(named)))]
        (said, synonym), (other, _) = (pairs[i] for i in rng.choice(len(pairs), size=2, replace=False))
        words = {"noun": noun, "_again": noun}
        clean = fill(FRAMES[frame], **words, adjective=said)
        corrupted = fill(FRAMES[frame], **words, adjective=other).text
        return TextExample(clean.text, corrupted, (f" {synonym}",), (f" {said}",), group=frame, roles=clean.roles)

    examples = draw_examples(draw, tokenizer, n + n_heldout, "rephrase", prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("rephrase", split.train, split.heldout)
