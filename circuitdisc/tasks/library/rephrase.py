"""Rephrase: "The king was quick. In other words, the king was" is continued with "swift", not with "quick".

A sentence says something with an adjective, and the prompt asks to say it again in other words: the synonym is the answer,
the adjective itself, which a copying head would give, the wrong one. In the corrupted prompt the sentence has the adjective of
another pair, so that neither follows. Examples of one frame form a group.

Roles: `adjective` and `noun`, where the sentence has them; the last token is `end`.

Source: the REPHRASE comparison of a base model with its instruction-tuned one (logit of "swift" minus logit of "quick"); own
frames and pairs.
"""

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick, pick_several
from circuitdisc.tasks.roles import fill

FRAMES: dict[str, str] = {
    "in_other_words": "The {noun} was {adjective}. In other words, the {_again} was",
    "rephrased": "Sentence: The {noun} is {adjective}. Rephrased: The {_again} is",
    "without": "She said that the {noun} looked {adjective}. Without using that word again, he agreed that the {_again} looked",
    "synonym": "If a {noun} is {adjective}, then one can also say, with a synonym, that the {_again} is",
    "edit": "First draft: the {noun} seemed {adjective}. Second draft, with a different word: the {_again} seemed",
    "reported": "They called the {noun} {adjective}, and the newspaper, in its own words, called the {_again}",
}

# nouns and adjectives come in two classes, so that a noun can be what the adjective says of it
NOUNS: dict[str, tuple[str, ...]] = {
    "person": ("man", "woman", "boy", "girl", "doctor", "teacher", "king", "queen", "soldier", "writer", "singer", "lawyer"),
    "thing": ("house", "car", "boat", "river", "road", "room", "garden", "bridge", "box", "train", "machine", "town"),
}

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {  # the adjective that the sentence uses, and its synonym
    "person": (
        *(("quick", "swift"), ("smart", "clever"), ("brave", "courageous"), ("happy", "glad"), ("sad", "unhappy")),
        *(("angry", "furious"), ("rich", "wealthy"), ("famous", "renowned"), ("calm", "peaceful"), ("tired", "weary")),
        *(("scared", "afraid"), ("kind", "gentle"), ("strong", "powerful"), ("funny", "amusing"), ("thin", "slim")),
        *(("honest", "truthful"), ("lonely", "isolated"), ("careful", "cautious"), ("ill", "sick")),
    ),
    "thing": (
        *(("fast", "rapid"), ("big", "large"), ("small", "little"), ("odd", "strange"), ("silent", "quiet")),
        *(("cold", "chilly"), ("old", "ancient"), ("pretty", "beautiful"), ("dirty", "filthy"), ("wet", "damp")),
        *(("empty", "vacant"), ("huge", "enormous"), ("wide", "broad"), ("costly", "expensive"), ("new", "modern")),
        *(("useful", "helpful"), ("safe", "secure"), ("hidden", "concealed"), ("common", "ordinary")),
        *(("terrible", "awful"), ("shiny", "bright"), ("broken", "damaged")),
    ),
}


@drawn_task("rephrase")
def build(setup: Setup, *, frames: Names = None) -> Draw:
    """Draw rephrase examples.

    Args:
        setup: the model's tokenizer.
        frames: names of the frames to draw from; None: all.
    """
    chosen = setup.names("frame", frames, FRAMES)
    adjectives = list(dict.fromkeys(word for pairs in PAIRS.values() for pair in pairs for word in pair))
    known = set(setup.words(adjectives, "adjectives", need=4))
    nouns = set(setup.words([noun for named in NOUNS.values() for noun in named], "nouns"))
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

    def draw(rng: np.random.Generator) -> TextExample:
        frame = pick(rng, chosen)
        pairs, named = things[pick(rng, usable)]
        noun = pick(rng, named)
        (said, synonym), (other, _) = pick_several(rng, pairs, 2)
        words = {"noun": noun, "_again": noun}
        clean = fill(FRAMES[frame], **words, adjective=said)
        corrupted = fill(FRAMES[frame], **words, adjective=other).text
        return TextExample(clean.text, corrupted, (f" {synonym}",), (f" {said}",), group=frame, roles=clean.roles)

    return draw
