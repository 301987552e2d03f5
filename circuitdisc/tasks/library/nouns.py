"""The nouns that the synthetic tasks draw from."""

NOUNS: tuple[str, ...] = tuple(
    """
    otter badger falcon heron lizard beetle walrus pigeon donkey hamster spider turtle rabbit monkey panther
    camel sparrow lobster weasel squid raven goose moose ferret salmon trout shark whale eagle tiger
    zebra llama goat sheep horse puppy kitten mouse snake frog cricket hornet wasp moth snail worm
    oyster crab gull parrot
    apple cherry lemon melon peach banana grape mango olive carrot onion potato radish spinach cabbage pepper
    garlic ginger walnut almond peanut raisin bread butter cheese yogurt cookie muffin pancake waffle noodle
    soup salad sandwich pickle sugar honey vinegar mustard flour rice bean corn pumpkin celery
    oak willow maple cedar birch tulip daisy orchid fern cactus moss clover ivy bamboo thistle lily
    meadow forest valley canyon desert island lagoon glacier volcano river pond ocean harbor beach cliff cave
    hill prairie swamp waterfall marsh reef boulder pebble gravel sand clay mud dust fog rain snow
    thunder lightning rainbow breeze storm cloud sunset dawn planet comet moon galaxy meteor orbit crater
    hammer wrench chisel ladder shovel bucket saw drill anvil pliers rope chain hook nail screw bolt
    lever pulley wheel gear spring magnet battery lantern candle torch mirror needle thread button zipper ribbon
    scissors basket barrel bottle kettle teapot saucer spoon fork plate bowl mug napkin oven stove
    fridge blender table chair sofa bench stool desk shelf drawer closet carpet curtain pillow blanket mattress
    lamp clock window door roof chimney balcony attic cellar kitchen bedroom hallway garage garden fence gate
    porch brick tile
    castle tower bridge tunnel temple museum library school hospital bakery market factory prison theater stadium
    hotel tavern village city street highway avenue plaza airport station
    engine rocket tractor bicycle scooter wagon carriage truck bus taxi train tram ferry canoe yacht submarine
    airplane helicopter glider balloon anchor paddle
    violin guitar trumpet piano drum flute cello harp banjo tuba melody rhythm opera poem novel
    letter diary journal atlas poster pencil crayon brush canvas statue puzzle domino marble kite
    jacket sweater scarf mitten glove boot sandal slipper helmet bonnet apron belt pocket collar sleeve shirt
    doctor farmer baker tailor painter sailor pilot soldier teacher lawyer banker butcher plumber barber actor
    dancer singer writer poet judge clerk monk king queen prince knight wizard giant pirate
    copper silver iron gold nickel zinc granite diamond crystal emerald ruby pearl amber
    coin ticket stamp purse wallet crown medal flag trophy parcel envelope calendar compass telescope microscope
    camera radio whistle bell umbrella broom sponge robot ladle
    pitcher mosaic
    """.split()  # noqa: SIM905 - a list literal would be four hundred quoted lines
)

_UNCOUNTED = frozenset(
    """
    squid moose salmon trout sheep lightning thunder spinach garlic ginger bread butter cheese yogurt sugar honey vinegar
    mustard flour rice corn celery moss ivy bamboo clover sand gravel clay mud dust fog rain snow dawn pliers scissors copper
    silver iron gold nickel zinc granite soup
    """.split()  # noqa: SIM905 - as above
)
_IRREGULAR = {
    **{"mouse": "mice", "goose": "geese", "shelf": "shelves", "scarf": "scarves", "cactus": "cacti"},
    **{noun: f"{noun}es" for noun in ("mango", "potato", "volcano", "domino")},
}


def _plural(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


PLURALS: tuple[str, ...] = tuple(_plural(noun) for noun in NOUNS if noun not in _UNCOUNTED)
"""The nouns that are counted, in the plural."""
