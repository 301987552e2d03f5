"""A score of a circuit as `circuitdisc score RUN --all` has it: how it is computed, and what it says of itself.

A score of your own is one `ScoreKind`. Its result is a dataclass, best one below `Result` (`results.py`), with
`to_dict() -> plain JSON`, from which it is read back, and with `describe() -> ScoreDescription`; `n`, `split`, `metric`,
`ablation` and `confidence` are among its fields.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.models.model import Model
from circuitdisc.scoring.work import Works
from circuitdisc.tasks.base import Task


@dataclass(frozen=True)
class ScoreCall:
    """What scores are computed from.

    Args:
        options: those that every score takes: ablation, metric, seed, memory and progress.
        ranked: the circuit with a score for every edge; None if its algorithm gives none.
        journal: a file in which a long computation may keep what is finished.
    """

    model: Model
    task: Task
    circuit: Circuit
    options: Mapping[str, Any]
    ranked: Discovery | None = None
    journal: Path | None = None

    def run(self, function: Callable[..., Any], **settings: Any) -> Any:
        """A function of model, task and circuit, with those of the options that it takes and its own settings."""
        known = inspect.signature(function).parameters
        options = {name: value for name, value in self.options.items() if name in known}
        return function(self.model, self.task, self.circuit, **options, **settings)


@dataclass(frozen=True)
class ScoreDescription:
    """What a score says of itself, on the terminal, on the page and in the verdict.

    Args:
        lines: sentences of its own part.
        rows, note: its table, and what the table shows.
        verdict: sentences of the verdict.
        caveats: every reason to trust them less, a sentence each.
    """

    lines: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    note: str = ""
    verdict: Sequence[str] = ()
    caveats: Sequence[str] = ()


@dataclass(frozen=True)
class ScoreKind:
    """A score by name.

    Args:
        name: its key in judgement.json.
        summary: what it is, in one line.
        result: the dataclass of its result.
        compute: gives the result; raises a CircuitdiscError where it cannot be had, and the sentence stands in its place.
        lacking: why it cannot be had here, before anything is computed; None: it can; "": there is nothing to say.
        title: what it is called; "": the name.
        work: which circuits it will run on how many examples, so that it can be said how long it takes; None: it does not say.
        always: every judgement.json has the key, as null where there is no result.
    """

    name: str
    summary: str
    result: type
    compute: Callable[[ScoreCall], Any]
    lacking: Callable[[ScoreCall], str | None] = lambda _: None
    title: str = ""
    always: bool = False
    work: Callable[[ScoreCall], Works] | None = None

    @property
    def words(self) -> str:
        """What it is called."""
        return self.title or self.name.replace("_", " ")
