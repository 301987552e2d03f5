"""Attention of two checkpoints from one named position to others, side by side, and the difference for every head.

One model is in memory at a time; its patterns are looked at layer by layer and let go.

Source: the REPHRASE study (attention from a query token to a key token in both models, and its difference over all heads).

Shape letters: R roles (keys), L layers, H heads, B examples.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.checkpoints.listing import check_same, load
from circuitdisc.engine.cross.plan import plan_cross, shapes_of
from circuitdisc.engine.forward import clean_states
from circuitdisc.engine.measuring import examples_of, mean_intervals
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting
from circuitdisc.heads.base import as_list
from circuitdisc.models.model import Model
from circuitdisc.options import OnSplit, of_others, takes
from circuitdisc.progress import progress_bar
from circuitdisc.results import OverExamples, Row, plain_rows
from circuitdisc.stats import Partition, partition_of
from circuitdisc.tasks.base import Example, Task, collate
from circuitdisc.tasks.roles import position_of, role_names

ModelLike = str | Path | Model


@dataclass(frozen=True, repr=False)
class AttentionDifference(OverExamples):
    """What every head of two checkpoints pays from `query` to each of `keys`, example by example.

    Args:
        names: heads, layer by layer.
        base, tuned: attention, between 0 and 1. [R, L, H, B]
        low, high: intervals of the mean difference, tuned minus base. [R, L, H]
        query, keys: the positions, as they were named.
    """

    KEYS = ("query", "keys", "base", "tuned", "difference", "low", "high", "split", "n", "confidence")

    names: tuple[str, ...]
    base: Float[np.ndarray, "R L H B"]
    tuned: Float[np.ndarray, "R L H B"]
    low: Float[np.ndarray, "R L H"]
    high: Float[np.ndarray, "R L H"]
    query: str
    keys: tuple[str, ...]
    split: str
    confidence: float
    over: Partition | None = None

    @property
    def difference(self) -> Float[np.ndarray, "R L H"]:
        """Tuned minus base, mean over examples."""
        return (self.tuned - self.base).mean(-1)

    @property
    def largest(self) -> int:
        """The key to which one head's attention differs most."""
        return int(np.abs(self.difference).max((1, 2)).argmax())

    def table(self, key: str | int | None = None) -> list[Row]:
        """Heads, the one whose attention to a key differs most first.

        Args:
            key: one of `keys`; None: that with the largest difference.
        """
        at = self.largest if key is None else self.keys.index(str(key))
        base, tuned, difference = self.base[at].mean(-1).ravel(), self.tuned[at].mean(-1).ravel(), self.difference[at].ravel()
        low, high = self.low[at].ravel(), self.high[at].ravel()
        return plain_rows(
            {
                "head": self.names[h], "base": base[h], "tuned": tuned[h], "difference": difference[h],
                "low": low[h], "high": high[h], "n": self.n,
            }
            for h in np.argsort(-np.abs(difference), kind="stable").tolist()
        )  # fmt: skip

    def words(self, head: int, most: int = 3) -> str:
        """Where a head looks, in either model, its largest keys first: `correct_object 0.62 → 0.81, first 0.20 → 0.05`."""
        base, tuned = (x.reshape(len(self.keys), -1, self.n)[:, head].mean(-1) for x in (self.base, self.tuned))
        order = np.argsort(-np.maximum(base, tuned), kind="stable")[:most]
        return ", ".join(f"{self.keys[r]} {base[r]:.2f} → {tuned[r]:.2f}" for r in order)


class OnSplitOfModels(OnSplit, total=False, extra_items=Any):
    """Which examples are measured; further settings are those of `load_model`, for models by name: `dtype`, `device`."""


@takes(OnSplitOfModels)
def attention_difference(
    base: ModelLike,
    tuned: ModelLike,
    task: Task | Sequence[Example],
    *,
    query: str | int = "end",
    keys: str | int | Sequence[str | int] | None = None,
    **options: Unpack[OnSplitOfModels],
) -> AttentionDifference:
    """Compare the attention of two checkpoints on the same prompts.

    Args:
        base, tuned: names, folders, or loaded models.
        query: from: a role of the task's prompts, `end`, `first`, one of these with an offset, or an index.
        keys: to: one or several, written alike; None: `first` and all roles of the task that do not lie behind the query.
        settings: of `load_model`, for names: `dtype`, `device`.

    Raises:
        BadModel: the two do not share an architecture and a vocabulary.
        UnknownName: the examples have no such role, or there is no such split.
        BadSetting: a key lies behind the query in every example of a causal model, or a model has no fast components.
    """
    check_same([base, tuned])
    given: Any = options
    settings, examples = of_others(OnSplitOfModels, given), examples_of(task, given["split"])
    chosen = default_keys(examples, query) if keys is None else tuple(as_list("keys", keys))
    measured, names = [], ()
    for checkpoint in (base, tuned):
        model = checkpoint if isinstance(checkpoint, Model) else load(str(checkpoint), **settings)
        measured.append(attention_between(model, examples, query, chosen, given["memory"], given["progress"]))
        names = tuple(model.graph.heads)
        del model
        gc.collect()
    drawn = (given["split"], given["confidence"], given["seed"], partition_of(examples))
    return compare_attention(names, measured[0], measured[1], query, chosen, *drawn)


def compare_attention(
    names: tuple[str, ...],
    base: Float[np.ndarray, "R L H B"],
    tuned: Float[np.ndarray, "R L H B"],
    query: str | int,
    keys: Sequence[str | int],
    split: str,
    confidence: float,
    seed: int,
    over: Partition | None = None,
) -> AttentionDifference:
    """Two measurements with the intervals of their difference."""
    low, high = (np.clip(end, -1.0, 1.0) for end in mean_intervals(tuned - base, over, confidence, seed))
    return AttentionDifference(names, base, tuned, low, high, str(query), tuple(map(str, keys)), split, confidence, over)


def default_keys(examples: Sequence[Example], query: str | int) -> tuple[str, ...]:
    """`first` and the roles that every example has, not behind the query in any; one position is named once."""
    at = [position_of(example, query) for example in examples]
    by_place: dict[tuple[int, ...], str] = {}
    for name in ("first", *reversed(role_names(examples))):  # a role that says more stands last: `correct_object`
        where = tuple(position_of(example, name) for example in examples)
        if all(key <= end for key, end in zip(where, at, strict=True)):
            by_place.setdefault(where, name)
    return tuple(by_place.values())


def attention_between(
    model: Model,
    examples: Sequence[Example],
    query: str | int,
    keys: Sequence[str | int],
    memory: str | int = "4GiB",
    progress: bool = False,
) -> Float[np.ndarray, "R L H B"]:
    """Every head's attention from one position to others, example by example.

    Raises:
        UnknownName, BadTask: as `position_of`.
        BadSetting: a key lies behind the query in every example of a causal model.
    """
    components = components_of(model, "looking at attention")
    _check_order(components.spec.causal, examples, query, keys, model.name)
    lengths = [len(example) for example in examples]
    plan = plan_cross(shapes_of(model), lengths, (), parse_memory(memory), readout=False, on_cpu=model.device.type == "cpu")
    parts = []
    with progress_bar(len(examples), f"attention of {model.name}", "example", progress) as bar:
        for first, last in plan.chunks:
            batch = collate(examples[first:last], device=model.device)
            rows = torch.arange(batch.n_examples, device=model.device)
            at, to = batch.position(query), [batch.position(key) for key in keys]
            frame = components.frame(batch.is_token, batch.position_ids)
            layers = [
                torch.stack([state.pattern[:, rows, at, key] for key in to]).double().cpu()
                for state in clean_states(components, model.graph, batch, frame)
            ]
            parts.append(torch.stack(layers, dim=1).numpy())
            bar.update(batch.n_examples)
    return np.concatenate(parts, axis=-1)


def _check_order(causal: bool, examples: Sequence[Example], query: str | int, keys: Sequence[str | int], name: str) -> None:
    ends = [position_of(example, query) for example in examples]
    for key in keys:
        if causal and all(position_of(example, key) > end for example, end in zip(examples, ends, strict=True)):
            raise BadSetting(
                f"key={key} lies behind query={query} in every example, and {name} attends to what came before alone: "
                f"use query={key} key={query}"
            )
