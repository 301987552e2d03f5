"""The Transitive Property Problem: from "a R b" and "b R c" follows "a R c", and the prompt stops before c.

The corrupted prompt has a fourth noun in place of b in the second premise, so that nothing links a to c. The wrong
answer is b, which an induction head would give. Examples of one template form a group.

There are two wordings of every template. The plural one is English: "If all otters are goats and all goats are lamps, then
all otters are". The bare one has its nouns as they stand in a dictionary, whatever the sentence asks for: "If all otter are
goat and goat are lamp, then all otter are". The shipped models of `tpp/` were trained on the bare one, with a tokenizer that
knows no plural. Unless `plural` says which, a tokenizer that writes at least 50 plurals as one token gets the plural wording.

Roles: `a1` and `b1`, the nouns of the first premise; `b2` and `c1`, those of the second (`b2` is the one that the corrupted
prompt replaces); `a2`, the noun of the conclusion; the last token is `end`.

Source: Transitive Property Problem study (CS224N); own wordings and nouns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from circuitdisc.errors import BadSetting
from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.drawn import Names, Setup, deal, pick, pick_several
from circuitdisc.tasks.encode import encode_examples, encode_fitting
from circuitdisc.tasks.follow import tokens_after
from circuitdisc.tasks.library.nouns import NOUNS, PLURALS
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.roles import Filled, fill

ROLES = {"a": "a1", "b": "b1", "link": "b2", "c": "c1", "subject": "a2"}  # of a template's fields


@dataclass(frozen=True)
class TPPTemplate:
    """One wording of the problem.

    Args:
        name: short name, unique among the templates.
        premises: two premises with the fields `a`, `b`, `link` and `c`; the chain holds when `link` is `b`.
        conclusion: the text after the premises, with the field `subject`; it stops just before the answer.
    """

    name: str
    premises: str
    conclusion: str

    def fill(self, a: str, b: str, link: str, c: str, *, subject: str | None = None) -> str:
        """The prompt for these nouns.

        Args:
            a: subject of the first premise.
            b: object of the first premise.
            link: subject of the second premise.
            c: object of the second premise.
            subject: subject of the conclusion; `a` when None.

        Returns:
            The prompt, without a space at its end.
        """
        return self.filled(a, b, link, c, subject=subject).text

    def filled(self, a: str, b: str, link: str, c: str, *, subject: str | None = None) -> Filled:
        """As `fill`, with the roles `a1`, `b1`, `b2`, `c1` and `a2`: where each noun stands."""
        words = {"a": a, "b": b, "link": link, "c": c, "subject": a if subject is None else subject}
        filled = fill(f"{self.premises} {self.conclusion}", **words)
        return Filled(filled.text, {ROLES[name]: span for name, span in filled.roles.items()})


TEMPLATES: tuple[TPPTemplate, ...] = (
    TPPTemplate(
        "implies_if_hence",
        "We know that {a} implies {b}, and that if {link} then {c}.",
        "Hence, by the transitive property, {subject} also implies",
    ),
    TPPTemplate("all_are_are", "If all {a} are {b} and {link} are {c},", "then all {subject} are"),
    TPPTemplate(
        "all_are_type",
        "Suppose all {a} are {b} while {link} is a type of {c}.",
        "From this it can be inferred that all {subject} are a type of",
    ),
    TPPTemplate("implies_if_therefore", "{a} implies {b}. Moreover, if {link} then {c}.", "Therefore {subject} also implies"),
    TPPTemplate(
        "implies_if_so",
        "Given that {a} implies {b}, as well as that if {link} then {c},",
        "one sees by the transitive property that {subject} also implies",
    ),
    TPPTemplate(
        "implies_implies",
        "When {a} implies {b} and {link} implies {c},",
        "then by the transitive property {subject} also implies",
    ),
    TPPTemplate("type_all_are", "{a} is a type of {b}. All {link} are {c}.", "Therefore {subject} is also a type of"),
)
"""The bare wording."""

PLURAL_TEMPLATES: tuple[TPPTemplate, ...] = (
    TPPTemplate(
        "implies_if_hence",
        "We know that {a} imply {b}, and that where there are {link} there are {c}.",
        "Hence, by the transitive property, {subject} also imply",
    ),
    TPPTemplate("all_are_are", "If all {a} are {b} and all {link} are {c},", "then all {subject} are"),
    TPPTemplate(
        "all_are_type",
        "Suppose all {a} are {b}, while all {link} belong to the {c}.",
        "From this it can be inferred that all {subject} belong to the",
    ),
    TPPTemplate(
        "implies_if_therefore",
        "Here {a} imply {b}. Moreover, where there are {link} there are {c}.",
        "Therefore {subject} also imply",
    ),
    TPPTemplate(
        "implies_if_so",
        "Given that {a} imply {b}, as well as that {link} imply {c},",
        "one sees by the transitive property that {subject} also imply",
    ),
    TPPTemplate(
        "implies_implies",
        "When {a} imply {b} and {link} imply {c},",
        "then by the transitive property {subject} also imply",
    ),
    TPPTemplate("type_all_are", "All {a} are {b}. All {link} are {c}.", "Therefore all {subject} are also"),
)
"""The plural wording, of the same names."""


LEAST_NOUNS = 4
LEAST_PLURALS = 50  # of one token, for the plural wording where none is asked for
TRIES = 8  # prompts drawn for each one wanted, where some are left out


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    templates: Names = None,
    plural: bool | None = None,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> Task:
    """Draw TPP examples; what every builder takes and raises stands in `drawn_task`.

    Args:
        templates: names of the templates to draw from; None: all seven.
        plural: True for the plural wording, False for the bare one; None: as the tokenizer knows plurals.
        first_token: draw nouns of any number of tokens and score the first; else only nouns of one token.
    """
    setup = Setup("tpp", model)
    tokenizer = setup.tokenizer
    if plural not in (None, True, False):
        raise BadSetting(f"plural={plural!r} cannot be used in task 'tpp': give true, false, or leave it out")
    if plural is None:
        after = tokens_after("all", [f" {word}" for word in PLURALS], tokenizer)
        plural = sum(ids is not None and len(ids) == 1 for ids in after) >= LEAST_PLURALS
    wording, words, kind = (PLURAL_TEMPLATES, PLURALS, "plural nouns") if plural else (TEMPLATES, NOUNS, "nouns")
    by_name = {template.name: template for template in wording}
    chosen = [by_name[name] for name in setup.names("template", templates, by_name)]
    wanted = n + n_heldout
    nouns = words if first_token else setup.words(words, kind, need=LEAST_NOUNS)
    most = len(chosen) * len(nouns) * (len(nouns) - 1) * (len(nouns) - 2)
    drawn = min(TRIES * wanted if first_token else wanted, most)
    texts = tpp_examples(drawn, seed, nouns, templates=chosen)
    if first_token:  # nouns of unequal length leave prompts of unequal length, which cannot be used
        examples = encode_fitting(texts, tokenizer, wanted, first_token=True, prepend_bos=prepend_bos)
    else:
        examples = encode_examples(texts, tokenizer, prepend_bos=prepend_bos)
    return deal("tpp", examples, n, n_heldout)


def tpp_examples(
    n: int, seed: int, nouns: Sequence[str] = NOUNS, *, templates: Sequence[TPPTemplate] = TEMPLATES
) -> list[TextExample]:
    """Draw TPP examples, no two with the same clean prompt.

    Args:
        n: number of examples.
        seed: seed of the generator; equal arguments give equal examples.
        nouns: at least four distinct nouns to draw a, b, c and d from.
        templates: templates to draw from, each as likely as the others.
    """
    assert len(set(nouns)) == len(nouns) >= LEAST_NOUNS, "nouns must be four or more distinct words"
    assert n <= len(templates) * len(nouns) * (len(nouns) - 1) * (len(nouns) - 2), "there are not as many"
    rng = np.random.default_rng(seed)
    examples: dict[str, TextExample] = {}
    while len(examples) < n:
        template = pick(rng, templates)
        a, b, c, d = pick_several(rng, nouns, 4)
        clean, roles = template.filled(a, b, b, c)
        corrupted = template.fill(a, b, d, c)
        examples[clean] = TextExample(clean, corrupted, (f" {c}",), (f" {b}",), group=template.name, roles=roles)
    return list(examples.values())
