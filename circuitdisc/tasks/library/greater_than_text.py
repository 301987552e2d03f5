"""Prompts of the greater-than task: frames, things that last for years, and centuries, in our own wording."""

FRAMES: dict[str, str] = {
    "lasted": "The {noun} lasted from the year {century1}{year} to the year {century2}",
    "began": "The {noun} began in the year {century1}{year} and ended in the year {century2}",
    "records": "Records of the {noun} reach from the year {century1}{year} up to the year {century2}",
    "went_on": "Having started in the year {century1}{year}, the {noun} went on until the year {century2}",
}

NOUNS: tuple[str, ...] = (
    *("war", "siege", "drought", "famine", "reign", "voyage", "expedition", "dispute", "campaign", "project", "journey"),
    *("trial", "truce", "alliance", "occupation", "rebellion", "exile", "strike", "tour", "revolt", "conflict", "crisis"),
    *("boycott", "blockade", "ceasefire", "construction", "partnership", "marriage", "friendship", "epidemic", "plague"),
    *("migration", "negotiations", "operation", "pilgrimage", "quarantine", "experiment", "recession", "revolution"),
    *("invasion", "investigation", "survey", "treaty", "embargo", "feud", "lease", "monopoly", "regime", "excavation"),
)

CENTURIES: tuple[str, ...] = ("11", "12", "13", "14", "15", "16", "17")
