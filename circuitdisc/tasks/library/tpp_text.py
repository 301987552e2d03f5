"""Prompts of the Transitive Property Problem (TPP): from "a R b" and "b R c", continue "a R" with c."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from circuitdisc.tasks.library.nouns import NOUNS
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


@dataclass(frozen=True)
class TPPExample:
    """One problem and its broken twin.

    Args:
        clean: prompt in which c follows.
        corrupted: the same prompt with a fourth noun in place of b in the second premise, so that nothing follows.
        answer: c, without a leading space.
        wrong: b, without a leading space.
        template: name of the template.
        roles: the characters (first, one past the last) of the clean prompt at which each noun stands.
    """

    clean: str
    corrupted: str
    answer: str
    wrong: str
    template: str
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)


def tpp_examples(
    n: int, seed: int, nouns: Sequence[str] = NOUNS, *, templates: Sequence[TPPTemplate] = TEMPLATES
) -> list[TPPExample]:
    """Draw distinct TPP examples.

    Args:
        n: number of examples.
        seed: seed of the generator; equal arguments give equal examples.
        nouns: at least four distinct nouns to draw a, b, c and d from.
        templates: templates to draw from, each as likely as the others.

    Returns:
        `n` examples, no two with the same clean prompt.

    Source:
        Transitive Property Problem study (CS224N): seven templates, random nouns.
    """
    pool = tuple(nouns)
    assert n >= 0, "n must not be negative"
    assert len(set(pool)) == len(pool) >= 4, "nouns must be four or more distinct words"
    assert templates, "templates must not be empty"
    assert 2 * n <= len(templates) * len(pool) * (len(pool) - 1) * (len(pool) - 2), "n is too near all there are"
    rng = np.random.default_rng(seed)
    examples: dict[str, TPPExample] = {}
    while len(examples) < n:
        template = templates[int(rng.integers(len(templates)))]
        a, b, c, d = (pool[i] for i in rng.choice(len(pool), size=4, replace=False))
        clean, roles = template.filled(a, b, b, c)
        examples[clean] = TPPExample(clean, template.fill(a, b, d, c), c, b, template.name, roles)
    return list(examples.values())
