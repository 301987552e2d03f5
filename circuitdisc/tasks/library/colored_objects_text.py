"""Prompts of the colored-objects task: frames, colors and objects, in our own wording."""

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
