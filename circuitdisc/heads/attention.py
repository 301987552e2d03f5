"""Average attention of every head from one named position to another.

Source: the CS224N study of the Transitive Property Problem (attention to the answer token); Wang et al. 2022 (attention from
the end to the names).

Shape letters: L layers, H heads, B examples, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from circuitdisc.checks import CONFIDENCE, SEED, bounded
from circuitdisc.engine.attention import attention_patterns
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.heads.base import OverExamples, Row, examples_of, mean_intervals, plain, plain_rows
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.stats import Partition, partition_of
from circuitdisc.tasks.base import Example, Task


@dataclass(frozen=True)
class AttentionTo(OverExamples):
    """What every head pays from `query` to `key`, example by example.

    Args:
        names: heads, layer by layer.
        values: attention, between 0 and 1. [L, H, B]
        low, high: intervals of the means. [L, H]
        query, key: the positions, as they were named.
        prompts: `clean` or `corrupted`.
    """

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

    def to_dict(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "key": self.key,
            "prompts": self.prompts,
            "split": self.split,
            "mean": plain(self.mean),
            "low": plain(self.low),
            "high": plain(self.high),
            "n": self.n,
            "confidence": self.confidence,
        }


@bounded(confidence=CONFIDENCE, seed=SEED)
def attention_to(
    model: Model,
    task: Task | Sequence[Example],
    *,
    query: str | int = "end",
    key: str | int = "first",
    prompts: Literal["clean", "corrupted"] = "clean",
    split: str = "heldout",
    confidence: float = 0.95,
    seed: int = 0,
    memory: str | int = "4GiB",
    progress: bool = False,
) -> AttentionTo:
    """Measure every head's attention from one position of the prompt to another.

    Args:
        task: a task, or examples.
        query, key: a role of the task's prompts (`s2`), `end` (the last answer position), `first` (token 0), one of these
            with an offset (`s2+1`), or an index (negative from the end).
        prompts: `clean` or `corrupted`; a position is the same token in both.
        split: `train` or `heldout`.
        confidence: coverage of the intervals.
        seed: of the bootstrap.
        memory: budget for activations, as `4GiB`.
        progress: show a progress bar.

    Raises:
        UnknownName: the examples have no such role, or there is no such split or kind of prompts.
        BadSetting: the model is causal and the key lies behind the query in every example, or it has no fast components.
        BadTask: there are no examples, or none corrupted where those are asked for.
    """
    examples = examples_of(task, split)
    if prompts not in ("clean", "corrupted"):
        raise UnknownName("kind of prompts", str(prompts), ("clean", "corrupted"))
    cut = components_of(model, "looking at attention")
    parts, looks_ahead = [], []
    with progress_bar(len(examples), "attention", "example", progress) as bar:
        for some in attention_patterns(model, examples, prompts, memory):
            rows = torch.arange(some.batch.n_examples, device=some.tokens.device)
            at, to = some.batch.position(query), some.batch.position(key)
            looks_ahead.append(bool((to > at).all()))
            parts.append(torch.stack([pattern[:, rows, at, to] for pattern in some.patterns.values()]).double().cpu().numpy())
            bar.update(some.batch.n_examples)
    if cut.spec.causal and all(looks_ahead):
        raise BadSetting(
            f"key={key} lies behind query={query} in every example, and {model.name} attends to what came before alone: "
            f"use query={key} key={query}"
        )
    values = np.concatenate(parts, axis=-1)
    over = partition_of(examples)
    low, high = (np.clip(end, 0.0, 1.0) for end in mean_intervals(values, over, confidence, seed))
    names = tuple(model.graph.heads)
    return AttentionTo(names, values, low, high, str(query), str(key), prompts, split, confidence, over)
