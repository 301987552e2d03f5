"""How well each checkpoint does a task, and what it has forgotten: four figures on several sets of examples.

    log-probability    of the right answers (log-loss is its negative), in nats
    correct            share of examples whose most likely token of the whole vocabulary is right
    right above wrong  share of examples with a right answer's logit above that of every wrong one
    logit difference   mean logit of the right answers minus that of the wrong ones

The sets of examples are those of `evaluation_sets.py`. One checkpoint is in memory at a time, and all see the same examples.

Source: the CS224N study of the Transitive Property Problem (all but `right above wrong`, two evaluation sets).

Shape letters: B examples, N readings, V vocabulary.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.checkpoints.evaluation_sets import HELDOUT, N_OTHERS, TEXT, check_others, evaluation_sets
from circuitdisc.checkpoints.listing import check_prompts, load, read_checkpoints
from circuitdisc.checks import EXAMPLES, bounded
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.memory import parse_memory
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, takes
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result, Row, plain_rows
from circuitdisc.stats import interval, partition_of, share_interval
from circuitdisc.tasks.base import Example, Task, collate
from circuitdisc.tasks.measured import need_choice
from circuitdisc.wording import task_words

FIGURES = {
    "log_prob": "log-probability",
    "accuracy": "correct",
    "pair_accuracy": "right above wrong",
    "logit_diff": "logit difference",
}
COPIES_OF_LOGITS = 4  # logits, their log-softmax, and what a metric makes of them


@dataclass(frozen=True)
class Figure:
    """One figure of one checkpoint on one set.

    Args:
        name: `log_prob`, `accuracy`, `pair_accuracy` or `logit_diff`.
        n: examples; tokens for a text.
        low, high: its interval.
        method: how that was made, and over what.
    """

    checkpoint: str
    on: str
    name: str
    value: float
    low: float
    high: float
    n: int
    method: str = ""


@dataclass(frozen=True, repr=False)
class Baselines(Result):
    """The baseline table of some checkpoints.

    Args:
        checkpoints: names, in order.
        sets: what each was measured on -> in a sentence.
        figures: all figures.
    """

    FORMAT = "circuitdisc.baselines"
    KEYS = ("task", "checkpoints", "sets", "confidence", "settings", "figures")

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
        for figure in self.figures:
            if (figure.checkpoint, figure.name, figure.on) == (checkpoint, name, on):
                return figure
        raise KeyError(f"no '{name}' of {checkpoint} on '{on}'")

    def table(self, on: str = HELDOUT) -> list[Row]:
        """A line a checkpoint: each figure with its interval."""
        rows: list[Row] = []
        for checkpoint in self.checkpoints:
            row: Row = {"checkpoint": checkpoint}
            mine = [figure for figure in self.figures if (figure.checkpoint, figure.on) == (checkpoint, on)]
            for figure in mine:
                row |= {
                    FIGURES[figure.name]: figure.value,
                    f"{FIGURES[figure.name]} low": figure.low,
                    f"{FIGURES[figure.name]} high": figure.high,
                }
            rows.append({**row, "n": mine[0].n if mine else 0})
        return plain_rows(rows)


@bounded(n_others=EXAMPLES)
@takes(Drawing)
def baselines(
    checkpoints: str | Path | Sequence[str],
    task: Mapping[str, Any] | Task,
    *,
    others: Sequence[str] | None = None,
    text: str | Path | None = None,
    n_others: int = N_OTHERS,
    model_settings: Mapping[str, Any] | None = None,
    **options: Unpack[Drawing],
) -> Baselines:
    """Measure checkpoints on a task's held-out examples and on what they should not forget.

    Args:
        checkpoints: names, folders, or the folder of a ladder; see `read_checkpoints`.
        task: settings of a task, or a task.
        others: names of tasks, or files of your own, for forgetting; None: all tasks that the tokenizer can read; [] for none.
        text: a UTF-8 file, for forgetting.
        n_others: held-out examples of each other task.
        model_settings: of `load_model`.
        seed: of the bootstrap and the other tasks. Also of the task, unless its settings name one.

    Raises:
        UnknownName, BadFile, BadSetting, BadModel: as `read_checkpoints`.
        BadTask: the examples cannot be used with these models.
    """
    check_others(others)
    given: Any = options
    confidence, seed = given["confidence"], given["seed"]
    budget, names = parse_memory(given["memory"]), read_checkpoints(checkpoints, what="a baseline table")
    first: Model | None = load(names[0], **(model_settings or {}))
    need_choice(first, "a baseline table")
    sets, words = evaluation_sets(first, task, others, text, n_others, seed)
    check_prompts(names, [example for examples in sets.values() for example in examples])
    figures: list[Figure] = []
    with progress_bar(len(names) * len(sets), "baselines", "set", given["progress"]) as bar:
        for name in names:
            model, first = first or load(name, **(model_settings or {})), None  # one checkpoint in memory at a time
            for on, examples in sets.items():
                figures += _figures(model, name, on, examples, confidence, seed, budget)
                bar.update(1)
            del model
            gc.collect()
    judged = task.name if isinstance(task, Task) else task_words(task)
    settings = {"task": dict(task.settings if isinstance(task, Task) else task), "seed": seed, "n_others": n_others}
    return Baselines(tuple(names), judged, words, tuple(figures), confidence, settings)


# --- the figures ----------------------------------------------------------------------------------------------------------


def _figures(
    model: Model, checkpoint: str, on: str, examples: Sequence[Example], confidence: float, seed: int, budget: int
) -> list[Figure]:
    paired = all(all(example.wrong) for example in examples)
    names = [name for name in FIGURES if paired or not get_metric(name).needs_wrong]
    values = values_of(model, examples, [get_metric(name) for name in names], budget)
    weights = np.array([len(example.positions) for example in examples], dtype=np.float64)
    n = int(weights.sum()) if on == TEXT else len(examples)
    over = partition_of(examples)
    figures = []
    for name in names:
        sums = values[name] * weights
        if name in ("accuracy", "pair_accuracy"):
            ends = share_interval(sums, weights, groups=over, confidence=confidence)
        else:
            metric = get_metric(name)
            ends = interval((sums, weights), _per_reading, groups=over, confidence=confidence, seed=seed)
            ends = ends.within(metric.least, metric.most)
        value = float(sums.sum() / weights.sum())
        figures.append(Figure(checkpoint, on, name, value, float(ends.low), float(ends.high), n, ends.method))
    return figures


def _per_reading(means: Float[np.ndarray, "2 *W"]) -> Float[np.ndarray, "*W"]:
    """Mean over readings: of an example's mean, with as much weight as it has readings."""
    return means[0] / means[1]


@torch.no_grad()
def values_of(
    model: Model, examples: Sequence[Example], metrics: Sequence[Metric], budget: int
) -> dict[str, Float[np.ndarray, "B"]]:
    """Metrics of the whole model on clean prompts, example by example.

    Args:
        budget: bytes for logits; examples are taken as many at a time as fit.
    """
    longest = max(len(example) for example in examples)
    at_once = max(1, min(500, budget // (COPIES_OF_LOGITS * longest * model.d_vocab_out * max(4, model.dtype.itemsize))))
    by_metric: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    for start in range(0, len(examples), at_once):
        batch = collate(examples[start : start + at_once], device=model.device)
        logits = model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)[batch.reads]
        for name, values in of_logits(batch, batch.labels, logits, metrics).items():
            by_metric[name].append(values.double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in by_metric.items()}
