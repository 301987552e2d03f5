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
        BadTask: the model has no tokenizer, it knows too few of the task's words, or there are not two different prompts.

    Where a task has fewer different prompts than are asked for, all that are drawn are dealt in proportion, and a note says so.

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
                texts = draw_distinct(draw, n + n_heldout)
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
    """A task of examples that were drawn, of which the first are held out; its settings are the sizes and these.

    Fewer different prompts than are asked for are dealt in proportion; whoever asked says so with `note_fewer`.

    Raises:
        BadTask: there are not two different prompts.
    """
    n, n_heldout = sizes_in_proportion(task, len({example.clean for example in examples}), n, n_heldout)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task(task, split.train, split.heldout, metric, {"n": n, "n_heldout": n_heldout, **(settings or {})})


def sizes_in_proportion(task: str, there: int, n: int, n_heldout: int) -> tuple[int, int]:
    """The sizes of the splits where a task has this many different prompts: as asked for, or all in the same proportion.

    Raises:
        BadTask: there are not two.
    """
    if there >= n + n_heldout:
        return n, n_heldout
    if there < 2:
        raise BadTask(f"task '{task}' has {there} different prompts with these settings, and needs two: widen its settings")
    fewer = min(max(1, round(there * n / (n + n_heldout))), there - 1)
    return fewer, there - fewer


def note_fewer(task: Task, n: int, n_heldout: int) -> None:
    """Say that a task has fewer examples than are asked for, if so."""
    if (there := len(task.train) + len(task.heldout)) < n + n_heldout:
        note(
            f"task '{task.name}' has about {there} different prompts with these settings, and {n + n_heldout} are asked for (n "
            f"and n_heldout together): it has {len(task.train)} for the search and {len(task.heldout)} held out"
        )


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of the items, each as likely as the others."""
    return items[int(rng.integers(len(items)))]


def pick_several(rng: np.random.Generator, items: Sequence[Item], size: int) -> list[Item]:
    """As many different items, in a random order."""
    return [items[index] for index in rng.choice(len(items), size=size, replace=False)]


def draw_distinct(draw: Callable[[], AnyExample], n: int) -> list[AnyExample]:
    """Draw random examples until `n` have different clean prompts, or 20 draws for each wanted one gave no more."""
    return _draw_new(draw, n, set())


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

    Fewer where the task has no more.

    Args:
        draw: draws one example at random.
        tokenizer: the model's tokenizer.
        n: examples wanted.
        task: the task that draws, for messages.
        first_token: score the first token of an answer of several; else such an answer cannot be used.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        BadTask: none of the prompts drawn can be used.
        BadSetting: `prepend_bos` is set and the tokenizer has no BOS token.
    """
    drawn: set[object] = set()
    usable: list[Example] = []
    while len(usable) < n:
        fresh = _draw_new(draw, max(n - len(usable), LEAST) if drawn else n, drawn)
        if not fresh:
            break
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
