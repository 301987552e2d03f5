"""The tasks by name, and `load_task`. A new task is a file with a `build`, a line in `TASKS` and a file in conf/task."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from circuitdisc.checks import EXAMPLES, SEED, bounded
from circuitdisc.errors import BadSetting, CircuitdiscWarning, UnknownName
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.check import check_examples
from circuitdisc.tasks.examine import examine, examine_variety
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.notes import collect_notes

COMMON = ("n", "n_heldout", "seed")
UNSET = "???"  # what a YAML file writes for a value that has to be given


@dataclass(frozen=True)
class TaskKind:
    """A task that can be loaded by name.

    Args:
        module: the module that holds `build(model, *, n, n_heldout, seed, **settings) -> Task`.
        summary: one line for `circuitdisc list tasks`.
        n: train examples where none are asked for; None: the task decides.
    """

    module: str
    summary: str
    n: int | None = 200

    @property
    def build(self) -> Callable[..., Task]:
        return importlib.import_module(self.module).build

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The task's own settings, by name."""
        parameters = inspect.signature(self.build).parameters.values()
        own = (
            parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in COMMON
        )
        return {parameter.name: parameter for parameter in own}


TASKS: dict[str, TaskKind] = {
    "tpp": TaskKind("circuitdisc.tasks.library.tpp", "transitive property: from a R b and b R c, continue 'a R' with c"),
    "induction": TaskKind("circuitdisc.tasks.library.induction", "random tokens said twice: ... A B ... A is continued with B"),
    "ioi": TaskKind("circuitdisc.tasks.library.ioi", "indirect object: of two names, continue with the one that does not act"),
    "colored_objects": TaskKind(
        "circuitdisc.tasks.library.colored_objects",
        "of three objects of three colors, continue with the color of the one asked for",
    ),
    "entity_tracking": TaskKind(
        "circuitdisc.tasks.library.entity_tracking", "objects in labelled boxes: continue with the object in the box asked for"
    ),
    "greater_than": TaskKind(
        "circuitdisc.tasks.library.greater_than", "years: after 'from 1732 to 17', continue with an ending above 32"
    ),
    "gendered_pronoun": TaskKind(
        "circuitdisc.tasks.library.gendered_pronoun", "tag questions: continue with the pronoun that agrees with the name"
    ),
    "docstring": TaskKind("circuitdisc.tasks.library.docstring", "a function's docstring: continue with its next argument"),
    "arithmetic": TaskKind("circuitdisc.tasks.library.arithmetic", "continue '3 + 5 =' with the result"),
    "factual_recall": TaskKind(
        "circuitdisc.tasks.library.factual_recall", "capitals, languages, kinds of animals: continue with the fact", n=100
    ),
    "subject_verb_agreement": TaskKind(
        "circuitdisc.tasks.library.subject_verb_agreement",
        "continue with a verb in the subject's number, not the nearer noun's",
    ),
    "rephrase": TaskKind(
        "circuitdisc.tasks.library.rephrase", "say it again in other words: continue with a synonym, not the same adjective"
    ),
    "file": TaskKind("circuitdisc.tasks.library.file", "your own prompt pairs from a .jsonl or .csv file", n=None),
}


@bounded(n=EXAMPLES, n_heldout=EXAMPLES, seed=SEED)
def load_task(
    name_or_path: str | Path,
    model: TaskModel,
    *,
    n: int | None = None,
    n_heldout: int | None = None,
    seed: int = 0,
    **settings: object,
) -> Task:
    """Build a task for a model.

    Args:
        name_or_path: a name in `TASKS`, or a .jsonl or .csv file.
        model: the model, or anything with its name, tokenizer, d_vocab, d_vocab_out and n_ctx.
        n: train examples; None: 200, or half of a file.
        n_heldout: held-out examples; None: as many as `n`.
        seed: seed of the draw or, for a file, of the split.
        **settings: the task's own settings.

    Returns:
        The task; its examples fit the model. What is odd about their tokens stands in its `notes`, and each note is a
        `CircuitdiscWarning`.

    Raises:
        UnknownName: no task, or no setting of it, has this name.
        BadSetting: a setting has a value that cannot be used.
        BadFile: the file is missing or malformed.
        BadTask: the examples cannot be used with this model.
    """
    name = str(name_or_path)
    if name not in TASKS:
        if Path(name).suffix.lower() not in (".jsonl", ".csv") and not Path(name).is_file():
            raise UnknownName("task", name, TASKS, "Your own prompt pairs go into a .jsonl or .csv file.")
        name, settings = "file", {"path": name, **settings}
    kind = TASKS[name]
    own = _with_defaults(name, settings, kind.settings)
    n = kind.n if n is None else n
    n_heldout = n if n_heldout is None else n_heldout
    with collect_notes() as notes:
        task = kind.build(model, n=n, n_heldout=n_heldout, seed=seed, **own)
    examples = (*task.train, *task.heldout)
    check_examples(examples, [f"task '{task.name}', example {index}" for index in range(len(examples))], model)
    made = {"n": len(task.train), "n_heldout": len(task.heldout), "seed": seed, **own}
    notes += [*examine(examples, model.tokenizer), *examine_variety(examples, model.tokenizer)]
    notes = tuple(dict.fromkeys((*task.notes, *notes)))
    for sentence in notes:
        warnings.warn(sentence, CircuitdiscWarning, stacklevel=2)
    return replace(task, settings={**made, **task.settings}, notes=notes)


def _with_defaults(task: str, given: Mapping[str, object], known: Mapping[str, inspect.Parameter]) -> dict[str, object]:
    """The settings given and the defaults of the others; those with a default of one type must be of that type."""
    for name in given:
        if name not in known:
            raise UnknownName(f"setting of task '{task}'", name, (*known, *COMMON))
    values: dict[str, object] = {}
    for name, parameter in known.items():
        default = parameter.default
        if default is parameter.empty and given.get(name, UNSET) == UNSET:
            raise BadSetting(f"task '{task}' needs a value for '{name}': give {name}=...")
        value = given.get(name, default)
        if isinstance(default, bool | int | str) and type(value) is not type(default):
            raise BadSetting(
                f"{name}={value!r} cannot be used in task '{task}': give a value of type {type(default).__name__}, "
                f"as the default {default!r} is"
            )
        values[name] = value
    return values
