"""Prompts of the indirect-object task: frames, names, places and objects, in our own wording."""

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
