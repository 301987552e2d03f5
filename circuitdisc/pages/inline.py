"""The explorer by itself, for notebooks: what `circuitdisc.explore` gives, and how a circuit shows itself there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdisc.ablation import get_ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import BadSetting, GraphMismatch
from circuitdisc.files import write_text
from circuitdisc.pages.explorer import MOST_CIRCUITS, as_json, comparison_data, explorer_data
from circuitdisc.pages.page import render
from circuitdisc.scoring.base import Scores
from circuitdisc.tasks.measured import metric_for

if TYPE_CHECKING:
    from circuitdisc.heads.explored import Explored
    from circuitdisc.models.model import Model
    from circuitdisc.tasks.base import Task

HEIGHT = 640
"""Pixels of the explorer in a notebook; its corner can be pulled."""


@dataclass(frozen=True)
class ExplorerView:
    """An explorer: a notebook shows it, `save` writes it.

    Args:
        page: HTML that needs no other file.
        words: what it shows.
    """

    page: str
    words: str

    def save(self, path: str | PathLike[str]) -> Path:
        """Write it as a page of its own.

        Raises:
            BadRun: the file cannot be written.
        """
        write_text(Path(path), self.page)
        return Path(path)

    def __repr__(self) -> str:
        return f"ExplorerView({self.words!r}, {len(self.page) // 1000:,} kB: save(path) writes the page)"

    def _repr_html_(self) -> str:
        """A frame that runs its own script and reaches nothing of the notebook."""
        return (
            f'<iframe title="{escape(self.words)}" sandbox="allow-scripts allow-downloads" srcdoc="{escape(self.page)}" '
            f'style="width: 100%; height: {HEIGHT}px; border: 0; resize: vertical; overflow: auto"></iframe>'
        )


def explore(
    found: Circuit | Discovery | Mapping[str, Circuit],
    model: "Model | None" = None,
    task: "Task | None" = None,
    *,
    scores: Scores | None = None,
    memory: str | int = "4GiB",
) -> ExplorerView:
    """The explorer of a circuit, as a run's page has it; in a notebook it shows itself.

    Args:
        found: a circuit, what an algorithm has found, or circuits of one graph by name, which are compared.
        model, task: with both, it also shows what only measuring tells, on at most 200 held-out examples: the answers of model
            and circuit, what every node adds and promotes, roles, attention, and what cutting edges changes. About 4 forward
            passes an example; of algorithms that were run here, with their ablation and metric.
        scores: of the circuit; its held-out faithfulness stands at the slider.
        memory: budget for activations of that.

    Raises:
        BadSetting: there is nothing to compare, or one of model and task is missing.
        GraphMismatch: circuits are of different graphs.
        CircuitdiscError: the circuit cannot be run on the task's held-out examples.
    """
    if isinstance(found, Mapping):
        return _compared(found)
    circuit, edge_scores = (found, None) if isinstance(found, Circuit) else (found.circuit, found.edge_scores)
    words = f"Circuit of {circuit.n_edges:,} edges"
    if (model is None) != (task is None):
        raise BadSetting("explore() measures on a task's examples with a model: give both of them, or none")
    explored = None if model is None or task is None else asdict(_measured(circuit, model, task, memory))
    data = explorer_data(circuit, label=f"{words}.", scores=scores, edge_scores=edge_scores, explored=explored)
    return ExplorerView(render("inline.html.j2", heading=words, explored=as_json(data)), words)


def _compared(circuits: Mapping[str, Circuit]) -> ExplorerView:
    if not 2 <= len(circuits) <= MOST_CIRCUITS:
        raise BadSetting(f"{len(circuits)} circuits cannot be compared: give 2 to {MOST_CIRCUITS}, by name")
    first = next(iter(circuits.values()))
    for name, circuit in circuits.items():
        if circuit.graph != first.graph:
            raise GraphMismatch(f"circuits of different graphs cannot be compared: {name} is of another one than the first")
    words = f"{len(circuits)} circuits: {', '.join(circuits)}"
    data = comparison_data(circuits, label=f"{words}.")
    return ExplorerView(render("inline.html.j2", heading=words, explored=as_json(data)), words)


def _measured(circuit: Circuit, model: "Model", task: "Task", memory: str | int) -> "Explored":
    """Under the ablation and by the metric that the circuit was found with."""
    from circuitdisc.heads.explored import explored  # with the engine, which a drawing alone does not need

    came_from = circuit.provenance
    if not came_from.ablation:
        raise BadSetting("this circuit does not say which ablation it was found with, so that nothing is measured of it here")
    metric = metric_for(model, task, came_from.metric or None)
    return explored(model, task, circuit, ablation=get_ablation(dict(came_from.ablation)), metric=metric, memory=memory)
