"""Specificity: is a circuit the task's own, and on which prompts does it fail?

Matrix of circuits (this one, those of other runs of the same model) and tasks (its own, other runs', others that are named):

1. faithfulness of the circuit on the task, (m(C) - m(empty)) / (m(M) - m(empty));
2. *damage*: cut the circuit's edges (of a head circuit its heads) alone, and keep all others, (m(M) - m(without C)) /
   (m(M) - m(empty)): 0 % leaves the task as it is, 100 % leaves no more than the empty circuit;
3. the damage of random circuits with as many edges, of the same kind and layers (`controls.py`). A circuit that is specific
   damages its own task more than others, and more than random ones do.

Each task is measured on its held-out examples, its ablation refers to its own train split. A task that the model does not do
has nothing that could be damaged: it is left out, with a note.

Worst cases: the held-out examples on which circuit and model are farthest apart, by the metric and by KL(M || C).

Sources: one task's circuit ablated on other tasks (arXiv 2605.08348); worst cases beside the mean (arXiv 2407.15166).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.certainty.forwards import Spending
from circuitdisc.certainty.general_text import TextDivergence, text_divergence
from circuitdisc.checks import N_RANDOM, Whole
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.discovery.registry import refuse_chance
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import CircuitdiscError
from circuitdisc.identity import hash_circuit, identity_of
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.options import Drawing, Option, takes
from circuitdisc.progress import progress_bar
from circuitdisc.results import Result, Row
from circuitdisc.runs import Memo
from circuitdisc.scoring.base import judging_ablation
from circuitdisc.scoring.chance import p_value
from circuitdisc.scoring.faithfulness import normalised, why_undefined
from circuitdisc.scoring.judging import ByMetric, check_graph, check_split
from circuitdisc.scoring.score import masks_of
from circuitdisc.scoring.work import plain_forwards
from circuitdisc.stats import interval, partition_of, plain
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import beside, metric_for

OWN = "this circuit"
WORST = 10
"""Examples that are named."""


@dataclass(frozen=True, repr=False)
class CircuitOnTask(Result):
    """A circuit on a task.

    Args:
        circuit, task: names of the row and the column.
        is_own: the circuit is that task's own.
        n: held-out examples.
        faithfulness, low, high: of the circuit alone.
        damage, damage_low, damage_high: of all but the circuit.
        random: the damage of random circuits.
        note: why there is no value; empty if there is one.
    """

    circuit: str
    task: str
    is_own: bool
    n: int
    metric: str
    faithfulness: float | None = None
    low: float | None = None
    high: float | None = None
    damage: float | None = None
    damage_low: float | None = None
    damage_high: float | None = None
    random: tuple[float, ...] = ()
    note: str = ""

    @property
    def p(self) -> float:
        """Share of the random circuits, this one among them, that do as much damage."""
        damage = self.damage or 0.0
        return p_value(sum(value >= damage for value in self.random), len(self.random))


@dataclass(frozen=True)
class WorstExample:
    """An example on which circuit and model are far apart.

    Args:
        full, circuit: the metric of both.
        value: how far apart they are.
        sds: by how many standard deviations that is more than the mean.
    """

    prompt: str
    group: str
    full: float
    circuit: float
    value: float
    sds: float | None


@dataclass(frozen=True, repr=False)
class WorstCases(Result):
    """How far apart circuit and model are, example by example.

    Args:
        of: what tells them apart: a metric, whose difference has no sign here, or `kl`, in nats.
        mean, sd, worst: over the examples.
        random_worst: the worst of each random circuit.
        examples: the worst, the farthest apart first.
    """

    of: str
    n: int
    mean: float
    sd: float
    worst: float
    random_worst: tuple[float, ...]
    examples: tuple[WorstExample, ...]


@dataclass(frozen=True, repr=False)
class Specificity(Result):
    """What a circuit does elsewhere, and where it fails.

    Args:
        cells: the matrix, row by row.
        worst: by the metric, and by KL.
        texts: on general text; None if none was given.
        notes: what was left out, and why.
        forwards: forward passes of a prompt: of the matrix, the worst cases, the texts, the run's own search (None: unknown).
    """

    cells: tuple[CircuitOnTask, ...]
    worst: tuple[WorstCases, ...]
    texts: TextDivergence | None
    notes: tuple[str, ...]
    ablation: str
    confidence: float
    matched: str
    forwards: Mapping[str, float | None]

    def table(self) -> list[Row]:
        """A line a cell."""
        return [cell.to_dict() for cell in self.cells]


class Telling(Drawing, ByMetric, total=False):
    """How a circuit is told apart."""

    n_random: Annotated[int, Option(10, "random circuits matched with each; fewer where there are no more.", N_RANDOM)]
    max_tokens: Annotated[int, Option(64, "of each text.", Whole(2, 100_000))]
    search: Annotated[Cost | None, Option(None, "what the run's own search has cost; None: not known.")]
    journal: Annotated[
        str | Path | None, Option(None, "a file for the cells as they end; called again with it, a killed call goes on.")
    ]


@takes(Telling)
def specificity(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    others: Mapping[str, Task] | None = None,
    runs: Mapping[str, tuple[Circuit, Task]] | None = None,
    texts: Sequence[str] | None = None,
    **options: Unpack[Telling],
) -> Specificity:
    """Measure a circuit on other tasks, other circuits on its own, and where it is farthest from the model.

    Args:
        others: tasks by name; another draw of the circuit's own task is passed over.
        runs: circuits of the same model with the tasks that they were found on, by name.
        texts: general text, a text each.
        metric: of the circuit's own task; others take theirs.
        seed: of the random circuits and the bootstrap.

    Raises:
        GraphMismatch: a circuit belongs to another architecture.
        BadSetting: no ablation is known, or a number is out of its bounds.
        BadTask: no text can be read.
        BadRun: the journal was begun with other weights, examples, settings or another circuit.
    """
    given: Any = options
    check_split(task, "heldout")
    ablation = judging_ablation(given["ablation"], circuit.provenance)
    metric = metric_for(model, task, given["metric"], circuit.provenance.metric)
    circuits = {OWN: circuit, **{name: other for name, (other, _) in (runs or {}).items()}}
    for other in circuits.values():
        check_graph(model, other)
    homes = {OWN: task.name, **{name: f"{its.name} of {name}" for name, (_, its) in (runs or {}).items()}}
    columns = {task.name: task} | {name: its for name, its in (others or {}).items() if name != task.name}
    columns |= {homes[name]: its for name, (_, its) in (runs or {}).items()}
    notes = [f"{name}: {why}" for name, why in _not_done(model, columns, task.name) if columns.pop(name)]
    controls = {
        name: random_circuits(each, given["n_random"], np.random.default_rng(given["seed"])) for name, each in circuits.items()
    }
    cells: list[CircuitOnTask] = []
    examples = {
        f"{split} examples of {name}": its.split(split) for name, its in columns.items() for split in ("train", "heldout")
    }
    settings = {"ablation": ablation.to_dict(), "metric": metric.name, "seed": given["seed"], "n_random": given["n_random"]}
    settings |= {
        "confidence": given["confidence"],
        "circuits": {name: hash_circuit(each) for name, each in circuits.items()},
    }
    units = Memo(given["journal"], identity_of(model, examples, settings, circuit))
    forwards: dict[str, float | None] = {"matrix": 0.0}
    with closing(units), progress_bar(len(columns) + 1 + bool(texts), "specificity", "step", given["progress"]) as bar:
        for name, its in columns.items():
            measure = metric if name == task.name else metric_for(model, its)

            def column(name: str = name, its: Task = its, measure: Metric = measure) -> dict[str, Any]:
                return _column(model, (name, its), circuits, controls, homes, ablation, measure, given)

            made = units.get(f"on {name}", column)
            cells += [CircuitOnTask.from_dict(cell) for cell in made["cells"]]
            forwards["matrix"] = (forwards["matrix"] or 0.0) + made["forwards"]
            bar.update()
        masks = masks_of(circuit, controls[OWN])
        worst, forwards["worst cases"] = _worst(model, task, masks, ablation, metric, given)
        bar.update()
        divergence = None
        if texts:
            kept = {name: mask for name, mask in masks.items() if name != "full"}
            divergence, forwards["texts"] = text_divergence(model, task, texts, kept, ablation, given["max_tokens"], given)
            bar.update()
    search = given["search"]
    forwards["own search"] = None if search is None else plain_forwards(search, model.graph) * len(task.train)
    rows = sorted(cells, key=lambda cell: list(circuits).index(cell.circuit))
    about = (ablation.label, given["confidence"], controls[OWN].words)
    return Specificity(tuple(rows), worst, divergence, tuple(notes), *about, forwards)


def _not_done(model: Model, columns: Mapping[str, Task], own: str) -> list[tuple[str, str]]:
    """Tasks other than the circuit's own that say nothing of it, with the reason."""
    left_out = []
    for name, task in columns.items():
        try:
            if name != own:
                check_split(task, "heldout")
                refuse_chance(model, task, metric_for(model, task))
        except CircuitdiscError as error:
            left_out.append((name, str(error).splitlines()[0]))
    return left_out


# --- the matrix -----------------------------------------------------------------------------------------------------------


def without(circuit: Circuit) -> Circuit:
    """All but a circuit: the other edges; of a head circuit the other heads with all MLPs."""
    if circuit.granularity == "edge":
        return ~circuit
    own = set(circuit.heads())
    return Circuit.from_heads(circuit.graph, [name for name in circuit.graph.heads if name not in own])


def _damage(means: Float[np.ndarray, "3 *W"]) -> Float[np.ndarray, "*W"]:
    """From the means of the full model, all but the circuit, and the empty circuit."""
    return 1 - normalised(means)


def _column(
    model: Model,
    named: tuple[str, Task],
    circuits: Mapping[str, Circuit],
    controls: Mapping[str, Any],
    homes: Mapping[str, str],
    ablation: Ablation,
    metric: Metric,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """All circuits on a task, as plain data; where the ablation cannot be had on it, cells with the reason."""
    (name, task), cells = named, []
    about = [(row, name, homes[row] == name, len(task.heldout), metric.name) for row in circuits]
    masks: dict[str, Bool[np.ndarray, "R S"]] = {}
    for row, circuit in circuits.items():
        ends = masks_of(circuit, controls[row])
        masks |= {
            "full": ends["full"],
            f"empty of {row}": ends["empty"],
            row: circuit.mask,
            f"without {row}": without(circuit).mask,
        }
        masks |= {f"without {row}, random {at}": without(each).mask for at, each in enumerate(controls[row].circuits)}
    try:
        patching = Patching(model, ablation, task.train, memory=given["memory"])
        spending = Spending(patching, task)
        found = patching.evaluate(task.heldout, masks, [metric])
    except CircuitdiscError as error:
        return {"cells": [CircuitOnTask(*each, note=str(error)).to_dict() for each in about], "forwards": 0.0}
    values = {which: by_metric[metric.name].double().cpu().numpy() for which, by_metric in found.items()}
    over = partition_of(task.heldout)

    def figure(row: str, which: str, of: Callable[..., Any]) -> tuple[float | None, float | None, float | None]:
        samples = [values["full"], values[which], values[f"empty of {row}"]]
        ends = interval(samples, of, groups=over, confidence=given["confidence"], seed=given["seed"])
        return plain(float(of(np.stack([sample.mean() for sample in samples])))), *ends.ends

    for each in about:
        row = each[0]
        why = why_undefined(float(values["full"].mean()), float(values[f"empty of {row}"].mean()))
        if why:
            cells.append(CircuitOnTask(*each, note=why))
            continue
        ends = [values["full"].mean(), values[f"empty of {row}"].mean()]
        drawn = tuple(
            float(_damage(np.array([ends[0], values[f"without {row}, random {at}"].mean(), ends[1]])))
            for at in range(len(controls[row].circuits))
        )
        kept, gone = figure(row, row, normalised), figure(row, f"without {row}", _damage)
        cells.append(CircuitOnTask(*each, *kept, *gone, drawn))
    return {"cells": [cell.to_dict() for cell in cells], "forwards": spending.on(len(task.heldout))}


# --- the worst cases ------------------------------------------------------------------------------------------------------


def _worst(
    model: Model,
    task: Task,
    masks: Mapping[str, Bool[np.ndarray, "R S"]],
    ablation: Ablation,
    metric: Metric,
    given: Mapping[str, Any],
) -> tuple[tuple[WorstCases, ...], float]:
    patching = Patching(model, ablation, task.train, memory=given["memory"])
    spending = Spending(patching, task)
    measures = beside(model, metric, "kl")
    some = {name: mask for name, mask in masks.items() if name != "empty"}
    found = patching.evaluate(task.heldout, some, measures)
    values = {name: {m: row.double().cpu().numpy() for m, row in by_metric.items()} for name, by_metric in found.items()}
    prompts = [example.text or " ".join(map(str, example.clean)) for example in task.heldout]
    groups = [example.group for example in task.heldout]
    cases = []
    for measure in measures:
        apart = {name: np.abs(row[measure.name] - values["full"][measure.name]) for name, row in values.items()}
        own = apart["circuit"]
        order, mean = np.argsort(-own, kind="stable")[:WORST], float(own.mean())
        sd = float(own.std(ddof=1)) if len(own) > 1 else 0.0
        full, circuit = values["full"][metric.name], values["circuit"][metric.name]
        worst = tuple(
            WorstExample(
                prompts[at],
                groups[at],
                float(full[at]),
                float(circuit[at]),
                float(own[at]),
                (float(own[at]) - mean) / sd if sd else None,
            )
            for at in order
        )
        random = tuple(float(row.max()) for name, row in apart.items() if name.startswith("random"))
        cases.append(WorstCases(measure.name, len(own), mean, sd, float(own.max()), random, worst))
    return tuple(cases), spending.on(len(task.heldout))
