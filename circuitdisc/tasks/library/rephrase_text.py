"""Prompts of the rephrase task: frames, nouns, and pairs of an adjective and its synonym, in our own wording.

Adjectives and nouns come in two classes, so that a noun can be what the adjective says of it.
"""

FRAMES: dict[str, str] = {
    "in_other_words": "The {noun} was very {adjective}. In other words, the {_again} was very",
    "rephrased": "Sentence: The {noun} is {adjective}. Rephrased: The {_again} is",
    "without": "She said that the {noun} looked {adjective}. Without using that word again, he agreed that the {_again} looked",
    "synonym": "If a {noun} is {adjective}, then another way to describe that {_again} is to call it",
    "edit": "First draft: a rather {adjective} {noun}. Second draft, with a different word: the same {_again}, rather",
    "reported": "They found the {noun} quite {adjective}, and the newspaper, in its own words, called the {_again} quite",
}

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
