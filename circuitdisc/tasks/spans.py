"""Spans: every token of a prompt belongs to exactly one, named by the roles of a task.

    After Mary and John ... , John gave the book to       roles io, s1, s2, object, end
    before:all | io | after:io | s1 | after:s1 | s2 | ... | object | after:object | end

A role has the token at which it stands, and the tokens behind it up to the next role are `after:ROLE`. They are named by what
comes before them, since that is all that a causal model has seen there: the first token of `after:s1` is S1+1 of the published
IOI circuit. Prompts of unequal lengths, and roles in another order, fall into the same spans.

Source: the dataset schema of Haklay et al. 2025, "Position-aware Automatic Circuit Discovery", section 4
(https://arxiv.org/abs/2502.04577), here from a task's own roles.

Shape letters: P spans, B examples, T positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from circuitdisc.errors import BadFile, BadSetting, BadTask, shown
from circuitdisc.tasks.base import Example, PromptBatch
from circuitdisc.tasks.roles import position_of, role_names

BEFORE, AFTER = "before:all", "after:"
MOST_SPANS = 100


@dataclass(frozen=True)
class Spans:
    """The spans that the tokens of some examples fall into.

    Args:
        roles: positions that are spans of their own; of two at one token the first has it.
        names: of all spans, in the order in which they mostly stand.
        read: those in which answers are read.
        sees: span -> those at which a token of it may look, in some example.
    """

    roles: tuple[str, ...]
    names: tuple[str, ...]
    read: tuple[str, ...]
    sees: Mapping[str, tuple[str, ...]] = field(hash=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.names) <= MOST_SPANS or len(set(self.names)) < len(self.names):
            raise BadFile(f"{len(self.names):,} names of spans: from 1 to {MOST_SPANS} different ones can be handled")
        named = {*self.read, *self.sees, *(name for seen in self.sees.values() for name in seen)}
        if unknown := sorted(named - set(self.names)):
            raise BadFile(f"{shown(unknown[0])} is none of the spans ({', '.join(self.names[:20])})")

    @classmethod
    def of(cls, examples: Sequence[Example], roles: Sequence[str] | None = None, causal: bool = True) -> "Spans":
        """The spans of examples.

        Args:
            roles: None takes all that every example has, and `end`.
            causal: False where tokens see later ones.

        Raises:
            UnknownName: an example lacks a role.
            BadSetting: a role that was asked for has no token of its own in any example, or there are too many.
        """
        chosen = tuple(dict.fromkeys((*role_names(examples), "end") if roles is None else map(str, roles)))
        places: dict[str, list[float]] = {}
        sees: dict[str, set[str]] = {}
        read: set[str] = set()
        for example in examples:
            of_tokens = span_names(example, chosen)
            first = {name: at for at, name in reversed(list(enumerate(of_tokens)))}
            for at, name in enumerate(of_tokens):
                sees.setdefault(name, set()).update(other for other in first if not causal or first[other] <= at)
            for name, at in first.items():
                places.setdefault(name, []).append(at / len(example))
            read |= {of_tokens[at] for at in example.positions}
        if lost := [role for role in chosen if roles is not None and role not in places]:
            raise BadSetting(f"role {lost[0]} stands at the token of another one in every example: leave one of the two out")
        if len(places) > MOST_SPANS:
            raise BadSetting(f"{len(chosen):,} roles make {len(places):,} spans, over {MOST_SPANS}: name fewer (roles=)")
        names = tuple(sorted(places, key=lambda name: np.mean(places[name])))
        ordered = {name: tuple(other for other in names if other in sees[name]) for name in names}
        return cls(chosen, names, tuple(name for name in names if name in read), ordered)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def is_read(self) -> Bool[np.ndarray, "P"]:
        """Where answers are read."""
        return np.array([name in self.read for name in self.names])

    @cached_property
    def looks_at(self) -> Bool[np.ndarray, "P P2"]:
        """Whether a query in the first span may look at a key in the second."""
        return np.array([[other in self.sees.get(name, ()) for other in self.names] for name in self.names])

    def tokens(self, example: Example) -> Int[np.ndarray, "T"]:
        """The span of each token of an example.

        Raises:
            UnknownName: it lacks a role.
            BadTask: it has a span that these examples did not have.
        """
        names = span_names(example, self.roles)
        if unknown := [name for name in names if name not in self.names]:
            raise BadTask(f"a prompt has tokens in {unknown[0]}, where no prompt had any that the spans were made of")
        return np.array([self.names.index(name) for name in names])

    def of_batch(self, batch: PromptBatch) -> Int[np.ndarray, "B T"]:
        """The span of each token of padded prompts; -1 at padding."""
        spans = np.full(tuple(batch.clean.shape), -1)
        for row, example, offset in zip(spans, batch.examples, batch.offsets, strict=True):
            row[offset : offset + len(example)] = self.tokens(example)
        return spans


def span_names(example: Example, roles: Sequence[str]) -> list[str]:
    """The name of each token's span.

    Raises:
        UnknownName: the example lacks a role.
    """
    at: dict[int, str] = {}
    for role in roles:
        at.setdefault(position_of(example, role), role)
    names, rest = list[str](), BEFORE
    for place in range(len(example)):
        names.append(at.get(place, rest))
        rest = f"{AFTER}{at[place]}" if place in at else rest
    return names
