"""Gendered pronoun: "So Dave is a really great friend, isn't" is continued with "he", not with "she".

The name alone tells which pronoun agrees with it. In the corrupted prompt a name of the other gender stands in its place.
Examples of one frame form a group.

Roles: `name`; the last token is `end`.

Source: Mathwin et al. 2023 (tag questions after a name); own frames and names.
"""

import numpy as np

from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick
from circuitdisc.tasks.roles import fill

FRAMES: dict[str, str] = {
    "friend": "So {name} is a really great friend, isn't",
    "cook": "Yes, {name} was a very good cook, wasn't",
    "singing": "And {name} sings rather well, doesn't",
    "home": "I suppose {name} has already gone home, hasn't",
    "help": "Surely {name} can help us with that, can't",
    "work": "By now {name} will be on the way to work, won't",
    "book": "Last year {name} wrote a whole book, didn't",
    "doctor": "In the end {name} became a doctor after all, didn't",
}

MEN: tuple[str, ...] = tuple(
    """
    John Tom James Dan Martin Paul Mark Peter Jack George Henry Adam Simon Luke Brian Kevin Eric Frank Jason Ryan Steven
    Robert Michael Daniel David Dave Andrew Matthew Patrick Charles Thomas William Richard Joseph Edward Arthur Roger Walter
    Carl Oscar Victor Leo Ben Nick Joe Bob Tim Jim Ken Ron Ray Roy Sean Kyle Tyler Ethan Aaron Nathan Jeremy Gary Larry
    Scott Steve Greg Harry Jerry Philip Douglas Donald Ralph Bruce Howard Samuel
    """.split()  # noqa: SIM905 - a list literal would be many quoted lines
)

WOMEN: tuple[str, ...] = tuple(
    """
    Mary Amy Anna Kate Sarah Alice Emma Laura Lisa Linda Helen Julia Susan Karen Emily Rachel Jane Ruth Claire Jessica
    Michelle Nicole Amanda Angela Christine Diana Maria Sara Eva Elizabeth Margaret Catherine Barbara Nancy Carol Jennifer
    Melissa Hannah Olivia Sophie Lucy Ellen Joan Martha Sally Betty Rose Grace Stephanie Rebecca Katherine Victoria Charlotte
    Marie Heather Samantha Anne Ann Deborah Donna Julie Kelly Laurie Natalie Patricia Sandra Sharon Theresa Virginia
    """.split()  # noqa: SIM905 - a list literal would be many quoted lines
)

PRONOUNS = ("he", "she")


@drawn_task("gendered_pronoun")
def build(setup: Setup, *, frames: Names = None) -> Draw:
    """Draw gendered-pronoun examples.

    Args:
        setup: the model's tokenizer.
        frames: names of the frames to draw from; None: all.
    """
    chosen = setup.names("frame", frames, FRAMES)
    names = (setup.words(MEN, "men's names"), setup.words(WOMEN, "women's names"))

    def draw(rng: np.random.Generator) -> TextExample:
        frame = pick(rng, chosen)
        gender = int(rng.integers(2))
        name, other = (pick(rng, names[of]) for of in (gender, 1 - gender))
        clean, corrupted = fill(FRAMES[frame], name=name), fill(FRAMES[frame], name=other).text
        answer, wrong = (f" {PRONOUNS[of]}" for of in (gender, 1 - gender))
        return TextExample(clean.text, corrupted, (answer,), (wrong,), group=frame, roles=clean.roles)

    return draw
