"""Hypernymy: "Here are dogs, cats, and other" is continued with "animals", not with what another kind of thing is called.

Two members of one kind stand in the clean prompt, two members of another kind in the corrupted one. The answer is what the
first kind is called, the wrong answer what the other is. Examples of one frame form a group.

Roles: `first` and `second`, the two members; the last token is `end`.

Source: Hanna et al. 2024, "Have Faith in Faithfulness" (https://arxiv.org/abs/2403.17806), task hypernymy; own frames, words.
"""

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick, pick_several
from circuitdisc.tasks.roles import fill

FRAMES: dict[str, str] = {
    "and": "Here are {first}, {second}, and other",
    "shop": "The shop at the corner sells {first}, {second} and other",
    "talk": "All evening they talked about {first}, {second} and other",
    "list": "On the list we found {first}, {second} and various other",
    "book": "It is a book about {first}, {second}, and some other",
}

KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(members.split())
    for kind, members in {
        "animals": "dogs cats horses cows pigs sheep wolves bears lions tigers rabbits elephants monkeys",
        "birds": "ducks eagles owls geese crows pigeons chickens",
        "fruits": "apples oranges grapes bananas lemons peaches cherries pears",
        "vegetables": "potatoes carrots onions beans peas tomatoes peppers",
        "drinks": "coffee tea beer wine juice milk water",
        "sports": "football tennis golf hockey baseball basketball soccer cricket",
        "instruments": "drums guitars pianos flutes violins trumpets",
        "tools": "hammers nails drills knives saws screws",
        "metals": "gold silver iron copper steel lead tin",
        "colors": "red blue green yellow black white purple orange",
        "vehicles": "cars trucks buses trains boats bikes ships planes",
        "languages": "French German English Spanish Italian Russian Chinese Greek Latin",
    }.items()
}


@drawn_task("hypernymy")
def build(setup: Setup, *, frames: Names = None, kinds: Names = None) -> Draw:
    """Draw hypernymy examples.

    Args:
        setup: the model's tokenizer.
        frames: names of the frames to draw from; None: all.
        kinds: names of the kinds of things to draw from, two at least; None: all.
    """
    chosen = setup.names("frame", frames, FRAMES)
    named = setup.words(setup.names("kind", kinds, KINDS), "kinds of things", need=2)
    members = {kind: setup.words(KINDS[kind], kind) for kind in named}
    usable = [kind for kind in named if len(members[kind]) > 1]
    if len(usable) < 2:
        raise BadTask(
            "task 'hypernymy' needs two kinds of things of which two members each are one token: choose a model with a larger "
            "English vocabulary, or another task"
        )

    def draw(rng: np.random.Generator) -> TextExample:
        frame = pick(rng, chosen)
        kind, other = pick_several(rng, usable, 2)
        clean, corrupted = (
            fill(FRAMES[frame], **dict(zip(("first", "second"), pick_several(rng, members[of], 2), strict=True)))
            for of in (kind, other)
        )
        return TextExample(clean.text, corrupted.text, (f" {kind}",), (f" {other}",), group=frame, roles=clean.roles)

    return draw
