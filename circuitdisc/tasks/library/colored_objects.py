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

from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick, pick_several
from circuitdisc.tasks.roles import Filled, fill

_THREE = "a {color1} {object1}, a {color2} {object2} and a {color3} {object3}."
FRAMES: dict[str, str] = {
    "table": f"On the table there is {_THREE} What color is the {{query}}? It is",
    "drawer": f"In the drawer lie {_THREE} The color of the {{query}} is",
    "shelf": f"The shelf holds {_THREE} The {{query}} on it is",
    "bought": f"Today we bought {_THREE} The {{query}} that we bought is",
    "saw": f"I saw {_THREE} Which color was the {{query}}? It was",
    "picture": f"A picture shows {_THREE} The {{query}} was painted in",
}

COLORS: tuple[str, ...] = (
    *("red", "blue", "green", "yellow", "purple", "black", "white", "brown", "pink", "gray", "silver", "gold"),
)

OBJECTS: tuple[str, ...] = (
    *("pen", "cup", "book", "ball", "hat", "lamp", "bottle", "bag", "box", "chair", "plate", "bowl", "coin", "ring"),
    *("key", "phone", "watch", "towel", "brush", "pencil", "guitar", "basket", "candle", "clock", "shirt", "shoe"),
    *("scarf", "mirror", "pillow", "blanket", "bucket", "ticket", "flag", "kite", "knife", "spoon", "fork", "toy"),
)

CORRUPTIONS = ("query", "colors")
LISTED = 3  # objects in a prompt


@drawn_task("colored_objects", all_fit=True)
def build(setup: Setup, *, frames: Names = None, corruption: str = "query") -> Draw:
    """Draw colored-objects examples.

    Args:
        setup: the model's tokenizer.
        frames: names of the frames to draw from; None: all.
        corruption: `query` or `colors`.
    """
    chosen = setup.names("frame", frames, FRAMES)
    setup.names("corruption", corruption, CORRUPTIONS)
    colors, objects = setup.words(COLORS, "colors", need=LISTED), setup.words(OBJECTS, "objects", need=LISTED)

    def draw(rng: np.random.Generator) -> TextExample:
        frame = pick(rng, chosen)
        listed, named = pick_several(rng, colors, LISTED), pick_several(rng, objects, LISTED)
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
        others = (listed[now], next(listed[i] for i in range(LISTED) if i not in (asked, now)))
        wrong, group = tuple(f" {color}" for color in others), f"{frame}_{asked + 1}"
        return TextExample(clean.text, corrupted.text, (f" {listed[asked]}",), wrong, group=group, roles=roles)

    return draw


def _prompt(frame: str, colors: Sequence[str], objects: Sequence[str], asked: int) -> Filled:
    """The frame with its three pairs of a color and an object, asking for one of them."""
    words = {f"color{i + 1}": color for i, color in enumerate(colors)}
    words |= {f"object{i + 1}": name for i, name in enumerate(objects)}
    return fill(FRAMES[frame], **words, query=objects[asked])
