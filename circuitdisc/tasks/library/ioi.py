"""Indirect object identification: "... Mary and John ... John gave the book to" is continued with Mary.

The indirect object (Mary) is named once, the subject (John) twice. Each frame comes in two orders: `abba`, with the
indirect object first, and `baba`, with the subject first. The corrupted prompt `abc` has three other names, each
once, so that no one of them follows; `flip` names the indirect object in place of the subject the second time, so
that the wrong answer follows. Examples of one frame and order form a group.

Roles: `io`, the indirect object; `s1` and `s2`, the subject where it is named first and again; `place`; `object`; the last
token is `end`. They name the same words in both orders, so that `s1` comes before `io` in `baba`.

Source: Wang et al. 2022, section 2 and appendix A (p_ABC); own frames, names, places and objects.
"""

import numpy as np

from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick, pick_several
from circuitdisc.tasks.roles import Filled, fill

FRAMES: dict[str, str] = {
    "morning": "After{first} and{second} had spent the morning at the{place},{subject} offered the{object} to",
    "meeting": "Last week{first} and{second} met near the{place}, and{subject} handed the{object} to",
    "errand": "Since{first} and{second} were both on their way to the{place},{subject} passed the{object} to",
    "visit": "While{first} and{second} were visiting the{place},{subject} showed the{object} to",
    "work": "Because{first} and{second} had work to do at the{place},{subject} lent the{object} to",
    "rain": "As{first} and{second} waited outside the{place} in the rain,{subject} gave the{object} to",
    "lunch": "Once{first} and{second} had finished lunch at the{place},{subject} brought the{object} to",
    "evening": "That evening{first} and{second} stayed late at the{place}. Before leaving,{subject} returned the{object} to",
}

NAMES: tuple[str, ...] = tuple(
    """
    Mary John Tom James Dan Martin Amy Anna Kate Sarah Paul Mark Peter Alice Emma Laura Lisa Linda Helen Julia
    Susan Karen Emily Rachel Jane Ruth Claire Jack George Henry Adam Simon Luke Brian Kevin Eric Frank Jason Ryan
    Steven Robert Michael Daniel David Andrew Matthew Patrick Charles Thomas William Richard Joseph Edward Arthur
    Roger Walter Carl Oscar Victor Alex Max Leo Ben Sam Nick Joe Bob Tim Jim Ken Ron Ray Roy Sean Kyle Tyler Dylan
    Ethan Aaron Nathan Jeremy Jessica Michelle Nicole Amanda Angela Christine Diana Maria Sara Eva Elizabeth
    Margaret Catherine Barbara Nancy Carol Jennifer Melissa Hannah Olivia Sophie Lucy Ellen Joan Martha
    """.split()  # noqa: SIM905 - a list literal would be a hundred quoted lines
)

PLACES: tuple[str, ...] = (
    *("store", "garden", "school", "park", "library", "museum", "market", "station", "office", "beach", "hospital"),
    *("restaurant", "church", "hotel", "airport", "theater", "farm", "lake", "river", "bridge", "bakery"),
)

OBJECTS: tuple[str, ...] = (
    *("book", "ring", "letter", "drink", "ball", "key", "ticket", "basket", "camera", "lamp", "apple", "coin", "map"),
    *("hat", "pen", "phone", "bottle", "sandwich", "cake", "gift", "flower", "watch", "guitar", "blanket", "umbrella"),
)

ORDERS = {"both": ("abba", "baba"), "abba": ("abba",), "baba": ("baba",)}
CORRUPTIONS = ("abc", "flip")
ROLES = {  # of the slots that hold names
    "abba": {"first": "io", "second": "s1", "subject": "s2"},
    "baba": {"first": "s1", "second": "io", "subject": "s2"},
}
LEAST_NAMES = 5


@drawn_task("ioi", all_fit=True)
def build(setup: Setup, *, frames: Names = None, order: str = "both", corruption: str = "abc") -> Draw:
    """Draw indirect-object examples.

    Args:
        setup: the model's tokenizer.
        frames: names of the frames to draw from; None: all.
        order: `abba`, `baba` or `both`.
        corruption: `abc` or `flip`.
    """
    chosen = setup.names("frame", frames, FRAMES)
    setup.names("order", order, ORDERS)
    setup.names("corruption", corruption, CORRUPTIONS)
    names = setup.words(NAMES, "names", need=LEAST_NAMES)
    places, objects = setup.words(PLACES, "places"), setup.words(OBJECTS, "objects")

    def draw(rng: np.random.Generator) -> TextExample:
        frame, way = pick(rng, chosen), pick(rng, ORDERS[order])
        place, object_ = pick(rng, places), pick(rng, objects)
        indirect, subject, *others = pick_several(rng, names, LEAST_NAMES)
        first, second = (indirect, subject) if way == "abba" else (subject, indirect)

        def prompt(first: str, second: str, subject: str) -> Filled:
            words = {"first": first, "second": second, "subject": subject, "place": place, "object": object_}
            return fill(FRAMES[frame], **{slot: f" {word}" for slot, word in words.items()})

        clean = prompt(first, second, subject)
        corrupted = prompt(*others) if corruption == "abc" else prompt(first, second, indirect)
        roles = {ROLES[way].get(slot, slot): span for slot, span in clean.roles.items()}
        group = f"{frame}_{way}"
        return TextExample(clean.text, corrupted.text, (f" {indirect}",), (f" {subject}",), group=group, roles=roles)

    return draw
