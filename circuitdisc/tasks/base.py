"""A task: pairs of clean and corrupted prompts with right and wrong answers, as token ids, in two splits.

Task files write `TextExample`s or `Example`s; `tasks/encode.py` turns text into ids and checks it; everything above
this floor sees ids alone, so that models without a tokenizer are treated alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdisc.metrics import Labels, Metric
from circuitdisc.tasks.roles import position_of

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class TextExample:
    """One example as text.

    Args:
        clean: the prompt that the task is about; it ends where the answer begins.
        corrupted: its counterfactual partner; None if the task has none (zero and mean ablation need none).
        answers: right continuations, written as they follow the prompt (" Mary").
        wrong: wrong continuations.
        group: what `mean` ablation may average over, for example the template.
        roles: named positions: the characters (first, one past the last) of the clean prompt at which each stands; see
            `tasks/roles.py`. The corrupted prompt has the same roles at the same tokens.
        target: the number that the model should put out, in place of answers, where its output is a number.
    """

    clean: str
    corrupted: str | None
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    group: str = ""
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    target: float | None = None


@dataclass(frozen=True)
class Example:
    """One example as token ids.

    Args:
        clean: ids of the clean prompt.
        corrupted: ids of the corrupted prompt, as many as of the clean one; None if the task has none.
        positions: where answers are read: indices into the prompt; the logits at position p predict token p + 1.
        answers: for each position the right tokens.
        wrong: for each position the wrong tokens (may be empty).
        group: what `mean` ablation may average over.
        text: the clean prompt for people.
        roles: named positions: the token index of each, in both prompts.
        whole: all tokens of the first right answer, where it follows the prompt and has several; `answers` then holds the
            first of them alone.
        targets: for each position the number that the model should put out, where its output is a number; `answers` then
            names the output that is read. Empty for tasks whose answers are tokens.
        source: the text that it was read from, if it was; no part of what the example is.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...] | None
    positions: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    group: str = ""
    text: str = ""
    roles: Mapping[str, int] = field(default_factory=dict, hash=False)
    whole: tuple[int, ...] = ()
    targets: tuple[float, ...] = ()
    source: TextExample | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.clean)


@dataclass(frozen=True)
class Task:
    """A task, ready for one model's tokenizer.

    Args:
        name: registry name, or the path of the user's file.
        train: examples that `discover` sees.
        heldout: examples that `score` judges on; shares none with `train`.
        metric: what is used unless another is asked for: a name, or a metric of your own.
        settings: how it was made (n, seed, and the task's own settings).
        notes: what a reader must know of these examples, in sentences (answers of several tokens, say).
    """

    name: str
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    metric: str | Metric = "logit_diff"
    settings: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        metric = self.metric if isinstance(self.metric, str) else self.metric.name
        return f"Task({self.name!r}, {len(self.train):,} train and {len(self.heldout):,} held-out examples, metric {metric})"

    def split(self, name: str) -> tuple[Example, ...]:
        """`train` or `heldout`."""
        return {"train": self.train, "heldout": self.heldout}[name]

    @property
    def has_wrong(self) -> bool:
        """Whether every answer position of both splits has wrong answers, too."""
        return all(all(example.wrong) for example in (*self.train, *self.heldout))


@dataclass(frozen=True)
class PromptBatch:
    """Examples padded to one length. B examples, T positions, N readings (answer positions of all examples).

    Args:
        clean: token ids of the clean prompts. [B, T]
        corrupted: token ids of the corrupted prompts; None if the task has none. [B, T]
        is_token: False at padding. [B, T]
        read_example: the example of each reading. [N]
        read_position: the padded position of each reading. [N]
        labels: right and wrong tokens of each reading, as columns of the vocabulary.
        groups: each example's group. Length B.
        examples: what was padded. Length B.
        offsets: tokens of padding before each prompt. [B]
    """

    clean: Int[Tensor, "B T"]
    corrupted: Int[Tensor, "B T"] | None
    is_token: Bool[Tensor, "B T"]
    read_example: Int[Tensor, "N"]
    read_position: Int[Tensor, "N"]
    labels: Labels
    groups: tuple[str, ...]
    examples: tuple[Example, ...] = ()
    offsets: tuple[int, ...] = ()

    def __repr__(self) -> str:
        n, longest = self.clean.shape
        return f"PromptBatch({n:,} prompts of up to {longest:,} tokens, {len(self.read_example):,} readings)"

    @property
    def n_examples(self) -> int:
        return self.clean.shape[0]

    @property
    def reads(self) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
        """Example and padded position of each reading."""
        return self.read_example, self.read_position

    @cached_property
    def position_ids(self) -> Int[Tensor, "B T"]:
        """Index of each token in its own prompt, 0 at left padding: what the position embedding is asked for."""
        return (self.is_token.long().cumsum(1) - 1).clamp(min=0)

    def position(self, name: str | int) -> Int[Tensor, "B"]:
        """The padded position of each example's token with this name; see `roles.position_of`.

        Raises:
            UnknownName: an example has no such role.
            BadTask: it lies outside a prompt.
        """
        padded = [offset + position_of(example, name) for example, offset in zip(self.examples, self.offsets, strict=True)]
        return torch.tensor(padded, device=self.clean.device)

    def per_example(self, readings: Tensor) -> Tensor:
        """Mean over each example's readings: [..., N] -> [..., B]."""
        total = readings.new_zeros(*readings.shape[:-1], self.n_examples).index_add(-1, self.read_example, readings)
        return total / torch.bincount(self.read_example, minlength=self.n_examples).to(readings.dtype)


def collate(examples: Sequence[Example], padding_side: str = "right", device: torch.device | str = "cpu") -> PromptBatch:
    """Pad examples to one length.

    Args:
        padding_side: `right` or `left`; the results are the same, since padding is never attended to nor read.
    """
    length = max(len(example) for example in examples)
    offsets = [0 if padding_side == "right" else length - len(example) for example in examples]

    def pad(rows: Sequence[Sequence[int]]) -> Tensor:
        padded = torch.zeros(len(rows), length, dtype=torch.long)
        for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
            padded[index, offset : offset + len(row)] = torch.tensor(row, dtype=torch.long)
        return padded.to(device)

    clean = pad([example.clean for example in examples])
    is_token = pad([[1] * len(example) for example in examples]).bool()
    corrupted_rows = [example.corrupted for example in examples if example.corrupted is not None]
    corrupted = pad(corrupted_rows) if len(corrupted_rows) == len(examples) else None
    reads = [
        (index, offsets[index] + position, answers, wrong)
        for index, example in enumerate(examples)
        for position, answers, wrong in zip(example.positions, example.answers, example.wrong, strict=True)
    ]
    given = [target for example in examples for target in example.targets]
    targets = torch.tensor(given, dtype=torch.float64).to(device) if len(given) == len(reads) else None
    answers, answers_mask = _pad_columns([read[2] for read in reads], device)
    wrong, wrong_mask = _pad_columns([read[3] for read in reads], device)
    return PromptBatch(
        clean=clean,
        corrupted=corrupted,
        is_token=is_token,
        read_example=torch.tensor([read[0] for read in reads], device=device),
        read_position=torch.tensor([read[1] for read in reads], device=device),
        labels=Labels(answers, answers_mask, wrong, wrong_mask, targets=targets),
        groups=tuple(example.group for example in examples),
        examples=tuple(examples),
        offsets=tuple(offsets),
    )


def _pad_columns(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in rows), default=0)
    padded = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = True
    return padded.to(device), mask.to(device)
