"""Prompts of the entity-tracking task: sentences, box labels and objects, in our own wording."""

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
