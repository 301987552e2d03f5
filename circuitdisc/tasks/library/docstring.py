"""Docstring: a function's docstring has described its third and fourth argument; the next `:param` is continued with the fifth.

The function has six arguments, all of different names, of which the docstring goes through the third to the fifth: A, B, C.
The right answer is C; the wrong answers are the five other arguments. In the corrupted prompt nothing says what comes next:
`random_doc` describes two arguments that the function does not have; `random_def` gives the function other names for A, B
and C; `random_def_doc` does both, with different names. All examples form one group.

Roles: the arguments where the function names them, `rand1_def`, `rand2_def`, `a_def`, `b_def`, `c_def`, `rand3_def`, and where
its docstring does, `a_doc`, `b_doc`; the last token is `end`.

Source: Heimersheim & Janiak 2023; own names and words.
"""

import numpy as np

from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import one_token_words
from circuitdisc.tasks.library.docstring_text import ARGUMENTS, FRAME, METHODS, WORDS
from circuitdisc.tasks.library.drawn import draw_examples
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.roles import fill
from circuitdisc.tasks.split import split_examples

CORRUPTIONS = ("random_def_doc", "random_def", "random_doc")
N_ARGUMENTS = 6
N_REPLACED = 5  # A, B and C of the function, A and B of the docstring
N_WORDS = (3, 2, 2)  # words of the summary and of each description


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    corruption: str = "random_def_doc",
    prepend_bos: bool | None = None,
) -> Task:
    """Draw docstring examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        corruption: `random_def_doc`, `random_def` or `random_doc`.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such corruption.
        BadTask: the model has no tokenizer, or it knows too few of the words as single tokens.
    """
    check_names("corruption of task 'docstring'", corruption, CORRUPTIONS)
    tokenizer = need_tokenizer(model, "docstring")
    needed = N_ARGUMENTS + N_REPLACED
    names = one_token_words(ARGUMENTS, tokenizer, task="docstring", kind="names of arguments", need=needed)
    methods = one_token_words(METHODS, tokenizer, task="docstring", kind="names of methods", need=1)
    words = one_token_words(WORDS, tokenizer, task="docstring", kind="words", need=sum(N_WORDS))
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        mine = [names[i] for i in rng.choice(len(names), size=needed, replace=False)]
        rand1, rand2, a, b, c, rand3, *others = mine
        said = [words[i] for i in rng.choice(len(words), size=sum(N_WORDS), replace=False)]
        what, about_a, about_b = (" ".join(part) for part in (said[:3], said[3:5], said[5:]))
        described = {"_what": what, "_about_a": about_a, "_about_b": about_b}
        fixed = {"_method": methods[int(rng.integers(len(methods)))], **described}
        fixed |= {"rand1_def": rand1, "rand2_def": rand2, "rand3_def": rand3}
        in_def = {"a_def": a, "b_def": b, "c_def": c}
        in_doc = {"a_doc": a, "b_doc": b}
        clean = fill(FRAME, **fixed, **in_def, **in_doc)
        if corruption != "random_doc":
            in_def = dict(zip(in_def, others[:3], strict=True))
        if corruption != "random_def":
            in_doc = dict(zip(in_doc, others[3:], strict=True))
        corrupted = fill(FRAME, **fixed, **in_def, **in_doc).text
        wrong = tuple(f" {name}" for name in (rand1, rand2, a, b, rand3))
        return TextExample(clean.text, corrupted, (f" {c}",), wrong, group="docstring", roles=clean.roles)

    examples = draw_examples(draw, tokenizer, n + n_heldout, "docstring", prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("docstring", split.train, split.heldout)
