"""The tasks by name, and `load_task`. A new task is a file with a `build`, a line in `TASKS` and a file in conf/task.

Other packages declare theirs as entry points (`circuitdisc/plugins.py`), each a function that is called as `build` is.
"""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from circuitdisc.checks import EXAMPLES, SEED, Whole, bounded
from circuitdisc.errors import BadSetting, CircuitdiscWarning, UnknownName
from circuitdisc.plugins import Registry, check_function
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.check import check_examples
from circuitdisc.tasks.drawn import note_fewer
from circuitdisc.tasks.examine import examine, examine_variety
from circuitdisc.tasks.framing import Framing
from circuitdisc.tasks.measured import metric_for
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.notes import collect_notes

COMMON = ("n", "n_heldout", "seed")
FRAMED: dict[str, object] = {"shots": 0, "chat_template": False}
"""What every task takes beside its own settings, with defaults: what stands around its prompts (`tasks/framing.py`)."""
SHOTS = Whole(0, 1000)
UNSET = "???"  # what a YAML file writes for a value that has to be given


@dataclass(frozen=True)
class TaskKind:
    """A task that can be loaded by name.

    Args:
        name: also the name of its module in `circuitdisc.tasks.library`.
        summary: one line for `circuitdisc list tasks`.
        n: train examples where none are asked for; None: the task decides.
        declared: the function that builds it, if it is another package's.
    """

    name: str
    summary: str
    n: int | None = 200
    declared: Callable[..., Task] | None = field(default=None, kw_only=True, repr=False)

    @property
    def module(self) -> str:
        return f"circuitdisc.tasks.library.{self.name}"

    @property
    def build(self) -> Callable[..., Task]:
        """`build(model, *, n, n_heldout, seed, **settings) -> Task`."""
        return self.declared or importlib.import_module(self.module).build

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The task's own settings, by name."""
        parameters = inspect.signature(self.build).parameters.values()
        own = (
            parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in COMMON
        )
        return {parameter.name: parameter for parameter in own}

    @property
    def defaults(self) -> dict[str, object]:
        """What a file in conf/task holds beside the name."""
        own = {
            name: UNSET if parameter.default is parameter.empty else parameter.default
            for name, parameter in self.settings.items()
        }
        return {"n": self.n, "n_heldout": self.n, **own, **FRAMED}


TASKS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (
        TaskKind("tpp", "transitive property: from a R b and b R c, continue 'a R' with c"),
        TaskKind("induction", "random tokens said twice: ... A B ... A is continued with B"),
        TaskKind("ioi", "indirect object: of two names, continue with the one that does not act"),
        TaskKind("colored_objects", "of three objects of three colors, continue with the color of the one asked for"),
        TaskKind("entity_tracking", "objects in labelled boxes: continue with the object in the box asked for"),
        TaskKind("greater_than", "years: after 'from 1732 to 17', continue with an ending above 32"),
        TaskKind("gendered_pronoun", "tag questions: continue with the pronoun that agrees with the name"),
        TaskKind("docstring", "a function's docstring: continue with its next argument"),
        TaskKind("arithmetic", "continue '3 + 5 =' with the result"),
        TaskKind("factual_recall", "capitals, languages, kinds of animals: continue with the fact", n=100),
        TaskKind("subject_verb_agreement", "continue with a verb in the subject's number, not the nearer noun's"),
        TaskKind("rephrase", "say it again in other words: continue with a synonym, not the same adjective"),
        TaskKind("hypernymy", "two things of a kind 'and other': continue with what the kind is called"),
        TaskKind("file", "your own prompt pairs from a .jsonl or .csv file", n=None),
    )
}


def _adopt(name: str, build: Any) -> TaskKind:
    return TaskKind(name, check_function(build, ("model",), COMMON), declared=build)


REGISTRY = Registry(
    "task",
    TASKS,
    _adopt,
    "a function (model, *, n, n_heldout, seed, setting=default, ...) that gives a Task",
    lambda kind: kind.defaults,
    hint="Your own prompt pairs go into a .jsonl or .csv file.",
)


@bounded(n=EXAMPLES, n_heldout=EXAMPLES, seed=SEED, shots=SHOTS)
def load_task(
    task: Any,
    model: TaskModel,
    *,
    metric: Any = None,
    n: int | None = None,
    n_heldout: int | None = None,
    seed: int = 0,
    shots: int = 0,
    chat_template: bool = False,
    **settings: object,
) -> Task:
    """Build a task for a model.

    Args:
        task: a name in `TASKS`, or of a task of another package, or a .jsonl or .csv file; or prompt pairs in memory, with the
            fields of such a file: a list of dicts, or a pandas data frame.
        model: the model, or anything with its name, tokenizer, d_vocab, d_vocab_out and n_ctx.
        metric: what is measured where no other is asked for: a name, a `Metric` or a function; None: the task's own.
        n: train examples; None: 200, or half of a file. Of a task that has fewer prompts all are taken, with a note.
        n_heldout: held-out examples; None: as many as `n`.
        seed: seed of the draw or, for a file, of the split.
        shots: solved examples of the task before each prompt, the same before all; they are no examples themselves.
        chat_template: whether each prompt is the user's turn in the tokenizer's chat template, so that the answer is the first
            token of the assistant's.
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
    if not isinstance(task, str | PathLike):
        name, settings = "file", {"path": task, **settings}
    elif (name := str(task)) not in REGISTRY.names and (
        Path(name).suffix.lower() in (".jsonl", ".csv") or Path(name).is_file()
    ):
        name, settings = "file", {"path": name, **settings}
    kind = REGISTRY.get(name)
    own = _with_defaults(name, settings, kind.settings)
    n = kind.n if n is None else n
    n_heldout = n if n_heldout is None else n_heldout
    if not isinstance(chat_template, bool):
        raise BadSetting(f"chat_template={chat_template!r} cannot be used: give true or false")
    with collect_notes() as notes:
        built = _built(kind, model, n, n_heldout, seed, own, shots, chat_template)
    examples = (*built.train, *built.heldout)
    check_examples(examples, [f"task '{built.name}', example {index}" for index in range(len(examples))], model)
    made = {"n": len(built.train), "n_heldout": len(built.heldout), "seed": seed, **own}
    made |= {"shots": shots} if shots else {}
    made |= {"chat_template": True} if chat_template else {}
    notes += [*examine(examples, model.tokenizer), *examine_variety(examples, model.tokenizer)]
    notes = tuple(dict.fromkeys((*built.notes, *notes)))
    for sentence in notes:
        warnings.warn(sentence, CircuitdiscWarning, stacklevel=2)
    measured = built.metric if metric is None else metric_for(model, built, metric)
    return replace(built, metric=measured, settings={**made, **built.settings}, notes=notes)


def _built(
    kind: TaskKind,
    model: TaskModel,
    n: int | None,
    n_heldout: int | None,
    seed: int,
    own: dict[str, Any],
    shots: int,
    chat_template: bool,
) -> Task:
    """The task in its frame."""

    def build(n: int | None, n_heldout: int | None, seed: int) -> Task:
        task = kind.build(model, n=n, n_heldout=n_heldout, seed=seed, **own)
        if not isinstance(task, Task):
            raise BadSetting(f"task '{kind.name}' gave a {type(task).__name__}: it must give a Task")
        return task

    if not shots and not chat_template:
        task = build(n, n_heldout, seed)
    else:
        framing = Framing(model, shots, chat_template, own.get("prepend_bos"), bool(own.get("first_token")), seed)
        if kind.n is None:
            task = framing.frame_given(build, n, n_heldout)
        else:
            assert n is not None
            assert n_heldout is not None
            task = framing.frame_drawn(build, n, n_heldout)
    if kind.n is not None and n is not None and n_heldout is not None:
        note_fewer(task, n, n_heldout)
    return task


def _with_defaults(task: str, given: Mapping[str, object], known: Mapping[str, inspect.Parameter]) -> dict[str, object]:
    """The settings given and the defaults of the others; those with a default of one type must be of that type."""
    for name in given:
        if name not in known:
            raise UnknownName(f"setting of task '{task}'", name, (*known, *COMMON, *FRAMED))
    values: dict[str, object] = {}
    for name, parameter in known.items():
        default = parameter.default
        value = given.get(name, default)
        if value is parameter.empty or (default is parameter.empty and isinstance(value, str) and value == UNSET):
            raise BadSetting(f"task '{task}' needs a value for '{name}': give {name}=...")
        if isinstance(default, bool | int | str) and type(value) is not type(default):
            raise BadSetting(
                f"{name}={value!r} cannot be used in task '{task}': give a value of type {type(default).__name__}, "
                f"as the default {default!r} is"
            )
        values[name] = value
    return values
