"""Colored objects: "... a blue pen, a red cup and a green book. What color is the cup? It is" is continued with red.

Three objects of three different colors are named, and the prompt asks for the color of one of them, at any of the three
places. The wrong answers are the two other colors. The corrupted prompt of `query` asks for another of the three objects;
that of `colors` keeps the question and passes the colors on round the list, so that every object has another one. Both
name the same three objects and colors, and under both one of the wrong answers becomes right: it is the first of `wrong`.
Examples of one frame and one place of the object asked for form a group.

Roles: `color1` `object1` to `color3` `object3` in the order of the list; `correct_color` and `correct_object`, where the
object asked for stands in the list (and its color before it); `query`, where it stands in the question.

Source: Merullo et al. 2024 (after BIG-bench's reasoning about colored objects); own frames, colors and objects.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import encode_examples, one_token_words
from circuitdisc.tasks.library.colored_objects_text import COLORS, FRAMES, OBJECTS
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.roles import Filled, fill
from circuitdisc.tasks.split import draw_distinct, split_examples

CORRUPTIONS = ("query", "colors")
LISTED = 3  # objects in a prompt


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    frames: str | Sequence[str] | None = None,
    corruption: str = "query",
    prepend_bos: bool | None = None,
) -> Task:
    """Draw colored-objects examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        frames: names of the frames to draw from; None: all.
        corruption: `query` or `colors`.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such frame or corruption.
        BadSetting: `frames` is not a list of names.
        BadTask: the model has no tokenizer, or it knows too few of the words as single tokens.
    """
    chosen = check_names("frame of task 'colored_objects'", frames, FRAMES)
    check_names("corruption of task 'colored_objects'", corruption, CORRUPTIONS)
    tokenizer = need_tokenizer(model, "colored_objects")
    colors = one_token_words(COLORS, tokenizer, task="colored_objects", kind="colors", need=LISTED)
    objects = one_token_words(OBJECTS, tokenizer, task="colored_objects", kind="objects", need=LISTED)
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        frame = chosen[int(rng.integers(len(chosen)))]
        listed = [colors[i] for i in rng.choice(len(colors), size=LISTED, replace=False)]
        named = [objects[i] for i in rng.choice(len(objects), size=LISTED, replace=False)]
        asked = int(rng.integers(LISTED))
        shift = int(rng.integers(1, LISTED))  # how far the question, or the colors, move round the list
        now = (asked + shift) % LISTED  # the place whose color the corrupted prompt asks for
        clean = _prompt(frame, listed, named, asked)
        if corruption == "query":
            corrupted = _prompt(frame, listed, named, now)
        else:
            corrupted = _prompt(frame, listed[shift:] + listed[:shift], named, asked)
        roles = {**clean.roles, "correct_color": clean.roles[f"color{asked + 1}"]}
        roles["correct_object"] = clean.roles[f"object{asked + 1}"]
        wrong = (listed[now], next(listed[i] for i in range(LISTED) if i not in (asked, now)))
        return TextExample(
            clean.text,
            corrupted.text,
            (f" {listed[asked]}",),
            tuple(f" {color}" for color in wrong),
            group=f"{frame}_{asked + 1}",
            roles=roles,
        )

    texts = draw_distinct(draw, n + n_heldout, "colored_objects")
    examples = encode_examples(texts, tokenizer, prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("colored_objects", split.train, split.heldout)


def _prompt(frame: str, colors: Sequence[str], objects: Sequence[str], asked: int) -> Filled:
    """The frame with its three pairs of a color and an object, asking for one of them."""
    words = {f"color{i + 1}": color for i, color in enumerate(colors)}
    words |= {f"object{i + 1}": name for i, name in enumerate(objects)}
    return fill(FRAMES[frame], **words, query=objects[asked])
