"""Head roles: which heads attend by a simple pattern.

Each role names, for some query tokens of a prompt, the one key that a head of this role attends to:

    first_token      the first token of the prompt
    self             the query itself
    previous_token   the token before the query
    duplicate_token  the latest earlier occurrence of the query's own token
    induction        the token after that occurrence

A head's score on an example is its mean attention to that key over the query tokens that have one. The first token of a
prompt is no query: in a causal model it can only attend to itself. A head holds a role if its score lies above `threshold` on
more than `share` of the examples in which the role is defined.

Source: the CS224N study of the Transitive Property Problem (score above 0.4 on more than 80 % of the examples); Elhage et al.
2021 and Olsson et al. 2022 (previous-token and induction heads); Wang et al. 2022 (duplicate-token heads).

Shape letters: P roles, L layers, H heads, B examples, T positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.checks import EXAMPLES, SHARE, Whole, bounded
from circuitdisc.engine.attention import Attended, attention_patterns
from circuitdisc.engine.measuring import Reading, mean_intervals
from circuitdisc.errors import UnknownName
from circuitdisc.graph import heads_where
from circuitdisc.heads.base import as_list
from circuitdisc.models.model import Model
from circuitdisc.options import OnSplit, Option, takes
from circuitdisc.results import OverExamples, Row, plain_rows
from circuitdisc.stats import partition
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Example, Task

ROLES = ("first_token", "self", "previous_token", "duplicate_token", "induction")
Prompts = Literal["task", "repeated"]


@dataclass(frozen=True, repr=False)
class HeadRoles(OverExamples):
    """Scores of every head on every role, example by example.

    Args:
        roles: names of the roles. Length P.
        scores: mean attention to the role's key; NaN in examples where the role has no query token. [P, L, H, B]
        mean: mean score over the examples where it is defined. [P, L, H]
        low, high: intervals of the means. [P, L, H]
        share: share of those examples whose score lies above the threshold. [P, L, H]
        n_defined: examples where the role is defined. [P]
        threshold, min_share: a role is held if the score lies above `threshold` in more than `min_share` of the examples.
        prompts: `task` or `repeated`.
    """

    KEYS = (
        "roles", "mean", "low", "high", "share", "heads=heads_by_role", "n", "n_defined", "threshold", "min_share", "prompts",
        "confidence",
    )  # fmt: skip

    roles: tuple[str, ...]
    scores: Float[np.ndarray, "P L H B"]
    mean: Float[np.ndarray, "P L H"]
    low: Float[np.ndarray, "P L H"]
    high: Float[np.ndarray, "P L H"]
    share: Float[np.ndarray, "P L H"]
    n_defined: tuple[int, ...]
    threshold: float
    min_share: float
    prompts: str
    confidence: float

    @property
    def heads_by_role(self) -> dict[str, list[str]]:
        """Names of the heads that hold each role."""
        return {role: self.heads(role) for role in self.roles}

    @property
    def holds(self) -> Bool[np.ndarray, "P L H"]:
        """True where a head holds a role; False everywhere for a role that is defined in no example."""
        return np.nan_to_num(self.share, nan=-1.0) > self.min_share

    def heads(self, role: str) -> list[str]:
        """Names of the heads that hold a role.

        Raises:
            UnknownName: there is no such role.
        """
        if role not in self.roles:
            raise UnknownName("role", role, self.roles)
        return heads_where(self.holds[self.roles.index(role)])

    def table(self) -> list[Row]:
        """A line a head: its score on every role (None where undefined), and the roles that it holds."""
        _, n_layers, n_heads = self.mean.shape
        rows: list[Row] = []
        for layer in range(n_layers):
            for head in range(n_heads):
                scores = {role: self.mean[p, layer, head] for p, role in enumerate(self.roles)}
                roles = [role for p, role in enumerate(self.roles) if self.holds[p, layer, head]]
                rows.append({"head": f"a{layer}.h{head}", **scores, "roles": ", ".join(roles)})
        return plain_rows(rows)

    def by_role(self) -> list[Row]:
        """A line a role: in how many examples it is defined, and the heads that hold it."""
        return [
            {"role": role, "defined in": n, "heads": ", ".join(self.heads(role)) if n else "n/a: no query token has such a key"}
            for role, n in zip(self.roles, self.n_defined, strict=True)
        ]


class RoleRules(OnSplit, total=False):
    """When a head holds a role."""

    roles: Annotated[Sequence[str], Option(ROLES, "which roles.")]
    threshold: Annotated[float, Option(0.4, "attention above which an example counts.", SHARE)]
    min_share: Annotated[float, Option(0.8, "share of the examples that must count.", SHARE)]


@bounded(n=EXAMPLES, length=Whole(1, 100_000))
@takes(RoleRules)
def head_roles(
    model: Model,
    task: Task | Sequence[Example] | None = None,
    *,
    prompts: Prompts = "task",
    n: int = 100,
    length: int = 16,
    **options: Unpack[RoleRules],
) -> HeadRoles:
    """Score every head on every role.

    Args:
        task: a task, or examples; not needed for repeated tokens.
        prompts: `task`: its clean prompts; `repeated`: random tokens said twice (the prompts of task `induction`), on which
            every role is defined.
        n, length: with `repeated`, how many prompts, and how many tokens are said twice.
        seed: of the bootstrap and of repeated tokens.

    Raises:
        BadSetting: a number is out of its bounds, or the model has no fast components.
        BadTask: there are no examples.
        UnknownName: there is no such role, split or kind of prompts.
    """
    given: Any = options
    roles = tuple(dict.fromkeys(as_list("roles", given["roles"])))
    for role in roles:
        if role not in ROLES:
            raise UnknownName("role", str(role), ROLES)
    if prompts not in ("task", "repeated"):
        raise UnknownName("kind of prompts", str(prompts), ("task", "repeated"))
    if prompts == "repeated":
        drawn: Any = {"n": n, "n_heldout": 1, "seed": given["seed"], "length": length}
        task = load_task("induction", model, **drawn).train
    setup = Reading.of(model, () if task is None else task, options)
    parts = []
    with setup.bar(len(setup.examples), "head roles", "example") as bar:
        for some in attention_patterns(model, setup.examples, memory=setup.memory):
            parts.append(role_scores(some, roles).cpu().numpy())
            bar.update(some.batch.n_examples)
    named = {"roles": roles, "threshold": given["threshold"], "min_share": given["min_share"], "prompts": prompts}
    return _summary(setup, np.concatenate(parts, axis=-1), named)


def role_scores(some: Attended, roles: Sequence[str]) -> Float[Tensor, "P L H B"]:
    """Scores of all heads on some examples."""
    targets = torch.stack([role_keys(some, role) for role in roles]).double()  # [P, B, T, T2]
    n_queries = targets.sum((-1, -2))
    weights = targets / n_queries.clamp(min=1)[..., None, None]
    scores = [torch.einsum("hbij,pbij->phb", pattern.double(), weights) for pattern in some.patterns.values()]
    return torch.where(n_queries[:, None, None] > 0, torch.stack(scores, dim=1), torch.nan)


def role_keys(some: Attended, role: str) -> Bool[Tensor, "B T T2"]:
    """True at the one key that a query token of this role attends to; a query without one has none."""
    tokens, is_token, positions = some.tokens, some.batch.is_token, some.batch.position_ids
    both = is_token[:, :, None] & is_token[:, None, :] & (positions[:, :, None] > 0)
    behind = positions[:, :, None] - positions[:, None, :]  # how far the key lies behind the query
    if role == "first_token":
        return both & (positions[:, None, :] == 0)
    if role == "self":
        return both & (behind == 0)
    if role == "previous_token":
        return both & (behind == 1)
    same = both & (tokens[:, :, None] == tokens[:, None, :]) & (behind > 0)
    nearest = torch.where(same, behind, behind.shape[-1] + 1).amin(-1, keepdim=True)
    if role == "duplicate_token":
        return same & (behind == nearest)
    # the token after the earlier occurrence lies before the query, or the query would be its own key
    return both & same.any(-1, keepdim=True) & (behind == nearest - 1) & (behind > 0)


def _summary(setup: Reading, scores: Float[np.ndarray, "P L H B"], named: Mapping[str, Any]) -> HeadRoles:
    """The scores of all roles with their means, shares and intervals."""
    mean, low, high, share = (np.full(scores.shape[:3], np.nan) for _ in range(4))
    groups = [example.group for example in setup.examples]
    defined = ~np.isnan(scores[:, 0, 0])
    for p, at in enumerate(defined):
        if at.any():
            some = scores[p][..., at]
            mean[p], share[p] = some.mean(-1), (some > named["threshold"]).mean(-1)
            over = partition(some.shape[-1], [groups[example] for example in np.flatnonzero(at).tolist()])
            ends = mean_intervals(some, over, setup.confidence, setup.seed)
            low[p], high[p] = (np.clip(end, 0.0, 1.0) for end in ends)
    n_defined = tuple(int(count) for count in defined.sum(1))
    measured: Any = {"scores": scores, "mean": mean, "low": low, "high": high, "share": share, "n_defined": n_defined}
    return HeadRoles(**measured, confidence=setup.confidence, **named)
