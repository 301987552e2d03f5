"""Which tasks a model does, and on which there is something to explain.

For each task: draw it for the model's tokenizer, run the model on its clean and on its corrupted prompts, and read off

1. accuracy, beside that of the best constant answer, and how often the right answer's logit lies above the wrong one's;
2. the task's metric on both, for the clean prompts' answers, and what the corrupted prompts take away of it;
3. whether a search is worth its time: the model does the task, by the same test that `discover` makes, and the corrupted
   prompts take something away, so that a circuit has something to explain under `resample` ablation.
"""

import csv
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

from typing_extensions import Unpack

from circuitdisc.checks import SEED, Whole, bounded
from circuitdisc.discovery.presearch import CorruptionGap, ability_metric, ability_of, clean_and_corrupted
from circuitdisc.errors import CircuitdiscError, CircuitdiscWarning
from circuitdisc.metrics import METRICS
from circuitdisc.models.model import Model
from circuitdisc.options import Option, Working, takes
from circuitdisc.pages.description import Description, Section
from circuitdisc.pages.verdict import Verdict
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result, Row
from circuitdisc.tasks.base import Example
from circuitdisc.tasks.framing import chat_frame
from circuitdisc.tasks.measured import metric_for
from circuitdisc.tasks.registry import REGISTRY as TASKS
from circuitdisc.tasks.registry import SHOTS, load_task
from circuitdisc.wording import number, percent

FEW = 20
"""Fewer examples say little."""
MOSTLY = 0.5
"""An accuracy below it means that the model mostly says something else."""
TABLE = "tasks.csv"

# --- the result -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class TaskCheck(Result):
    """A model on one task.

    Args:
        n: examples that fit the tokenizer; 0 where the task cannot be had.
        asked: examples asked for.
        metric: the task's own.
        accuracy: how often the most likely token of the vocabulary is right; None for a model of one output.
        chance: the accuracy of the best constant answer.
        pair_accuracy: how often a right answer's logit lies above all wrong ones; None without wrong answers.
        clean, corrupted: means of the metric of the clean prompts' answers.
        gap, error: mean difference of the two, example by example, and two standard errors of it.
        seconds: to draw and to run.
        worth: whether a search is worth its time.
        why: in a few words; of a task that cannot be had, its error's sentence.
        notes: what a reader must know of its examples.
    """

    task: str
    n: int
    asked: int
    metric: str | None = None
    accuracy: float | None = None
    chance: float | None = None
    pair_accuracy: float | None = None
    clean: float | None = None
    corrupted: float | None = None
    gap: float | None = None
    error: float | None = None
    seconds: float = 0.0
    worth: bool = False
    why: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class TaskChecks(Result):
    """Tasks on one model.

    Args:
        checks: a task each.
        shots: solved examples before each prompt.
        chat_template: whether prompts stand in the tokenizer's chat template.
    """

    model: str
    checks: tuple[TaskCheck, ...]
    shots: int = 0
    chat_template: bool = False

    def table(self) -> list[Row]:
        """A line a task."""
        rows = [check.to_dict() for check in self.checks]
        return [{key: value for key, value in row.items() if key != "notes"} for row in rows]

    def worth_a_search(self) -> list[str]:
        """Names of the tasks on which a search is worth its time."""
        return [check.task for check in self.checks if check.worth]


# --- what computes it -----------------------------------------------------------------------------------------------------


class Checking(Working, total=False):
    """How tasks are drawn and run."""

    seed: Annotated[int, Option(0, "of the examples.", SEED)]


@bounded(n=Whole(2, 1_000_000), shots=SHOTS)
@takes(Checking)
def check_tasks(
    model: Model,
    tasks: str | Sequence[str] | None = None,
    *,
    n: int = 100,
    shots: int = 0,
    chat_template: bool = False,
    **options: Unpack[Checking],
) -> TaskChecks:
    """Which tasks a model does, and on which there is something to explain.

    A task that does not fit the model's tokenizer is a line with its sentence.

    Args:
        tasks: names, or files of your own; None: all that are drawn.
        n: examples of each; of a file all lines are taken.
        shots: solved examples before each prompt.
        chat_template: whether prompts stand in the tokenizer's chat template.

    Raises:
        UnknownName: there is no such task.
        BadSetting: there is no chat template, or a number is out of bounds.
    """
    given: Any = options
    names = (
        [tasks] if isinstance(tasks, str) else list(tasks or (name for name in TASKS.names if TASKS.get(name).n is not None))
    )
    for name in names:
        if not Path(name).is_file():
            TASKS.get(name)
    if chat_template:
        chat_frame(model, shots)  # once for all, not in every line
    settings = {"seed": given["seed"], "shots": shots, "chat_template": chat_template}
    checks: list[TaskCheck] = []
    with progress_bar(len(names), "tasks", "task", given["progress"]) as bar:
        for name in names:
            bar.set_postfix_str(Path(name).name)
            sizes = {} if Path(name).is_file() else {"n": n - n // 2, "n_heldout": n // 2}
            checks.append(_checked(model, name, n, {**settings, **sizes}, given["memory"]))
            bar.update()
    return TaskChecks(model.name, tuple(checks), shots, chat_template)


def _checked(model: Model, name: str, asked: int, settings: dict[str, Any], memory: str | int) -> TaskCheck:
    started = perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CircuitdiscWarning)  # the notes stand in the result
            task = load_task(name, model, **settings)
    except CircuitdiscError as error:
        why = str(error)
        return TaskCheck(name, 0, asked, seconds=perf_counter() - started, why=why)
    examples, metric = (*task.heldout, *task.train), metric_for(model, task)
    asked = asked if "n" in settings else len(examples)
    able = ability_metric(examples)
    choosing = [METRICS["accuracy"]] * (model.d_vocab_out > 1) + [METRICS["pair_accuracy"]] * task.has_wrong
    metrics = list({each.name: each for each in (metric, able, *choosing)}.values())
    clean, corrupted = clean_and_corrupted(model, examples, metrics, memory)
    shares = {each.name: float(clean[each.name].mean()) for each in choosing}
    gap = CorruptionGap.between(clean[metric.name], corrupted[metric.name]) if corrupted else None
    accuracy, chance = shares.get("accuracy"), constant_accuracy(examples)
    worth, why = True, "yes"
    if model.d_vocab_out > 1 or able.name == "squared_error":
        ability = ability_of(model, examples, clean[able.name])
        if not ability.does:
            worth, why = False, f"no: does not do it ({able.name} {number(ability.mean)} ± {number(ability.error)})"
    if worth:
        worth, why = _worth(gap, accuracy, chance, len(examples))
    return TaskCheck(
        task.name,
        len(examples),
        asked,
        metric.name,
        accuracy,
        chance,
        shares.get("pair_accuracy"),
        float(clean[metric.name].mean()),
        gap and gap.corrupted,
        gap and gap.mean,
        gap and gap.error,
        perf_counter() - started,
        worth,
        why,
        task.notes,
    )


def _worth(gap: CorruptionGap | None, accuracy: float | None, chance: float, n: int) -> tuple[bool, str]:
    """Whether a search is worth its time on a task that the model does, and why not, or with what care."""
    if gap is None:
        return True, "yes, without resample: it has no corrupted prompts"
    if gap.is_nothing:
        return False, "no: corrupted prompts take nothing away"
    if gap.mean < 0:
        return False, "no: corrupted prompts raise the metric"
    if gap.is_small:
        return True, f"with care: corrupted prompts take only {percent(gap.share)} away"
    if accuracy is not None and accuracy <= chance and accuracy < MOSTLY:
        return True, "with care: prefers the right answer, but says another"
    if n < FEW:
        return True, "with care: few examples"
    return True, "yes"


def constant_accuracy(examples: Sequence[Example]) -> float:
    """The accuracy of the token that is right most often."""
    right: Counter[int] = Counter()
    for example in examples:
        for answers in example.answers:
            for token in set(answers):
                right[token] += 1 / len(example.answers)  # pyright: ignore[reportArgumentType] - counts may be shares
    return max(right.values()) / len(examples)


# --- what it says ---------------------------------------------------------------------------------------------------------


def describe_checks(checked: TaskChecks) -> Description:
    """The table, and the sentences of the tasks that do not fit."""
    around = [f"{checked.shots} solved examples before each prompt"] * bool(checked.shots)
    around += ["prompts in the chat template"] * checked.chat_template
    worth = checked.worth_a_search()
    lead = [
        f"A search is worth its time on {len(worth)} of {len(checked.checks)} tasks: {', '.join(worth)}."
        if worth
        else "A search is worth its time on none of these tasks.",
        *(f"{check.task} does not fit: {check.why}." for check in checked.checks if check.metric is None),
    ]
    caveats = (
        ["A task that a model does not do as it is may be done with shots=2, or chat_template=true."] if not around else []
    )
    note = (
        "Accuracy: the most likely token is right; chance: that of the best constant answer; pair: the right answer's logit is "
        "above the wrong ones'. Clean and corrupted: the metric of the clean prompts' answers; taken away: mean difference and "
        "two standard errors of it" + (f". {', '.join(around)}".rstrip() if around else "")
    )
    return Description(
        Verdict(tuple(lead), tuple(caveats)), (Section("Tasks", [_line(each) for each in checked.checks], note),)
    )


def _line(check: TaskCheck) -> Row:
    apart = "n/a" if check.gap is None or check.error is None else f"{number(check.gap)} ± {number(check.error)}"
    return {
        "task": Path(check.task).name,
        "n": f"{check.n} of {check.asked}",
        "metric": check.metric,
        "accuracy": check.accuracy,
        "chance": check.chance,
        "pair": check.pair_accuracy,
        "clean": check.clean,
        "corrupted": check.corrupted,
        "taken away": apart,
        "seconds": check.seconds,
        "worth a search": "no: does not fit (below)" if check.metric is None else check.why,
    }


def table_csv(checked: TaskChecks) -> str:
    """The table as CSV; a cell without a value is empty."""
    rows, text = checked.table(), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
