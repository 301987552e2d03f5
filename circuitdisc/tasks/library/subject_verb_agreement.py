"""Subject-verb agreement: "The keys to the cabinet" is continued with "are", "were" or "have", not with "is", "was" or "has".

The verb agrees with the subject, whatever the nearer noun, the attractor, says. In the corrupted prompt the subject has the
other number, and nothing else differs, so that the wrong verbs become right. Examples of one beginning, one number of the
subject and one kind of attractor form a group.

Roles: `subject`; `attractor`, where there is one; the last token, which is the attractor or the subject, is `end`.

Source: Linzen et al. 2016 (agreement across attractors); Finlayson et al. 2021 (pairs of the subject's number); own words.
"""

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick, pick_several
from circuitdisc.tasks.roles import fill

BEGINNINGS: dict[str, str] = {
    "plain": "The {subject}",
    "noticed": "We noticed that the {subject}",
    "report": "According to the report, the {subject}",
    "today": "Today the {subject}",
    "told": "Somebody told us that the {subject}",
    "although": "Although it is late, the {subject}",
}

ATTRACTED = "{_preposition} the {attractor}"  # follows the subject where the prompt has an attractor

PREPOSITIONS: tuple[str, ...] = ("near", "behind", "beside", "above", "under", "opposite", "with", "by")

NOUNS: tuple[tuple[str, str], ...] = tuple(
    (singular, plural)
    for singular, plural in (
        pair.split("/")
        for pair in """
        key/keys book/books letter/letters picture/pictures table/tables chair/chairs window/windows door/doors car/cars
        truck/trucks house/houses tower/towers bridge/bridges garden/gardens tree/trees flower/flowers stone/stones
        boat/boats ship/ships plane/planes train/trains bag/bags box/boxes bottle/bottles cup/cups plate/plates
        teacher/teachers student/students doctor/doctors lawyer/lawyers farmer/farmers soldier/soldiers actor/actors
        artist/artists writer/writers author/authors singer/singers driver/drivers pilot/pilots guard/guards
        friend/friends neighbor/neighbors boy/boys girl/girls dog/dogs cat/cats horse/horses bird/birds cow/cows
        computer/computers phone/phones camera/cameras machine/machines engine/engines painting/paintings lamp/lamps
        """.split()  # noqa: SIM905 - a list literal would be many quoted lines
    )
)

VERBS: tuple[tuple[str, str], ...] = (("is", "are"), ("was", "were"), ("has", "have"))  # singular, plural

ATTRACTORS = {"opposite": ("opposite",), "same": ("same",), "both": ("opposite", "same"), "none": ("none",)}
NUMBERS = ("singular", "plural")


@drawn_task("subject_verb_agreement")
def build(setup: Setup, *, beginnings: Names = None, attractor: str = "opposite") -> Draw:
    """Draw subject-verb agreement examples.

    Args:
        setup: the model's tokenizer.
        beginnings: names of the beginnings to draw from; None: all.
        attractor: number of the attractor in the clean prompt: `opposite` to the subject's, the `same`, `both`, or `none`
            for prompts that end with the subject.
    """
    chosen = setup.names("beginning", beginnings, BEGINNINGS)
    setup.names("attractor", attractor, ATTRACTORS)
    known = set(setup.words([word for pair in NOUNS for word in pair], "nouns", need=4))
    nouns = [pair for pair in NOUNS if known.issuperset(pair)]
    if len(nouns) < 2:
        raise BadTask(
            f"task '{setup.task}' needs two nouns of one token each in both numbers, but this model's tokenizer has "
            f"{len(nouns)}: choose a model with a larger English vocabulary, or another task"
        )
    prepositions = setup.words(PREPOSITIONS, "prepositions")

    def draw(rng: np.random.Generator) -> TextExample:
        beginning, kind = pick(rng, chosen), pick(rng, ATTRACTORS[attractor])
        number = int(rng.integers(2))
        subject, near = pick_several(rng, nouns, 2)
        words = {"_preposition": pick(rng, prepositions), "attractor": near[number if kind == "same" else 1 - number]}
        frame = BEGINNINGS[beginning] if kind == "none" else f"{BEGINNINGS[beginning]} {ATTRACTED}"
        clean = fill(frame, **words, subject=subject[number])
        corrupted = fill(frame, **words, subject=subject[1 - number]).text
        answers, wrong = (tuple(f" {verb[of]}" for verb in VERBS) for of in (number, 1 - number))
        group = f"{beginning}_{NUMBERS[number]}_{kind}"
        return TextExample(clean.text, corrupted, answers, wrong, group=group, roles=clean.roles)

    return draw
