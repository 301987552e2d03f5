"""`transfer`: find a circuit on each checkpoint of a ladder, and score every circuit on every checkpoint.

1. Find the circuit of each checkpoint, one model in memory at a time (or take circuits that are given).
2. Where asked for, find one circuit for several checkpoints together, and complete circuits of one checkpoint for another
   (`joint.py`).
3. Score every circuit on every checkpoint, on both splits, beside random circuits of equal size (`cells.py`).
4. Compare the circuits with each other (`ladder.py`).

Every finished part is kept (`store.py`): a call that was killed goes on, to the same numbers.

Source: the CS224N study of the Transitive Property Problem (its transfer table), for any checkpoints and any algorithm.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.checkpoints.joint import joint_discover, share_of_memory
from circuitdisc.checkpoints.listing import check_prompts, load, read_checkpoints
from circuitdisc.checkpoints.transfer.cells import Judge
from circuitdisc.checkpoints.transfer.ladder import ladder
from circuitdisc.checkpoints.transfer.matrix import FoundCircuit, Transfer
from circuitdisc.checkpoints.transfer.plan import TransferPlan, make_plan, read_given
from circuitdisc.checkpoints.transfer.store import CONFIG, Store, begun_in, has_found, read_settings, slug
from circuitdisc.checks import N_RANDOM, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import discover, refuse_chance
from circuitdisc.engine.measuring import AblatingAll
from circuitdisc.engine.memory import parse_memory
from circuitdisc.errors import BadRun, GraphMismatch, MetricAtChance
from circuitdisc.files import write_arrays, write_json
from circuitdisc.identity import Identity, identity_of, in_words
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import of_others, takes
from circuitdisc.progress import progress_bar
from circuitdisc.runs import check_free, workspace
from circuitdisc.schemas import TransferSettings, validate
from circuitdisc.scoring.base import Score
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import metric_for

RESULT, ARRAYS = "transfer.json", "arrays.npz"
_SHARED = ("ablation", "metric", "confidence", "seed", "memory")


class OfSearch(AblatingAll, total=False, extra_items=Any):
    """What is searched and scored; further settings are the algorithm's own."""


@bounded(n_random=N_RANDOM)
@takes(OfSearch)
def transfer(
    checkpoints: str | Sequence[str | Path],
    task: str | Mapping[str, Any],
    algorithm: str = "acdc",
    *,
    out: str | Path | None = None,
    circuits: Sequence[str | Path | Circuit] | Mapping[str, Circuit] | None = None,
    joint: bool | Sequence[str] = False,
    donor: str | Sequence[str | tuple[str, str]] = (),
    allow_chance: bool | Sequence[str] = True,
    n_random: int = 20,
    model_settings: Mapping[str, Any] | None = None,
    **options: Unpack[OfSearch],
) -> Transfer:
    """Score the circuit of every checkpoint on every checkpoint.

    Args:
        checkpoints: at least two of one architecture, in order, as `read_checkpoints` takes them.
        task: its name, or its settings (`{"name": "tpp", "n": 100, "n_heldout": 3000}`).
        algorithm: that finds each checkpoint's circuit.
        out: folder for everything; a folder of the same call goes on where it stopped. None keeps all in memory.
        circuits: given circuits (folders of runs, circuit.json files, or circuits by label) in place of discovery.
        joint: also search on all checkpoints that do the task together, or on the ones named; needs `acdc` or `head_ablation`.
        donor: pairs (A, B) or `A:B`: A's circuit, completed by what B needs; or `all`.
        ablation: what cut edges carry, in the search and in every cell. Means are those of the cell's own checkpoint.
        metric: of the search; None takes the task's own. Faithfulness is given for it and for the logit difference.
        allow_chance: whether checkpoints may fail the task, as the base of a ladder does: then it is noted. Or the names of
            those that may.
        n_random: random circuits of equal size, kinds and layers.
        model_settings: of `load_model`: dtype, device.
        seed: of the examples, the search, the random circuits and the bootstrap.
        memory: budget for activations; of a joint search, for the weights of all its checkpoints, too.
        settings: the algorithm's own.

    Raises:
        UnknownName: a checkpoint, task, algorithm or setting is not known.
        BadFile: a file of a checkpoint or a circuit is missing or malformed.
        BadModel: the checkpoints do not match.
        GraphMismatch: a given circuit belongs to another architecture.
        MetricAtChance: a checkpoint does not do the task and may not fail it.
        BadSetting: a setting is out of its bounds, or the folder holds a transfer with other settings.
        BadRun: the folder is taken or cannot be written, another process writes in it, or a checkpoint or the examples have
            changed since it was begun.
    """
    given_options: Any = options
    ablation, metric, confidence, seed, memory = (given_options[name] for name in _SHARED)
    settings = of_others(OfSearch, given_options)
    parse_memory(memory)
    cut = get_ablation(ablation)
    measure = None if metric is None else get_metric(metric)
    names = read_checkpoints([checkpoints] if isinstance(checkpoints, str | Path) else checkpoints, least=2, what="transfer")
    given = read_given(circuits)
    plan = make_plan(names, given, algorithm, settings, joint, donor, allow_chance)
    wanted = {"name": task} if isinstance(task, str) else dict(task)
    asked = {
        "checkpoints": names, "task": wanted, "algorithm": algorithm, "algorithm_settings": settings,
        "circuits": {label: one.to_dict() for label, one in given.items()} or None, "joint": list(plan.joint),
        "joint_of_those_that_do_it": plan.joint_if_able, "donor": [list(pair) for pair in plan.donors],
        "donors_that_do_it": plan.donors_if_able, "ablation": cut.to_dict(), "metric": measure and measure.name,
        "allow_chance": plan.allow_chance, "n_random": n_random, "confidence": confidence,
        "model": dict(model_settings or {}), "seed": seed, "memory": memory,
    }  # fmt: skip
    folder = None if out is None else Path(out)
    if folder is not None and not (folder / CONFIG).is_file():
        check_free(folder)
    with nullcontext() if folder is None else workspace(folder, lambda: has_found(folder)):
        store = Store(folder, asked)
        found = _Work(
            names, plan, given, wanted, algorithm, settings, cut, measure, asked, store, given_options["progress"]
        ).run()
        if folder is not None:
            write_json(folder / RESULT, found.to_dict())
            write_arrays(folder / ARRAYS, found.arrays())
    return found


def resume_transfer(folder: str | Path, progress: bool = False) -> Transfer:
    """Go on with a transfer that was killed; a finished part is not done again.

    Raises:
        BadRun: the folder is not that of a transfer.
    """
    folder = Path(folder).resolve()
    asked = read_settings(folder)
    validate(TransferSettings, asked, f"{folder}/config.json", error=BadRun)
    given = {label: Circuit.from_dict(one) for label, one in (asked["circuits"] or {}).items()}
    names = (*_SHARED, "allow_chance", "n_random")
    with chdir(begun_in(folder)):
        return transfer(
            asked["checkpoints"],
            asked["task"],
            asked["algorithm"],
            out=folder,
            circuits=given,
            joint=asked["joint_of_those_that_do_it"] or asked["joint"],
            donor="all" if asked["donors_that_do_it"] else [(a, b) for a, b in asked["donor"]],
            model_settings=asked["model"],
            progress=progress,
            **{name: asked[name] for name in names},
            **asked["algorithm_settings"],
        )


@dataclass
class _Known:
    """What a transfer's folder keeps of a checkpoint."""

    note: str
    metric: str


@dataclass
class _Cell:
    """What it keeps of a cell."""

    scores: tuple[Score, ...]


@dataclass
class _Work:
    """The steps of one call. A model is held by the local variables of one step alone, so that it goes when the step ends."""

    names: Sequence[str]
    plan: TransferPlan
    given: Mapping[str, Circuit]
    task_settings: dict[str, Any]
    algorithm: str
    settings: dict[str, Any]
    ablation: Ablation
    metric: Metric | None
    asked: Mapping[str, Any]
    store: Store
    progress: bool
    task: Task | None = None
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files = {name: f"checkpoints/{slug(index, name)}.json" for index, name in enumerate(self.names)}

    def run(self) -> Transfer:
        if not all(self.plan.may_fail(name) for name in self.names):  # before anything is searched
            for name in self.names:
                self._survey(name)
        found: list[FoundCircuit] = []
        if self.given:
            for name in self.names:
                self._survey(name)
            found += [_given(label, circuit, self.ablation) for label, circuit in self.given.items()]
        else:
            found += [self._own(name) for name in self.names]
        notes = {name: note for name in self.names if (note := self._known(name)["note"])}
        able = [name for name in self.names if name not in notes]
        along = [one.label for one in found if one.kind == "given" or one.label in able]
        found += self._joint(able, notes)
        found += [self._donor(a, b) for a, b in self._donor_pairs(able)]
        cells = self._cells(found)
        for name in self.names:  # what was taken over whole from an earlier start is of these weights and examples, too
            if name not in self.seen:
                self._load(name)
        return Transfer(
            tuple(self.names),
            tuple(found),
            cells,
            ladder({one.label: one.circuit for one in found}, along if len(along) > 1 else None),
            self._known(self.names[0])["metric"],
            self.ablation.label,
            notes,
            self.asked,
        )

    # --- checkpoints, one at a time ------------------------------------------------------------------------------------------

    def _load(self, name: str) -> tuple[Model, Task]:
        """A checkpoint with the task's examples, which are the same for all; seen to be those that the folder knows.

        Raises:
            BadRun: its weights, or the examples, have changed since.
        """
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        model = load(name, **self.asked["model"])
        if self.task is None:
            own = {"seed": self.asked["seed"], **self.task_settings}
            self.task = load_task(own.pop("name"), model, **own)
            check_prompts(self.names, (*self.task.train, *self.task.heldout))
            if n_joint := len(self.names) if self.plan.joint_if_able else len(self.plan.joint):
                share_of_memory([model] * n_joint, self.task.train, self.asked["memory"])
        if odd := next((one for one in self.given.values() if one.graph != model.graph), None):
            raise GraphMismatch(
                f"a given circuit belongs to a model of {odd.graph.describe()}; {name} has {model.graph.describe()}: "
                "give circuits of the checkpoints' own architecture"
            )
        if self.store.has(self.files[name]):
            known, now = Identity.from_dict(self._known(name).get("identity")), self._identity(model, self.task)
            different = known.differences(now) if known is not None else ["weights and examples that it does not name"]
            if different:
                raise BadRun(
                    f"{self.store.folder} was begun with {in_words(different)} ({name}), so that its finished parts are of "
                    "another model or task: give back what it was begun with, or begin again with another out="
                )
        self.seen.add(name)
        return model, self.task

    def _identity(self, model: Model, task: Task) -> Identity:
        """What the finished parts on one checkpoint belong to; the settings are compared by the store."""
        return identity_of(model, {"train examples": task.train, "held-out examples": task.heldout}, {})

    def _known(self, name: str) -> dict[str, Any]:
        data = self.store.read(self.files[name])
        validate(_Known, data, self.files[name])
        return data

    def _survey(self, name: str, loaded: tuple[Model, Task] | None = None) -> None:
        """Write down a checkpoint: its identity, and whether it does the task."""
        if self.store.has(self.files[name]):
            return
        model, task = loaded or self._load(name)
        note = ""
        try:
            refuse_chance(model, task)
        except MetricAtChance as error:
            if not self.plan.may_fail(name):
                raise
            note = f"does not do the task: {str(error).partition(': ')[2].partition(', so there')[0]}"
        metric = metric_for(model, task, self.metric).name
        identity = self._identity(model, task).to_dict()
        self.store.write(
            self.files[name], {"name": name, "identity": identity, "note": note, "metric": metric, "task": task.name}
        )

    # --- circuits ------------------------------------------------------------------------------------------------------------

    def _own(self, name: str) -> FoundCircuit:
        """The circuit of one checkpoint: found now, or before."""
        file = f"circuits/{slug(self.names.index(name), name)}"
        if not self.store.has(f"{file}.json"):
            model, task = self._load(name)
            self._survey(name, (model, task))
            with closing(self.store.journal(f"{file}.journal.jsonl")) as journal:
                found = discover(
                    model,
                    task,
                    self.algorithm,
                    ablation=self.ablation,
                    metric=self.metric,
                    seed=self.asked["seed"],
                    memory=self.asked["memory"],
                    allow_chance=True,  # who may be at chance has been asked
                    journal=journal,
                    progress=self.progress,
                    **self.settings,
                )
            self.store.write(f"{file}.json", found.circuit.to_dict())
        return FoundCircuit(name, "own", (name,), self._circuit(file), self._known(name)["note"])

    def _joint(self, able: Sequence[str], notes: dict[str, str]) -> Iterator[FoundCircuit]:
        """The circuit of several checkpoints together; a note where too few of them do the task."""
        names = able if self.plan.joint_if_able else self.plan.joint
        if self.plan.joint_if_able and len(able) < 2:
            notes["joint"] = f"no joint search: {len(able)} of the checkpoints do the task, and it takes two"
            return
        if not names:
            return
        file = "circuits/joint"
        if not self.store.has(f"{file}.json"):
            self._search(file, [self._load(name)[0] for name in names], None)
        left = [name for name in self.names if name not in names]
        note = f"searched on {len(names)} checkpoints together" + (f"; without {', '.join(left)}" if left else "")
        yield FoundCircuit("joint", "joint", tuple(names), self._circuit(file), note)

    def _donor_pairs(self, able: Sequence[str]) -> list[tuple[str, str]]:
        if self.plan.donors_if_able:
            return [(a, b) for a in able for b in able if a != b]
        return list(self.plan.donors)

    def _donor(self, a: str, b: str) -> FoundCircuit:
        """A's circuit with what B needs of the rest."""
        file = f"circuits/donor.{slug(self.names.index(a), a)}.{slug(self.names.index(b), b)}"
        if not self.store.has(f"{file}.json"):
            donor = self._circuit(f"circuits/{slug(self.names.index(a), a)}")
            self._search(file, [self._load(b)[0]], donor)
        return FoundCircuit(
            f"donor {a} -> {b}", "donor", (a, b), self._circuit(file), f"the circuit of {a}, and what {b} needs beside it"
        )

    def _search(self, file: str, models: Sequence[Model], donor: Circuit | None) -> None:
        assert self.task is not None, "a model was loaded"
        with closing(self.store.journal(f"{file}.journal.jsonl")) as journal:
            metric = metric_for(models[0], self.task, self.metric)
            context = SearchContext(metric, self.asked["memory"], self.asked["seed"], journal, self.progress)
            found = joint_discover(models, self.task, self.algorithm, self.ablation, context, donor=donor, **self.settings)
        self.store.write(f"{file}.json", found.circuit.to_dict())

    def _circuit(self, file: str) -> Circuit:
        return Circuit.from_dict(self.store.read(f"{file}.json"))

    # --- cells ---------------------------------------------------------------------------------------------------------------

    def _cells(self, found: Sequence[FoundCircuit]) -> dict[tuple[str, str], tuple[Score, ...]]:
        """Every cell, column by column."""
        files = {
            (one.label, name): f"cells/{slug(row, one.label)}.{slug(column, name)}.json"
            for row, one in enumerate(found)
            for column, name in enumerate(self.names)
        }
        missing = [place for place, file in files.items() if not self.store.has(file)]
        with progress_bar(len(missing), "transfer", "cell", self.progress) as bar:
            for name in self.names:
                rows = [one for one in found if (one.label, name) in missing]
                if rows:
                    self._column(name, rows, {one.label: files[one.label, name] for one in rows}, bar)
        return {
            (one.label, name): validate(_Cell, self.store.read(files[one.label, name]), files[one.label, name]).scores
            for one in found
            for name in self.names
        }

    def _column(self, name: str, rows: Sequence[FoundCircuit], files: Mapping[str, str], bar: Any) -> None:
        """The missing cells of one checkpoint."""
        model, task = self._load(name)
        names = ("n_random", "confidence", "seed", "memory")
        measure = metric_for(model, task, self.metric)
        judge = Judge(model, task, self.ablation, measure, **{one: self.asked[one] for one in names})
        for one in rows:
            scores = [asdict(score) for score in judge.score(one.circuit)]
            self.store.write(files[one.label], {"circuit": one.label, "checkpoint": name, "scores": scores})
            bar.update(1)


def _given(label: str, circuit: Circuit, ablation: Ablation) -> FoundCircuit:
    came_from = circuit.provenance
    note = ""
    if came_from.ablation and get_ablation(dict(came_from.ablation)) != ablation:
        note = f"found under another ablation: {get_ablation(dict(came_from.ablation)).label}"
    return FoundCircuit(label, "given", (came_from.model,) if came_from.model else (), circuit, note)
