"""Desiderata: what a patched model should say. Of a task that has some, of any task, or of a JSONL file of your own.

A desideratum is a set of prompt pairs with a target for each: the answer that the model should give on the clean prompt once
the right components carry what they carry on the corrupted one. If the target differs from the clean answer in one respect
alone (the value, the position, the label), components that bring it about carry that respect.

The examples come in three splits that share no clean prompt: masks are trained on the first, chosen on the second and
reported on the third.

Source: Davies et al. 2023, "Discovering Variable Binding Circuitry with Desiderata" (https://arxiv.org/abs/2307.03637).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuitdisc.checks import EXAMPLES, SEED, bounded
from circuitdisc.errors import BadFile, BadSetting, BadTask, UnknownName
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.check import check_names, raise_problems
from circuitdisc.tasks.examine import examine
from circuitdisc.tasks.library.file import encode_rows
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.notes import note
from circuitdisc.tasks.registry import FRAMED, load_task
from circuitdisc.tasks.rows import Row, read_rows
from circuitdisc.tasks.split import drop_duplicates

Positions = str | int | Sequence[str | int]
SIZES = {"n_train": 100, "n_choose": 100, "n_report": 200}
FIELD = "desideratum"


@dataclass(frozen=True)
class Shipped:
    """The desiderata of a task: corruptions whose first wrong answer is the target.

    Args:
        names: the corruptions.
        positions: where components are patched unless said otherwise: where both prompts have the same words.
    """

    names: tuple[str, ...]
    positions: Positions = "all"


SHIPPED: Mapping[str, Shipped] = {
    # not in the list of boxes, where the prompts themselves differ
    "entity_tracking": Shipped(("value", "position", "label"), ("query_box", "query_label", "query_label+1", "end")),
}


@dataclass(frozen=True)
class Desideratum:
    """Prompt pairs with a target, in three splits.

    Args:
        name: what the components should carry.
        train, choose, report: examples; `answers` holds the target, `wrong` the clean prompt's own answer (may be empty).
        positions: where components are patched unless said otherwise: `all`, a position (see `tasks/roles.py`), or several.

    Raises:
        BadTask: a split is empty, two share a clean prompt, or an example has no corrupted prompt.
    """

    name: str
    train: tuple[Example, ...]
    choose: tuple[Example, ...]
    report: tuple[Example, ...]
    positions: Positions = "all"

    def __post_init__(self) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for split in ("train", "choose", "report"):
            examples: tuple[Example, ...] = getattr(self, split)
            if not examples:
                raise BadTask(f"desideratum '{self.name}' has no examples in split '{split}': give all three some")
            for example in examples:
                if example.corrupted is None:
                    raise BadTask(
                        f"desideratum '{self.name}', split '{split}': the prompt {example.text[:40]!r} has no corrupted "
                        "partner; patching needs one for every example"
                    )
                if seen.setdefault(example.clean, split) != split:
                    raise BadTask(
                        f"desideratum '{self.name}': the prompt {example.text[:40]!r} is in split '{seen[example.clean]}' and "
                        f"in '{split}': keep it in one of them"
                    )


@bounded(n_train=EXAMPLES, n_choose=EXAMPLES, n_report=EXAMPLES, seed=SEED)
def load_desiderata(
    name_or_path: str | Path,
    model: TaskModel,
    *,
    names: str | Sequence[str] | None = None,
    n_train: int | None = None,
    n_choose: int | None = None,
    n_report: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[Desideratum, ...]:
    """The desiderata of a task, or of a file.

    Args:
        name_or_path: a task of `SHIPPED`, or a .jsonl file in the format of docs/own-task.md whose lines also have a field
            `desideratum`; `answers` is there what the patched model should say, `corrupted` is needed.
        names: which ones; None for all.
        n_train, n_choose, n_report: sizes of the splits; None: 100, 100 and 200, or a third of a file's lines each.
        seed: of the draw, or of a file's shuffle.
        **settings: the task's own, for example `boxes=7`; of a file `first_token` and `prepend_bos`.

    Raises:
        UnknownName: the task has no desiderata, or none of this name.
        BadFile: the file is missing or malformed; the message names line and fault.
        BadTask: there are too few examples, or they cannot be used with this model.
        BadSetting: a size is no whole number from 1, or a setting cannot be used.
    """
    sizes = {"n_train": n_train, "n_choose": n_choose, "n_report": n_report}
    if Path(str(name_or_path)).suffix.lower() in (".jsonl", ".csv"):
        return _of_file(Path(name_or_path), model, names, sizes, seed, settings)
    task = str(name_or_path)
    if task not in SHIPPED:
        raise UnknownName("task with desiderata", task, SHIPPED, "Others: a .jsonl file with a field 'desideratum'.")
    if "corruption" in settings:
        raise BadSetting("corruption= cannot be set here: the desiderata are the task's corruptions; name some with names=")
    kind = SHIPPED[task]
    chosen = kind.names if names is None else check_names(f"desideratum of task '{task}'", names, kind.names)
    full = {name: SIZES[name] if size is None else size for name, size in sizes.items()}
    desiderata = []
    for name in chosen:
        drawn = load_task(
            task,
            model,
            n=full["n_train"] + full["n_choose"],
            n_heldout=full["n_report"],
            seed=seed,
            corruption=name,
            **settings,
        )
        n_choose = len(drawn.train) * full["n_choose"] // (full["n_train"] + full["n_choose"])  # fewer where the task has fewer
        desiderata.append(replace(of_task(drawn, n_choose, name), positions=kind.positions))
    return tuple(desiderata)


def of_task(task: Task, n_choose: int | None = None, name: str | None = None) -> Desideratum:
    """A task as a desideratum: the target is the first of `wrong`; `train` gives the first two splits, `heldout` the third.

    Args:
        n_choose: how many of the train examples choose; None: half.

    Raises:
        BadTask: an example has no wrong answer, or a split would be empty.
    """
    n_choose = len(task.train) // 2 if n_choose is None else n_choose
    train, heldout = (tuple(_aimed(example, task.name) for example in task.split(split)) for split in ("train", "heldout"))
    n_search = max(0, len(train) - n_choose)
    return Desideratum(name or task.name, train[:n_search], train[n_search:], heldout)


def _aimed(example: Example, task: str) -> Example:
    """The example with the first of `wrong` as its answer, and its own answers as wrong."""
    if not all(example.wrong):
        raise BadTask(f"task '{task}' has examples without wrong answers; the first of them is what a desideratum asks for")
    return replace(example, answers=tuple(wrong[:1] for wrong in example.wrong), wrong=example.answers)


def _of_file(
    path: Path,
    model: TaskModel,
    names: str | Sequence[str] | None,
    sizes: Mapping[str, int | None],
    seed: int,
    settings: Mapping[str, object],
) -> tuple[Desideratum, ...]:
    if path.suffix.lower() != ".jsonl":
        raise BadFile(f"{path} holds no desiderata: write them as .jsonl, one object a line")
    for name in settings:
        if name in FRAMED and settings[name]:
            raise BadSetting(f"{name}={settings[name]} cannot be used with a file of desiderata: leave it out")
        if name not in ("first_token", "prepend_bos", *FRAMED):
            raise UnknownName("setting of a file of desiderata", name, ("first_token", "prepend_bos"))
    rows = read_rows(path, extra=(FIELD,))
    missing = "is missing: every line needs"
    problems = [f"{row.where}: the field '{FIELD}' {missing} one" for row in rows if FIELD not in row.extra]
    problems += [
        f"{row.where}: the field 'corrupted' {missing} a prompt to patch from" for row in rows if row.corrupted is None
    ]
    raise_problems(problems, BadFile)
    first_token, prepend_bos = bool(settings.get("first_token", False)), settings.get("prepend_bos")
    examples = encode_rows(rows, model, first_token, None if prepend_bos is None else bool(prepend_bos))
    for sentence in examine(examples, model.tokenizer):
        note(sentence)
    known = list(dict.fromkeys(row.extra[FIELD] for row in rows))
    chosen = known if names is None else check_names(f"desideratum of {path}", names, known)
    return tuple(
        _dealt(
            name, [(row, example) for row, example in zip(rows, examples, strict=True) if row.extra[FIELD] == name], sizes, seed
        )
        for name in chosen
    )


def _dealt(name: str, lines: Sequence[tuple[Row, Example]], sizes: Mapping[str, int | None], seed: int) -> Desideratum:
    """The lines of one desideratum in three splits; those that name a split: `train` is trained and chosen on."""
    n_train, n_choose, n_report = (sizes[key] for key in ("n_train", "n_choose", "n_report"))
    if lines[0][0].split is None:
        distinct = drop_duplicates([example for _, example in lines])
        order = np.random.default_rng(seed).permutation(len(distinct))
        third = len(distinct) // 3
        n_report = third if n_report is None else n_report
        report, search = [distinct[i] for i in order[:n_report]], [distinct[i] for i in order[n_report:]]
        n_choose = third if n_choose is None else n_choose
    else:
        report = drop_duplicates([example for row, example in lines if row.split == "heldout"])
        search = drop_duplicates([example for row, example in lines if row.split == "train"])
        n_choose = len(search) // 2 if n_choose is None else n_choose
        n_report = len(report) if n_report is None else n_report
    n_train = len(search) - n_choose if n_train is None else n_train
    if min(n_train, n_choose, n_report) < 1 or len(report) < n_report or len(search) < n_train + n_choose:
        raise BadTask(
            f"desideratum '{name}' has {len(report) + len(search)} distinct examples, which cannot be dealt into {n_train} to "
            f"train on, {n_choose} to choose on and {n_report} to report on: add lines, or ask for fewer "
            "(n_train=, n_choose=, n_report=)"
        )
    choose = tuple(search[:n_choose])
    return Desideratum(name, tuple(search[n_choose : n_choose + n_train]), choose, tuple(report[:n_report]))
