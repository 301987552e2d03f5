"""What a checkpoint is fine-tuned on: prompts of a task that none of its judges sees, and which of their tokens are learned.

The pool is drawn under a seed of its own (`POOL_SEED` + the task's), and every prompt that the task draws for a search or for
judgement is left out: those of the settings at hand, and up to 3,000 held-out ones of the default seed. A task from a file has
one split, so its train lines are the pool, less those that are held out under the default seed.

Shape letters: B rows, T positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuitdisc.errors import BadTask
from circuitdisc.models.model import Model
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.measured import need_choice
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.registry import REGISTRY as TASKS

POOL_SEED = 20_000_000
N_POOL = 10_000
PROTECTED = 3_000  # held-out prompts of the default seed: as many as the largest evaluation set of the studies
UNLEARNED = -100  # the label of a token that is not learned
ROUNDS = 4  # of drawing, where some of the prompts drawn are held out


@dataclass(frozen=True)
class Reader:
    """What tasks ask of a model, without its weights."""

    name: str
    tokenizer: Any
    d_vocab: int
    d_vocab_out: int
    n_ctx: int

    @classmethod
    def of(cls, model: Model) -> "Reader":
        return cls(model.name, model.tokenizer, model.d_vocab, model.d_vocab_out, model.n_ctx)


@dataclass(frozen=True)
class Pool:
    """The examples to train on, in the order from which fractions are taken.

    Args:
        n_left_out: prompts drawn that were left out because they are held out.
    """

    task: Task
    examples: tuple[Example, ...]
    n_left_out: int


def draw_pool(model: TaskModel, task: Mapping[str, Any] | Task, n_pool: int | None) -> Pool:
    """Training examples that are no one's held-out examples.

    Args:
        model: whose tokenizer reads the prompts.
        task: settings of a task (`name`, `n`, `n_heldout`, `seed`, its own), or a task, whose train split is then the pool.
        n_pool: examples wanted; None: 10,000, or all train examples of a file or of a given task.

    Raises:
        BadTask: there are too few.
        UnknownName, BadSetting, BadFile: as `load_task`.
    """
    need_choice(model, "fine-tuning")
    if isinstance(task, Task):
        return _cut(task, task.train, {example.clean for example in task.heldout}, n_pool)
    settings = dict(task)
    name = str(settings.pop("name"))
    judged = load_task(name, model, **settings)
    own = {key: value for key, value in settings.items() if key not in ("n", "n_heldout", "seed")}
    if name not in TASKS.names or TASKS.get(name).n is None:
        default = load_task(name, model, **{**settings, "seed": 0})
        return _cut(judged, judged.train, {example.clean for example in (*judged.heldout, *default.heldout)}, n_pool)
    protected = {example.clean for example in (*judged.train, *judged.heldout, *_default_heldout(name, model, own))}
    return _draw(judged, name, model, own, protected, N_POOL if n_pool is None else n_pool, int(settings.get("seed", 0)))


def _default_heldout(name: str, model: TaskModel, own: Mapping[str, Any]) -> tuple[Example, ...]:
    heldout = load_task(name, model, n=1, n_heldout=PROTECTED, seed=0, **own).heldout
    # where the task has fewer prompts than that, those of its default sizes
    return heldout if len(heldout) == PROTECTED else load_task(name, model, seed=0, **own).heldout


def _cut(task: Task, examples: Sequence[Example], protected: set[tuple[int, ...]], n_pool: int | None) -> Pool:
    kept = [example for example in examples if example.clean not in protected]
    if len(kept) < (n_pool or 1):
        raise BadTask(
            f"task '{task.name}' has {len(kept)} examples that are not held out, but n_pool={n_pool or 1} are asked for: "
            "ask for fewer, or give more train examples"
        )
    return Pool(task, tuple(kept[:n_pool]), len(examples) - len(kept))


def _draw(
    judged: Task,
    name: str,
    model: TaskModel,
    own: Mapping[str, Any],
    protected: set[tuple[int, ...]],
    n_pool: int,
    seed: int,
) -> Pool:
    """Draw until enough are left."""
    wanted, kept = n_pool, []
    for _ in range(ROUNDS):
        drawn = load_task(name, model, n=wanted, n_heldout=1, seed=POOL_SEED + seed, **own).train
        kept = [example for example in drawn if example.clean not in protected]
        if len(kept) >= n_pool:
            return Pool(judged, tuple(kept[:n_pool]), len(drawn) - len(kept))
        wanted += 2 * (n_pool - len(kept))
    raise BadTask(
        f"task '{name}' has too few prompts beside the {len(protected):,} that are kept for judgement: "
        f"{len(kept):,} were found, n_pool={n_pool:,} are asked for; ask for fewer, or widen the task's settings"
    )


def training_rows(examples: Sequence[Example], n_ctx: int, seed: int) -> list[dict[str, list[int]]]:
    """Token ids and labels: the label of a position is the token to be said there, as the logits at it predict the next one.

    All tokens of an answer are learned, each after those before it. Of several right answers one is drawn, once for all epochs.

    Args:
        n_ctx: longest row, in tokens.
        seed: of the draw among right answers.

    Raises:
        BadTask: a prompt with its answer is too long.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for example in examples:
        ids = [*example.clean, *example.whole[:-1]]
        labels = [UNLEARNED] * len(ids)
        for position, answers in zip(example.positions, example.answers, strict=True):
            labels[position] = answers[0] if len(answers) == 1 else answers[int(generator.integers(len(answers)))]
        for offset, token in enumerate(example.whole):
            labels[len(example.clean) - 1 + offset] = token
        if len(ids) > n_ctx:
            raise BadTask(f"a prompt with its answer has {len(ids)} tokens, but the model reads at most {n_ctx}: shorten it")
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def pad_rows(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Int[Tensor, "B T"]]:
    """Rows padded on the right, which causal attention never reads."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*tokens, *[fill] * (width - len(tokens))] for tokens in values])

    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded([[1] * len(tokens) for tokens in ids], 0),
        "labels": padded([row["labels"] for row in rows], UNLEARNED),
    }
