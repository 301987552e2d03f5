"""What a baseline table measures checkpoints on: a task, and what fine-tuning on it may have cost.

held-out           the task's held-out examples
any answer length  the same with answers of any number of tokens, of which the first is scored (`first_token`)
corrupted          the held-out corrupted prompts, with what they stand for (the first wrong answer) as the right one
<task>             held-out examples of other tasks, for what fine-tuning has cost elsewhere
text               every token of a text, after those before it
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadSetting, BadTask
from circuitdisc.files import read_text
from circuitdisc.models.model import Model
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.registry import FRAMED, REGISTRY, TASKS, TaskKind

HELDOUT, ANY_LENGTH, CORRUPTED, TEXT = "held-out", "any answer length", "corrupted", "text"
N_OTHERS = 200
WINDOW = 128  # tokens of a text that are read together


def evaluation_sets(
    model: Model,
    task: Mapping[str, Any] | Task,
    others: Sequence[str] | None,
    text: str | Path | None,
    n_others: int,
    seed: int,
) -> tuple[dict[str, tuple[Example, ...]], dict[str, str]]:
    """The examples of each set, and what it is."""
    settings = {} if isinstance(task, Task) else {"seed": seed, **task}
    judged = task if isinstance(task, Task) else load_task(model=model, **_renamed(settings))
    sets = {HELDOUT: judged.heldout}
    words = {HELDOUT: f"held-out examples of {judged.name}"}
    if longer := any_length(model, settings):
        sets[ANY_LENGTH] = longer
        words[ANY_LENGTH] = f"held-out examples of {judged.name} with answers of any number of tokens, the first scored"
    if turned := own_answers_of_corrupted(judged.heldout):
        sets[CORRUPTED] = turned
        words[CORRUPTED] = "their corrupted prompts, with the first wrong answer as the right one"
    plain = judged.name if _is_plain(settings) else ""
    for name, examples in _others(model, plain, others, n_others, seed):
        label = f"{name} (defaults)" if name == judged.name else name
        sets[label] = examples
        words[label] = f"held-out examples of {name}, with its default settings"
    if text is not None:
        sets[TEXT] = text_examples(model, Path(text))
        words[TEXT] = f"every token of {text}, in windows of {min(WINDOW, model.n_ctx)} tokens"
    return sets, words


def _kind(settings: Mapping[str, Any]) -> TaskKind | None:
    """The task that settings name; None for a file's."""
    name = str(settings.get("name"))
    return REGISTRY.get(name) if name in REGISTRY.names else None


def _is_plain(settings: Mapping[str, Any]) -> bool:
    """The task has its default settings, so that it is none of the others."""
    kind = _kind(settings)
    if kind is None or kind.n is None:
        return True
    defaults = {name: parameter.default for name, parameter in kind.settings.items()} | FRAMED
    return all(settings.get(name, default) == default for name, default in defaults.items())


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": settings["name"], **{key: value for key, value in settings.items() if key != "name"}}


def any_length(model: TaskModel, settings: Mapping[str, Any]) -> tuple[Example, ...]:
    """Held-out examples with answers of any number of tokens; none where the task has no others, or cannot say."""
    kind = _kind(settings)
    if kind is None or kind.n is None or "first_token" not in kind.settings or settings.get("first_token"):
        return ()
    try:
        examples = load_task(model=model, **{**_renamed(settings), "first_token": True}).heldout
    except BadTask:
        return ()
    return examples if any(example.whole for example in examples) else ()


def own_answers_of_corrupted(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The corrupted prompts as clean ones, with the first wrong answer as the right one; none unless all have both."""
    if not all(example.corrupted is not None and all(example.wrong) for example in examples):
        return ()
    return tuple(
        replace(
            example,
            clean=example.corrupted or (),
            corrupted=None,
            answers=tuple(wrong[:1] for wrong in example.wrong),
            wrong=tuple((*right, *wrong[1:]) for right, wrong in zip(example.answers, example.wrong, strict=True)),
            text="",
            roles={},
            whole=(),
        )
        for example in examples
    )


def _others(
    model: Model, without: str, others: Sequence[str] | None, n: int, seed: int
) -> Iterator[tuple[str, tuple[Example, ...]]]:
    """Held-out examples of the other tasks; those asked for by name must be readable, the rest are passed over if not."""
    names = [name for name in TASKS if name not in ("file", without)] if others is None else list(others)
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # words of other tasks that the tokenizer lacks
                yield name, load_task(name, model, n=1, n_heldout=n, seed=seed).heldout
        except (BadTask, BadSetting):
            if others is not None:
                raise


def check_others(others: Sequence[str] | None) -> None:
    """All other tasks are known, or files.

    Raises:
        UnknownName: one is not.
    """
    for name in others or ():
        if not Path(name).is_file():
            REGISTRY.get(str(name))


def text_examples(model: TaskModel, path: Path) -> tuple[Example, ...]:
    """Windows of a text, read at every token.

    Raises:
        BadFile: it is missing, not UTF-8, or shorter than two tokens.
        BadTask: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise BadTask(f"text={path} needs a tokenizer, and {model.name} has none")
    ids = model.tokenizer(read_text(path), add_special_tokens=False, verbose=False)["input_ids"]
    width = min(WINDOW, model.n_ctx)
    windows = [ids[start : start + width + 1] for start in range(0, len(ids) - 1, width)]
    if not windows:
        raise BadFile(f"{path} has fewer than two tokens: give a text")
    return tuple(
        Example(
            clean=tuple(window[:-1]),
            corrupted=None,
            positions=tuple(range(len(window) - 1)),
            answers=tuple((token,) for token in window[1:]),
            wrong=((),) * (len(window) - 1),
        )
        for window in windows
    )
