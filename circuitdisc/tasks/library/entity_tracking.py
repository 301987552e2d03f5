"""Entity tracking: "The apple is in Box F, the cup is in Box Q, ... . Box F contains the" is continued with apple.

Each box has a label of one letter and holds one object; the question is about any of them. The corrupted prompt has the
same form and as many tokens. What it changes, and the answer that it stands for, which is the first of `wrong`:

- `query`: the question names another box of the list. Answer: that box's object.
- `value`: every object is replaced by one that the clean prompt has not; labels and the place asked for stay. Answer: the
  new object at that place.
- `position`: the same pairs of an object and a box in another order (turned round, so that each changes its place); the
  question stays. The corrupted prompt's own answer is still the clean one. First of `wrong`: the object that the *clean*
  prompt has at the place where the corrupted prompt has the answer.
- `label`: the labels are passed on round the boxes, and the question follows the object: its place and value stay, its label
  is another box's of the clean prompt. The corrupted prompt's own answer is still the clean one. First of `wrong`: the
  object that the *clean* prompt has in the box of that label.

In the last three only the value, only the place or only the label of the right object differs. Hence, if a component's
output in the question (not in the list, where words change too) is taken from the corrupted prompt into the clean run and the
answer becomes the first of `wrong`, then it carries the object itself, its place or its label: the three desiderata of the
study. Examples that ask for one place form a group.

Roles: `object1` `label1` and so on in the order of the boxes; `correct_object` and `correct_label`, where the box asked for
stands in the list; `query_box` and `query_label` in the question.

Source: Kim & Schuster 2023 (the boxes); Prakash et al., ICLR 2024 (seven boxes; the three desiderata); own objects.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.checks import Whole, bounded
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Setup, drawn_task, pick_several
from circuitdisc.tasks.roles import Filled, fill

SEGMENT = "the {{object{place}}} is in Box {{label{place}}}"  # filled in twice: first the place, then the words
QUESTION = "{query_box} {query_label} contains the"
BOX = "Box"

LABELS: tuple[str, ...] = tuple("BCDEFGHJKLMNOPQRSTUVWXYZ")  # A and I are words

OBJECTS: tuple[str, ...] = (
    *("apple", "computer", "document", "letter", "camera", "map", "cake", "gift", "drink", "flower", "umbrella", "sandwich"),
    *("pen", "cup", "book", "ball", "hat", "lamp", "bottle", "bag", "coin", "ring", "key", "phone", "watch", "brush"),
    *("guitar", "basket", "clock", "shirt", "mirror", "ticket", "flag", "knife", "machine", "radio", "wheel", "fish"),
    *("engine", "bread", "milk", "meat", "rose", "leaf", "stone", "rope", "crown", "drum", "bell", "magazine"),
)

CORRUPTIONS = ("query", "value", "position", "label")
LEAST_BOXES = 2


@bounded(boxes=Whole(LEAST_BOXES, 1000))
@drawn_task("entity_tracking", all_fit=True)
def build(setup: Setup, *, boxes: int = 3, corruption: str = "query") -> Draw:
    """Draw entity-tracking examples.

    Args:
        setup: the model's tokenizer.
        boxes: boxes in a prompt (the study: 7).
        corruption: `query`, `value`, `position` or `label`.
    """
    setup.names("corruption", corruption, CORRUPTIONS)
    objects = setup.words(OBJECTS, "objects", need=2 * boxes if corruption == "value" else boxes)
    labels = setup.words(LABELS, "labels", need=boxes)

    def draw(rng: np.random.Generator) -> TextExample:
        drawn = pick_several(rng, objects, min(2 * boxes, len(objects)))
        things, others = drawn[:boxes], drawn[boxes:]
        boxed = pick_several(rng, labels, boxes)
        asked, shift = int(rng.integers(boxes)), int(rng.integers(1, boxes))
        clean = _prompt(things, boxed, asked)
        corrupted, stands_for = _corrupted(corruption, things, others, boxed, asked, shift)
        rest = [thing for thing in things if thing not in (things[asked], stands_for)]
        roles = {**clean.roles, "correct_object": clean.roles[f"object{asked + 1}"]}
        roles["correct_label"] = clean.roles[f"label{asked + 1}"]
        wrong = tuple(f" {thing}" for thing in (stands_for, *rest))
        return TextExample(clean.text, corrupted.text, (f" {things[asked]}",), wrong, group=f"box{asked + 1}", roles=roles)

    return draw


def _prompt(things: Sequence[str], labels: Sequence[str], asked: int) -> Filled:
    """The list of boxes and the question about one of them."""
    segments = ", ".join(SEGMENT.format(place=place) for place in range(1, len(things) + 1))
    words = {f"object{i + 1}": thing for i, thing in enumerate(things)}
    words |= {f"label{i + 1}": label for i, label in enumerate(labels)}
    template = f"{segments[0].upper()}{segments[1:]}. {QUESTION}"
    return fill(template, **words, query_box=BOX, query_label=labels[asked])


def _corrupted(
    corruption: str, things: list[str], others: list[str], labels: list[str], asked: int, shift: int
) -> tuple[Filled, str]:
    """The corrupted prompt, and the object that it stands for.

    Args:
        corruption: what changes.
        things: the object of each box.
        others: as many objects that the clean prompt has not (used by `value`).
        labels: the label of each box.
        asked: the box asked for.
        shift: how many places the question, the pairs or the labels move on round the list; from 1 to one below the boxes.
    """
    now = (asked + shift) % len(things)
    if corruption == "query":
        return _prompt(things, labels, now), things[now]
    if corruption == "value":
        return _prompt(others, labels, asked), others[asked]
    if corruption == "position":
        return _prompt(_turned(things, -shift), _turned(labels, -shift), now), things[now]
    return _prompt(things, _turned(labels, shift), asked), things[now]


def _turned(items: list[str], by: int) -> list[str]:
    """The items with the first `by` of them moved to the end (the last ones to the front if `by` is negative)."""
    return items[by:] + items[:by]
