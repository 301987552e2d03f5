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

from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Setup, drawn_task, pick, pick_several
from circuitdisc.tasks.roles import fill

FRAME = '''def {_method}(self, {rand1_def}, {rand2_def}, {a_def}, {b_def}, {c_def}, {rand3_def}):
    """{_what}

    :param {a_doc}: {_about_a}
    :param {b_doc}: {_about_b}
    :param'''

METHODS: tuple[str, ...] = (
    *("run", "load", "save", "open", "close", "start", "stop", "send", "read", "write", "merge", "split", "sort", "find"),
    *("build", "update", "check", "move", "copy", "draw", "print", "count", "search", "train", "test", "connect", "apply"),
)

ARGUMENTS: tuple[str, ...] = tuple(
    """
    size files last first name value key path port host user group index count limit mode type color width height depth
    level speed time date year month day hour start end left right top bottom old new base target source input output image
    text line word page table field record order state status title label code data list queue tree node edge weight
    scale shift range step rate error result model layer price total region city country street number letter message
    header body sound frame scene shape point center angle radius volume mass force energy power signal sample
    """.split()  # noqa: SIM905 - a list literal would be many quoted lines
)

WORDS: tuple[str, ...] = tuple(
    """
    river winter garden market family music summer morning story island forest castle kitchen window silver horse engine
    bridge doctor teacher planet ocean paper glass metal stone wood cloud storm fire water flower fruit bread sugar coffee
    village church school museum hotel railway soldier captain farmer painter singer writer animal insect desert valley
    mountain lake coast tower wall roof floor door chair desk lamp clock camera phone radio
    """.split()  # noqa: SIM905 - a list literal would be many quoted lines
)

CORRUPTIONS = ("random_def_doc", "random_def", "random_doc")
N_ARGUMENTS = 6
N_REPLACED = 5  # A, B and C of the function, A and B of the docstring
N_WORDS = (3, 2, 2)  # words of the summary and of each description


@drawn_task("docstring")
def build(setup: Setup, *, corruption: str = "random_def_doc") -> Draw:
    """Draw docstring examples.

    Args:
        setup: the model's tokenizer.
        corruption: `random_def_doc`, `random_def` or `random_doc`.
    """
    setup.names("corruption", corruption, CORRUPTIONS)
    needed = N_ARGUMENTS + N_REPLACED
    names = setup.words(ARGUMENTS, "names of arguments", need=needed)
    methods = setup.words(METHODS, "names of methods")
    words = setup.words(WORDS, "words", need=sum(N_WORDS))

    def draw(rng: np.random.Generator) -> TextExample:
        rand1, rand2, a, b, c, rand3, *others = pick_several(rng, names, needed)
        said = pick_several(rng, words, sum(N_WORDS))
        what, about_a, about_b = (" ".join(part) for part in (said[:3], said[3:5], said[5:]))
        fixed = {"_method": pick(rng, methods), "_what": what, "_about_a": about_a, "_about_b": about_b}
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

    return draw
