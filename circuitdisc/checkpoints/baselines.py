"""How well each checkpoint does a task, and what it has forgotten: three figures on several sets of examples.

    log-probability    of the right answers (log-loss is its negative), in nats
    correct            share of examples whose most likely token of the whole vocabulary is right
    logit difference   mean logit of the right answers minus that of the wrong ones

The sets, as far as the task and the tokenizer have them:

    held-out           the task's held-out examples
    any answer length  the same with answers of any number of tokens, of which the first is scored (`first_token`)
    corrupted          the held-out corrupted prompts, with what they stand for (the first wrong answer) as the right one
    <task>             held-out examples of other tasks, for what fine-tuning has cost elsewhere
    text               every token of a text, after those before it

One checkpoint is in memory at a time; all are measured on the same examples.

Source: the CS224N study of the Transitive Property Problem (the three figures, two evaluation sets).

Shape letters: B examples, N readings, V vocabulary.
"""

import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from circuitdisc.checkpoints.listing import check_prompts, load, read_checkpoints
from circuitdisc.checks import check_confidence, check_whole
from circuitdisc.errors import BadFile, BadSetting, BadTask, UnknownName
from circuitdisc.files import read_text
from circuitdisc.heads.base import Row, plain_rows
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.patching.memory import parse_memory
from circuitdisc.progress import progress_bar
from circuitdisc.scoring.intervals import bootstrap_interval, wilson_interval
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Example, Task, collate
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.registry import TASKS

FIGURES = {"log_prob": "log-probability", "accuracy": "correct", "logit_diff": "logit difference"}
HELDOUT, ANY_LENGTH, CORRUPTED, TEXT = "held-out", "any answer length", "corrupted", "text"
N_OTHERS = 200
WINDOW = 128  # tokens of a text that are read together
COPIES_OF_LOGITS = 4  # logits, their log-softmax, and what a metric makes of them


@dataclass(frozen=True)
class Figure:
    """One figure of one checkpoint on one set.

    Args:
        name: `log_prob`, `accuracy` or `logit_diff`.
        n: examples; tokens for a text.
        low, high: bootstrap interval; Wilson's where all examples agree.
    """

    checkpoint: str
    on: str
    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Baselines:
    """The baseline table of some checkpoints.

    Args:
        checkpoints: names, in order.
        sets: what each was measured on -> in a sentence.
        figures: all figures.
    """

    checkpoints: tuple[str, ...]
    task: str
    sets: Mapping[str, str]
    figures: tuple[Figure, ...]
    confidence: float = 0.95
    settings: Mapping[str, Any] = field(default_factory=dict)

    def get(self, checkpoint: str, name: str = "accuracy", on: str = HELDOUT) -> Figure:
        """One figure.

        Raises:
            KeyError: it was not measured.
        """
        for one in self.figures:
            if (one.checkpoint, one.name, one.on) == (checkpoint, name, on):
                return one
        raise KeyError(f"no '{name}' of {checkpoint} on '{on}'")

    def table(self, on: str = HELDOUT) -> list[Row]:
        """A line a checkpoint: each figure with its interval."""
        rows: list[Row] = []
        for checkpoint in self.checkpoints:
            row: Row = {"checkpoint": checkpoint}
            mine = [one for one in self.figures if (one.checkpoint, one.on) == (checkpoint, on)]
            for one in mine:
                row |= {
                    FIGURES[one.name]: one.value,
                    f"{FIGURES[one.name]} low": one.low,
                    f"{FIGURES[one.name]} high": one.high,
                }
            rows.append({**row, "n": mine[0].n if mine else 0})
        return plain_rows(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": "circuitdisc.baselines",
            "version": 1,
            "task": self.task,
            "checkpoints": list(self.checkpoints),
            "sets": dict(self.sets),
            "confidence": self.confidence,
            "settings": dict(self.settings),
            "figures": plain_rows(vars(one) for one in self.figures),
        }


def baselines(
    checkpoints: str | Path | Sequence[str],
    task: Mapping[str, Any] | Task,
    *,
    others: Sequence[str] | None = None,
    text: str | Path | None = None,
    n_others: int = N_OTHERS,
    confidence: float = 0.95,
    model_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    memory: str | int = "4GiB",
    progress: bool = False,
) -> Baselines:
    """Measure checkpoints on a task's held-out examples and on what they should not forget.

    Args:
        checkpoints: names, folders, or the folder of a ladder; see `read_checkpoints`.
        task: settings of a task, or a task.
        others: names of tasks, or files of your own, for forgetting; None: all tasks that the tokenizer can read; [] for none.
        text: a UTF-8 file, for forgetting.
        n_others: held-out examples of each other task.
        confidence: coverage of the intervals.
        model_settings: of `load_model`.
        seed: of the bootstrap and the other tasks. Also of the task, unless its settings name one.
        memory: budget for activations.

    Raises:
        UnknownName, BadFile, BadSetting, BadModel: as `read_checkpoints`.
        BadTask: the examples cannot be used with these models.
    """
    confidence = check_confidence(confidence)
    check_whole("n_others", n_others)
    check_others(others)
    budget, names = parse_memory(memory), read_checkpoints(checkpoints, what="a baseline table")
    first: Model | None = load(names[0], **(model_settings or {}))
    sets, words = _sets(first, task, others, text, n_others, seed)
    check_prompts(names, [one for examples in sets.values() for one in examples])
    found: list[Figure] = []
    with progress_bar(len(names) * len(sets), "baselines", "set", progress) as bar:
        for name in names:
            model, first = first or load(name, **(model_settings or {})), None  # one checkpoint in memory at a time
            for on, examples in sets.items():
                found += _figures(model, name, on, examples, confidence, seed, budget)
                bar.update(1)
            del model
            gc.collect()
    judged = task.name if isinstance(task, Task) else str(task["name"])
    settings = {"task": dict(task.settings if isinstance(task, Task) else task), "seed": seed, "n_others": n_others}
    return Baselines(tuple(names), judged, words, tuple(found), confidence, settings)


# --- the sets -------------------------------------------------------------------------------------------------------------


def _sets(
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


def _is_plain(settings: Mapping[str, Any]) -> bool:
    """The task has its default settings, so that it is none of the others."""
    kind = TASKS.get(str(settings.get("name")))
    if kind is None or kind.n is None:
        return True
    return all(settings.get(name, one.default) == one.default for name, one in kind.settings.items())


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"name_or_path": settings["name"], **{key: value for key, value in settings.items() if key != "name"}}


def any_length(model: TaskModel, settings: Mapping[str, Any]) -> tuple[Example, ...]:
    """Held-out examples with answers of any number of tokens; none where the task has no others, or cannot say."""
    kind = TASKS.get(str(settings.get("name")))
    if kind is None or kind.n is None or "first_token" not in kind.settings or settings.get("first_token"):
        return ()
    try:
        examples = load_task(model=model, **{**_renamed(settings), "first_token": True}).heldout
    except BadTask:
        return ()
    return examples if any(one.whole for one in examples) else ()


def own_answers_of_corrupted(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The corrupted prompts as clean ones, with the first wrong answer as the right one; none unless all have both."""
    if not all(one.corrupted is not None and all(one.wrong) for one in examples):
        return ()
    return tuple(
        replace(
            one,
            clean=one.corrupted or (),
            corrupted=None,
            answers=tuple(wrong[:1] for wrong in one.wrong),
            wrong=tuple((*right, *wrong[1:]) for right, wrong in zip(one.answers, one.wrong, strict=True)),
            text="",
            roles={},
            whole=(),
        )
        for one in examples
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
        if name not in TASKS and not Path(name).is_file():
            raise UnknownName("task", str(name), TASKS, "Your own prompt pairs go into a .jsonl or .csv file.")


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


# --- the figures ----------------------------------------------------------------------------------------------------------


def _figures(
    model: Model, checkpoint: str, on: str, examples: Sequence[Example], confidence: float, seed: int, budget: int
) -> list[Figure]:
    names = [name for name in FIGURES if name != "logit_diff" or all(all(one.wrong) for one in examples)]
    values = values_of(model, examples, [get_metric(name) for name in names], budget)
    weights = np.array([len(one.positions) for one in examples], dtype=np.float64)
    n = int(weights.sum()) if on == TEXT else len(examples)
    found = []
    for name in names:
        value = _weighted(values[name], weights)
        low, high = bootstrap_interval((values[name], weights), _weighted, confidence, seed)
        if name == "accuracy" and value in (0.0, 1.0):
            low, high = wilson_interval(round(n * value), n, confidence)
        found.append(Figure(checkpoint, on, name, float(value), low, high, n))
    return found


def _weighted(values: Float[np.ndarray, "... B"], weights: Float[np.ndarray, "... B"], axis: int = -1) -> Any:
    """Mean over readings: of an example's mean, with as much weight as it has readings."""
    return (values * weights).sum(axis) / weights.sum(axis)


@torch.no_grad()
def values_of(
    model: Model, examples: Sequence[Example], metrics: Sequence[Metric], budget: int
) -> dict[str, Float[np.ndarray, "B"]]:
    """Metrics of the whole model on clean prompts, example by example.

    Args:
        budget: bytes for logits; examples are taken as many at a time as fit.
    """
    longest = max(len(one) for one in examples)
    at_once = max(1, min(500, budget // (COPIES_OF_LOGITS * longest * model.d_vocab_out * model.dtype.itemsize)))
    found: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    for start in range(0, len(examples), at_once):
        batch = collate(examples[start : start + at_once], device=model.device)
        logits = model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)[batch.reads]
        for metric in metrics:
            values = batch.per_example(metric(logits, batch.labels))
            found[metric.name].append(values.double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}
