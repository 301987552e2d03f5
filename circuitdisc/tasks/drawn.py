"""Tasks that are drawn at random: what they share is done here, so that a task's file holds its words and one example's making.

A task's file says how one example is drawn, and `drawn_task` makes its builder of that:

    @drawn_task("gendered_pronoun")
    def build(setup: Setup, *, frames: Names = None) -> Draw:
        chosen = setup.names("frame", frames, FRAMES)
        ...
        def draw(rng) -> TextExample: ...
        return draw
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Example, Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import encode_examples, encode_fitting, one_token_words
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.notes import note
from circuitdisc.tasks.split import split_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AnyExample = TypeVar("AnyExample", Example, TextExample)
Item = TypeVar("Item")
Draw: TypeAlias = Callable[[np.random.Generator], TextExample]
"""Draws one example."""
Names: TypeAlias = str | Sequence[str] | None
"""A setting that lists names of frames, say; None: all of them."""

LEAST = 20  # prompts drawn at a time where some of the first ones cannot be used


class Setup:
    """What a task's file is given: its name and the model, and what is asked of the model's tokenizer in its name.

    Args:
        task: the task's name, for messages.
        model: the model whose tokenizer reads the prompts.
    """

    def __init__(self, task: str, model: TaskModel) -> None:
        self.task = task
        self.model = model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer; BadTask if it has none."""
        return need_tokenizer(self.model, self.task)

    def names(self, kind: str, given: Names, known: Collection[str]) -> list[str]:
        """The names that a setting lists, one being enough; see `check_names`."""
        return check_names(f"{kind} of task '{self.task}'", given, known)

    def words(self, words: Sequence[str], kind: str, need: int = 1) -> tuple[str, ...]:
        """The words that are one token each for the model's tokenizer; see `one_token_words`."""
        return one_token_words(words, self.tokenizer, task=self.task, kind=kind, need=need)


def drawn_task(
    task: str, *, metric: str = "logit_diff", all_fit: bool = False
) -> Callable[[Callable[..., Draw]], Callable[..., Task]]:
    """Make a task's builder, `build(model, *, n, n_heldout, seed, prepend_bos=None, **settings)`, of how one example is drawn.

    Every such builder takes, beside the settings of the function that is decorated:

        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples; they share no clean prompt with the train examples.
        seed: seed of the draw.
        first_token: of tasks that have this setting: score the first token of an answer of several.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    and raises:

        UnknownName: a setting names what is not there.
        BadSetting: a setting has a value that cannot be used.
        BadTask: the model has no tokenizer, it knows too few of the task's words, or there are too few different prompts.

    Args:
        task: its name.
        metric: its metric.
        all_fit: all prompts have corrupted partners of their own length, so that one that cannot be used is an error; else such
            prompts are left out and counted in a note.
    """

    def decorate(make: Callable[..., Draw]) -> Callable[..., Task]:
        @wraps(make)
        def build(
            model: TaskModel, *, n: int, n_heldout: int, seed: int, prepend_bos: bool | None = None, **settings: bool
        ) -> Task:
            setup = Setup(task, model)
            draw_one, rng = make(setup, **settings), np.random.default_rng(seed)

            def draw() -> TextExample:
                return draw_one(rng)

            if all_fit:
                texts = draw_distinct(draw, n + n_heldout, task)
                examples = encode_examples(texts, setup.tokenizer, prepend_bos=prepend_bos)
            else:
                first_token = settings.get("first_token", False)
                examples = draw_examples(
                    draw, setup.tokenizer, n + n_heldout, task, first_token=first_token, prepend_bos=prepend_bos
                )
            return deal(task, examples, n, n_heldout, metric=metric)

        shared = inspect.signature(build, follow_wrapped=False).parameters
        own = list(inspect.signature(make).parameters.values())[1:]
        first = [shared[name] for name in ("model", "n", "n_heldout", "seed")]
        build.__dict__["__signature__"] = inspect.Signature([*first, *own, shared["prepend_bos"]], return_annotation=Task)
        return build

    return decorate


def deal(
    task: str,
    examples: Sequence[Example],
    n: int,
    n_heldout: int,
    *,
    metric: str = "logit_diff",
    settings: Mapping[str, object] | None = None,
) -> Task:
    """A task of examples that were drawn, of which the first are held out; its settings are the sizes and these."""
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task(task, split.train, split.heldout, metric, {"n": n, "n_heldout": n_heldout, **(settings or {})})


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of the items, each as likely as the others."""
    return items[int(rng.integers(len(items)))]


def pick_several(rng: np.random.Generator, items: Sequence[Item], size: int) -> list[Item]:
    """As many different items, in a random order."""
    return [items[index] for index in rng.choice(len(items), size=size, replace=False)]


def draw_distinct(draw: Callable[[], AnyExample], n: int, task: str) -> list[AnyExample]:
    """Draw random examples until `n` have different clean prompts.

    Args:
        draw: draws one example.
        n: examples wanted.
        task: the task that draws, for messages.

    Raises:
        BadTask: after 20 draws for each wanted one there are still too few.
    """
    examples = _draw_new(draw, n, set())
    if len(examples) < n:
        raise BadTask(
            f"task '{task}' has about {len(examples)} different prompts with these settings, but {n} are asked for "
            "(n and n_heldout together): ask for fewer, or widen the task's settings"
        )
    return examples


def draw_examples(
    draw: Callable[[], TextExample],
    tokenizer: "PreTrainedTokenizerBase",
    n: int,
    task: str,
    *,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> list[Example]:
    """Examples of `n` different clean prompts, in the order in which they are drawn; those that cannot be used are left out.

    Args:
        draw: draws one example at random.
        tokenizer: the model's tokenizer.
        n: examples wanted.
        task: the task that draws, for messages.
        first_token: score the first token of an answer of several; else such an answer cannot be used.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        BadTask: too few different prompts can be drawn, or none of those drawn can be used.
        BadSetting: `prepend_bos` is set and the tokenizer has no BOS token.
    """
    drawn: set[object] = set()
    usable: list[Example] = []
    while len(usable) < n:
        fresh = _draw_new(draw, max(n - len(usable), LEAST) if drawn else n, drawn)
        if not fresh:
            raise BadTask(
                f"task '{task}' has about {len(usable)} different prompts for this model's tokenizer with these settings, "
                f"but {n} are asked for (n and n_heldout together): ask for fewer, or widen the task's settings"
            )
        usable += encode_fitting(fresh, tokenizer, len(fresh), first_token=first_token, prepend_bos=prepend_bos)
    if len(usable) < len(drawn):
        note(
            f"task '{task}': {len(drawn) - len(usable)} of {len(drawn)} prompts drawn cannot be used with this model's "
            "tokenizer (a corrupted prompt of another length, or answers that one token does not tell apart) and are left out"
        )
    return usable[:n]


def _draw_new(draw: Callable[[], AnyExample], n: int, drawn: set[object]) -> list[AnyExample]:
    """Up to `n` examples whose clean prompts were not drawn before; they are added to `drawn`."""
    fresh: list[AnyExample] = []
    for _ in range(20 * n + 100):
        if len(fresh) == n:
            break
        example = draw()
        if example.clean not in drawn:
            drawn.add(example.clean)
            fresh.append(example)
    return fresh
