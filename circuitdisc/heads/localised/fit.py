"""How the edits of `localised` are learned or swept: on train examples, chosen on a second split.

Shape letters: n heads, K head width, L layers, H heads, B examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.checks import BATCH, EPOCHS, RATE, Real
from circuitdisc.engine.changed_heads import Ready, head_values, hold, metric_values
from circuitdisc.engine.path_effects import ALL, Positions
from circuitdisc.errors import BadFile, BadSetting
from circuitdisc.heads.localised.head_edits import HeadEdit, edit_values
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, Option
from circuitdisc.results import Row
from circuitdisc.schemas import validate
from circuitdisc.tasks.base import Example

LOSS = get_metric("log_prob")
PRICES = Real(0, 1e6, many=True)
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.5, 2.0, 4.0, 8.0)


class EditFitting(Drawing, total=False):
    """How an edit is learned and chosen."""

    l1: Annotated[
        float | Sequence[float],
        Option((0.0, 0.001), "price of the offsets' absolute values, for each of which an edit is trained (`offset`).", PRICES),
    ]
    selection_l1: Annotated[float, Option(0.001, "price of the scalings' absolute values in `lofit`.", Real(0, 1e6))]
    factors: Annotated[
        float | Sequence[float],
        Option(FACTORS, "what the attention to the first token is multiplied by (`first_token`).", PRICES),
    ]
    epochs: Annotated[int, Option(10, "passes over the examples trained on; after each the edit is a candidate.", EPOCHS)]
    learning_rate: Annotated[float | None, Option(None, "of Adam; None: 0.01 for offsets, 0.1 for shares.", RATE)]
    batch: Annotated[int, Option(16, "examples in a mini-batch.", BATCH)]
    metric: Annotated[
        str | Metric | None,
        Option(None, "what candidates are chosen by, and what is reported beside accuracy; None: `log_prob`."),
    ]


@dataclass(frozen=True)
class EditFit:
    """How an edit is learned, checked; see `EditFitting`."""

    l1: tuple[float, ...]
    factors: tuple[float, ...]
    epochs: int
    learning_rate: float
    batch: int
    seed: int
    metric: Metric


@dataclass
class Splits:
    """The examples of each split, made ready once for every layer that a run may begin at."""

    model: Model
    examples: dict[str, Sequence[Example]]
    batch: int
    memory: str | int
    _ready: dict[tuple[str, int, Positions], list[list[Ready]]] = field(default_factory=dict)

    def batches(self, split: str, edit: HeadEdit | None) -> list[list[Ready]]:
        """A split, for runs with an edit of these heads and this kind."""
        first = self.model.graph.n_layers if edit is None else edit.first_layer(self.model.graph)
        at = ALL if edit is None else edit.positions
        if (split, first, at) not in self._ready:
            self._ready[split, first, at] = hold(
                self.model, Ablation("zero"), self.examples[split], LOSS, batch=self.batch, first=first, positions=at,
                memory=self.memory, name="localised",
            )  # fmt: skip
        return self._ready[split, first, at]

    def values(self, split: str, edit: HeadEdit | None, metrics: Sequence[Metric]) -> dict[str, Float[np.ndarray, "B"]]:
        """Metric values of a split, example by example."""
        examples = [ready for pieces in self.batches(split, edit) for ready in pieces]
        by_metric = edit_values(self.model, examples, edit, metrics)
        return {name: values.double().cpu().numpy() for name, values in by_metric.items()}


@dataclass(frozen=True)
class Learned:
    """The edit that was chosen, and all that it was chosen from.

    Args:
        history: a line for every candidate: what it was made with, and the mean metric on the second split.
    """

    edit: HeadEdit
    history: tuple[Row, ...]

    @property
    def best(self) -> Row:
        return max(self.history, key=lambda row: row["chosen by"])

    def to_dict(self) -> dict[str, Any]:
        return {"edit": self.edit.to_dict(), "history": list(self.history)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: torch.dtype) -> "Learned":
        """The inverse of `to_dict`.

        Raises:
            BadFile: it is none.
        """
        given = validate(_LearnedLine, data, "an edit in the journal")
        if not all("chosen by" in row and isinstance(row["chosen by"], int | float) for row in given.history):
            raise BadFile("an edit in the journal: a line of its history does not say what it was 'chosen by'")
        return cls(HeadEdit.from_dict(given.edit, dtype), given.history)


@dataclass
class _LearnedLine:
    edit: dict[str, Any]
    history: tuple[dict[str, Any], ...]


def task_vectors(model: Model, examples: Sequence[Example], batch: int, memory: str | int) -> Float[Tensor, "L H K"]:
    """Mean over examples of every head's values where the last answer is read."""
    batches = hold(model, Ablation("zero"), examples, LOSS, batch=batch, positions="end", memory=memory, name="localised")
    return head_values(model, [ready for pieces in batches for ready in pieces])


def learn(splits: Splits, kind: str, heads: Sequence[str], fit: EditFit, vectors: Float[Tensor, "L H K"] | None) -> Learned:
    """Train or sweep one kind of edit on some heads, and choose on the second split.

    Args:
        vectors: of all heads; what `inject` mixes in.

    Raises:
        BadSetting: the loss stops being finite.
    """
    candidates: list[tuple[HeadEdit, Row]] = []
    if kind == "first_token":
        for factor in fit.factors:
            edit = HeadEdit("first_token", tuple(heads), factor=factor)
            train, choose = (_mean(splits, split, edit, fit.metric) for split in ("train", "choose"))
            candidates.append((edit, {"factor": factor, "train": train, "chosen by": choose}))
    else:
        for l1 in fit.l1 if kind == "offset" else (0.0,):
            learner = Learner(splits, kind, heads, fit, vectors)
            for epoch in range(fit.epochs):
                loss = learner.epoch(epoch, l1)
                edit = learner.edit()
                row: Row = {"l1": l1} if kind == "offset" else {}
                row |= {"epoch": epoch + 1, "train loss": loss, "chosen by": _mean(splits, "choose", edit, fit.metric)}
                candidates.append((edit, row))
    best = max(range(len(candidates)), key=lambda i: candidates[i][1]["chosen by"])
    return Learned(candidates[best][0], tuple(row for _, row in candidates))


def head_norms(splits: Splits, fit: EditFit, l1: float) -> dict[str, float]:
    """LoFiT's first step: learn a scaling of every head's values at a price, and rank heads by its size.

    Returns:
        head -> Euclidean norm of its scaling (0: left alone), largest first.
    """
    heads = list(splits.model.graph.heads)
    learner = Learner(splits, "scale", heads, fit, None)
    for epoch in range(fit.epochs):
        learner.epoch(epoch, l1)
    norms = learner.parameter.detach().double().norm(dim=-1).tolist()
    return dict(sorted(zip(heads, norms, strict=True), key=lambda pair: -pair[1]))


class Learner:
    """An edit in training: vectors that begin at 0, or shares that begin at one half and are learned as logits."""

    def __init__(
        self, splits: Splits, kind: str, heads: Sequence[str], fit: EditFit, vectors: Float[Tensor, "L H K"] | None
    ) -> None:
        model = splits.model
        self.splits, self.kind, self.heads, self.fit = splits, kind, tuple(heads), fit
        self.vectors = None
        if kind == "inject":
            assert vectors is not None, "inject needs vectors"
            places = model.graph.heads
            self.vectors = torch.stack([vectors[places[name]] for name in self.heads])
        shape = (len(self.heads),) if kind == "inject" else (len(self.heads), model.components.spec.d_head)
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.parameter = torch.zeros(shape, dtype=dtype, device=model.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.parameter], lr=fit.learning_rate)

    def edit(self, with_gradient: bool = False) -> HeadEdit:
        """What the parameter stands for."""
        value = (self.parameter if with_gradient else self.parameter.detach().clone()).to(self.splits.model.dtype)
        if self.kind == "inject":
            return HeadEdit("inject", self.heads, self.vectors, value.sigmoid())
        return HeadEdit(self.kind, self.heads, value)

    def epoch(self, number: int, l1: float) -> float:
        """One pass over the train split; the mean loss without the L1 term.

        Raises:
            BadSetting: the loss stops being finite.
        """
        batches = self.splits.batches("train", self.edit())
        losses = []
        for index in np.random.default_rng([self.fit.seed, number]).permutation(len(batches)):
            self.optimizer.zero_grad()
            losses.append(self.loss(batches[index]))
            if not np.isfinite(losses[-1]):
                raise BadSetting(f"the loss of kind={self.kind} is {losses[-1]} in epoch {number + 1}: lower learning_rate")
            if l1:
                (l1 * self.parameter.abs().sum()).backward()
            self.optimizer.step()
        return float(np.mean(losses))

    def loss(self, batch: Sequence[Ready]) -> float:
        """Minus the mean log-probability of the right answer; its gradient is added to that of the parameter."""
        n, total = sum(ready.n for ready in batch), 0.0
        for ready in batch:
            loss = -metric_values(self.splits.model, ready, self.edit(with_gradient=True), LOSS).sum() / n
            loss.backward()
            total += float(loss.detach())
        return total


def _mean(splits: Splits, split: str, edit: HeadEdit, metric: Metric) -> float:
    return float(splits.values(split, edit, [metric])[metric.name].mean())
