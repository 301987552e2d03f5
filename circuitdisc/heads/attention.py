"""Average attention of every head from one named position to another.

Source: the CS224N study of the Transitive Property Problem (attention to the answer token); Wang et al. 2022 (attention from
the end to the names).

Shape letters: L layers, H heads, B examples, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.engine.attention import attention_patterns
from circuitdisc.engine.measuring import Reading
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.models.model import Model
from circuitdisc.options import OnSplit, takes
from circuitdisc.results import Row, ValuesOverExamples, plain_rows
from circuitdisc.stats import Partition
from circuitdisc.tasks.base import Example, Task


@dataclass(frozen=True, repr=False)
class AttentionTo(ValuesOverExamples):
    """What every head pays from `query` to `key`, example by example.

    Args:
        names: heads, layer by layer.
        values: attention, between 0 and 1. [L, H, B]
        low, high: intervals of the means. [L, H]
        query, key: the positions, as they were named.
        prompts: `clean` or `corrupted`.
    """

    KEYS = ("query", "key", "prompts", "split", "mean", "low", "high", "n", "confidence")

    names: tuple[str, ...]
    values: Float[np.ndarray, "L H B"]
    low: Float[np.ndarray, "L H"]
    high: Float[np.ndarray, "L H"]
    query: str
    key: str
    prompts: str
    split: str
    confidence: float
    over: Partition | None = None

    def table(self) -> list[Row]:
        """Heads, the most attentive first."""
        mean, low, high = self.mean.ravel(), self.low.ravel(), self.high.ravel()
        return plain_rows(
            {"head": self.names[h], "attention": mean[h], "low": low[h], "high": high[h], "n": self.n}
            for h in np.argsort(-mean, kind="stable").tolist()
        )


@takes(OnSplit)
def attention_to(
    model: Model,
    task: Task | Sequence[Example],
    *,
    query: str | int = "end",
    key: str | int = "first",
    prompts: Literal["clean", "corrupted"] = "clean",
    **options: Unpack[OnSplit],
) -> AttentionTo:
    """Measure every head's attention from one position of the prompt to another.

    Args:
        task: a task, or examples.
        query, key: a role of the task's prompts (`s2`), `end` (the last answer position), `first` (token 0), one of these
            with an offset (`s2+1`), or an index (negative from the end).
        prompts: `clean` or `corrupted`; a position is the same token in both.

    Raises:
        UnknownName: the examples have no such role, or there is no such split or kind of prompts.
        BadSetting: the model is causal and the key lies behind the query in every example, or it has no fast components.
        BadTask: there are no examples, or none corrupted where those are asked for.
    """
    setup = Reading.of(model, task, options)
    if prompts not in ("clean", "corrupted"):
        raise UnknownName("kind of prompts", str(prompts), ("clean", "corrupted"))
    components = components_of(model, "looking at attention")
    parts, looks_ahead = [], []
    with setup.bar(len(setup.examples), "attention", "example") as bar:
        for some in attention_patterns(model, setup.examples, prompts, setup.memory):
            rows = torch.arange(some.batch.n_examples, device=some.tokens.device)
            at, to = some.batch.position(query), some.batch.position(key)
            looks_ahead.append(bool((to > at).all()))
            parts.append(torch.stack([pattern[:, rows, at, to] for pattern in some.patterns.values()]).double().cpu().numpy())
            bar.update(some.batch.n_examples)
    if components.spec.causal and all(looks_ahead):
        raise BadSetting(
            f"key={key} lies behind query={query} in every example, and {model.name} attends to what came before alone: "
            f"use query={key} key={query}"
        )
    values = np.concatenate(parts, axis=-1)
    low, high = (np.clip(end, 0.0, 1.0) for end in setup.intervals(values))
    names = tuple(model.graph.heads)
    return AttentionTo(names, values, low, high, str(query), str(key), prompts, **setup.about())
