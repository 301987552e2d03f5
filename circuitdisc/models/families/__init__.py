"""The families that have fast components. A new family is a file with a `FAMILY` and a line in `FAMILIES`."""

from importlib import import_module

from circuitdisc.models.families.family import Family

FAMILIES = (
    "circuitdisc.models.families.gpt2",
    "circuitdisc.models.families.gpt_neox",
    "circuitdisc.models.families.llama",
    "circuitdisc.models.families.gemma",
    "circuitdisc.models.families.gemma1",
    "circuitdisc.models.families.olmo2",
    "circuitdisc.models.families.phi3",
    "circuitdisc.models.families.phi",
    "circuitdisc.models.families.gptj",
    "circuitdisc.models.families.opt",
    "circuitdisc.models.families.bloom",
    "circuitdisc.models.families.falcon",
    "circuitdisc.models.families.granite",
    "circuitdisc.models.families.cohere",
    "circuitdisc.models.families.mixtral",
)


def all_families() -> list[Family]:
    """Every family's declaration."""
    return [import_module(module).FAMILY for module in FAMILIES]


def find_family(model_type: object) -> Family | None:
    """The family of a Hugging Face `model_type`, or None: then the hook-based fallback runs the model."""
    return next((family for family in all_families() if model_type in list(family.titles)), None)


def family_titles() -> list[str]:
    """The names of all architectures with fast components, for messages."""
    return [title for family in all_families() for title in family.titles.values()]


def listed_families() -> str:
    """The same in words."""
    *titles, last = family_titles()
    return f"{', '.join(titles)} and {last}"
