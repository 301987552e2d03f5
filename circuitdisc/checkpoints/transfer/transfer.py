"""`transfer`: find a circuit on each checkpoint of a ladder, and score every circuit on every checkpoint.

1. Find the circuit of each checkpoint, one model in memory at a time (or take circuits that are given).
2. Where asked for, find one circuit for several checkpoints together, and complete circuits of one checkpoint for another
   (`joint.py`).
3. Score every circuit on every checkpoint, on both splits, beside random circuits of equal size (`cells.py`).
4. Compare the circuits with each other (`ladder.py`).

Every finished part is a unit of the folder's memo: a call that was killed goes on, to the same numbers.

Source: the CS224N study of the Transitive Property Problem (its transfer table), for any checkpoints and any algorithm.
"""

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.checkpoints.joint import joint_discover, share_of_memory
from circuitdisc.checkpoints.listing import check_prompts, load, read_checkpoints
from circuitdisc.checkpoints.transfer.cells import Judge
from circuitdisc.checkpoints.transfer.ladder import ladder
from circuitdisc.checkpoints.transfer.matrix import FoundCircuit, Transfer
from circuitdisc.checkpoints.transfer.plan import (
    CONFIG,
    TransferPlan,
    begun_in,
    make_plan,
    read_given,
    read_settings,
    write_settings,
)
from circuitdisc.checks import N_RANDOM
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import discover, refuse_chance
from circuitdisc.engine.measuring import AblatingAll
from circuitdisc.engine.memory import parse_memory
from circuitdisc.errors import BadRun, GraphMismatch, MetricAtChance
from circuitdisc.files import write_arrays, write_json
from circuitdisc.identity import Identity, hash_circuit, identity_of
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, of_others, takes
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Journal, Memo, check_free, workspace
from circuitdisc.runs.cells import LIST
from circuitdisc.schemas import TransferSettings, validate
from circuitdisc.scoring.base import Score
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import metric_for

RESULT, ARRAYS, JOURNAL = "transfer.json", "arrays.npz", "journal.jsonl"
JOINT = "circuits/joint.json"
_SHARED = ("ablation", "metric", "confidence", "seed", "memory", "n_random")


class OfSearch(AblatingAll, total=False, extra_items=Any):
    """What is searched and scored; further settings are the algorithm's own."""

    n_random: Annotated[int, Option(20, "random circuits of equal size, kinds and layers.", N_RANDOM)]


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
        BadSetting: a setting is out of its bounds.
        BadRun: the folder is taken or cannot be written, another process writes in it, or the settings, a checkpoint or the
            examples have changed since it was begun.
    """
    given_options: Any = options
    ablation, metric, confidence, seed, memory, n_random = (given_options[name] for name in _SHARED)
    settings, progress = of_others(OfSearch, given_options), given_options["progress"]
    parse_memory(memory)
    kind = get_ablation(ablation)
    measure = None if metric is None else get_metric(metric)
    names = read_checkpoints([checkpoints] if isinstance(checkpoints, str | Path) else checkpoints, least=2, what="transfer")
    given = read_given(circuits)
    plan = make_plan(names, given, algorithm, settings, joint, donor, allow_chance)
    wanted = {"name": task} if isinstance(task, str) else dict(task)
    asked = {
        "checkpoints": names, "task": wanted, "algorithm": algorithm, "algorithm_settings": settings,
        "circuits": {label: circuit.to_dict() for label, circuit in given.items()} or None, "joint": list(plan.joint),
        "joint_of_those_that_do_it": plan.joint_if_able, "donor": [list(pair) for pair in plan.donors],
        "donors_that_do_it": plan.donors_if_able, "ablation": kind.to_dict(), "metric": measure and measure.name,
        "allow_chance": plan.allow_chance, "n_random": n_random, "confidence": confidence,
        "model": dict(model_settings or {}), "seed": seed, "memory": memory,
    }  # fmt: skip
    identity = Identity(settings={**asked, "circuits": {label: hash_circuit(circuit) for label, circuit in given.items()}})
    if out is None:
        with closing(Memo(None, identity)) as memo:
            return _Work(names, plan, given, wanted, algorithm, settings, kind, measure, asked, memo, progress).run()
    folder = Path(out)
    if (folder / CONFIG).is_file():
        read_settings(folder)
    else:
        check_free(folder)
    with workspace(folder, lambda: _is_worth_keeping(folder)):
        if not (folder / CONFIG).is_file():
            write_settings(folder, asked)
        with closing(Memo(folder / JOURNAL, identity)) as memo:
            write_settings(folder, asked)  # an earlier call that has finished nothing may have had others
            result = _Work(names, plan, given, wanted, algorithm, settings, kind, measure, asked, memo, progress).run()
        write_json(folder / RESULT, result.to_dict())
        write_arrays(folder / ARRAYS, result.arrays())
    return result


def resume_transfer(folder: str | Path, progress: bool = False) -> Transfer:
    """Go on with a transfer that was killed; a finished part is not done again.

    Raises:
        BadRun: the folder is not that of a transfer.
    """
    folder = Path(folder).resolve()
    asked = read_settings(folder)
    validate(TransferSettings, asked, f"{folder}/config.json", error=BadRun)
    given = {label: Circuit.from_dict(circuit) for label, circuit in (asked["circuits"] or {}).items()}
    names = (*_SHARED, "allow_chance")
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
    memo: Memo
    progress: bool
    task: Task | None = None
    seen: set[str] = field(default_factory=set)
    judge: tuple[str, Judge] | None = None

    def run(self) -> Transfer:
        if not all(self.plan.may_fail(name) for name in self.names):  # before anything is searched
            for name in self.names:
                self._known(name)
        circuits: list[FoundCircuit] = []
        if self.given:
            for name in self.names:
                self._known(name)
            circuits += [_given(label, circuit, self.ablation) for label, circuit in self.given.items()]
        else:
            self.memo.spread({self._file(name): partial(self._search_own, name) for name in self.names}, self.memo.get_file)
            circuits += [self._own(name) for name in self.names]
        notes = {name: note for name in self.names if (note := self._known(name).note)}
        able = [name for name in self.names if name not in notes]
        along = [each.label for each in circuits if each.kind == "given" or each.label in able]
        circuits += self._joint(able, notes)
        pairs = self._donor_pairs(able)
        self.memo.spread({self._donor_file(a, b): partial(self._search_donor, a, b) for a, b in pairs}, self.memo.get_file)
        circuits += [self._donor(a, b) for a, b in pairs]
        cells = self._cells(circuits)
        for name in self.names:  # what was taken over whole from an earlier start is of these weights and examples, too
            if name not in self.seen:
                self._load(name)
        return Transfer(
            tuple(self.names),
            tuple(circuits),
            cells,
            ladder({each.label: each.circuit for each in circuits}, along if len(along) > 1 else None),
            self._known(self.names[0]).metric,
            self.ablation.label,
            notes,
            self.asked,
        )

    # --- checkpoints, one at a time ------------------------------------------------------------------------------------------

    def _load(self, name: str) -> tuple[Model, Task]:
        """A checkpoint with the task's examples, which are the same for all; seen to be those that it was begun with.

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
        if odd := next((circuit for circuit in self.given.values() if circuit.graph != model.graph), None):
            raise GraphMismatch(
                f"a given circuit belongs to a model of {odd.graph.describe()}; {name} has {model.graph.describe()}: "
                "give circuits of the checkpoints' own architecture"
            )
        self.memo.bind(
            name, identity_of(model, {"train examples": self.task.train, "held-out examples": self.task.heldout}, {})
        )
        self.seen.add(name)
        return model, self.task

    def _known(self, name: str, loaded: tuple[Model, Task] | None = None) -> "_Known":
        """What must be known of a checkpoint without loading it again."""

        def survey() -> dict[str, str]:
            model, task = loaded or self._load(name)
            note = ""
            try:
                refuse_chance(model, task)
            except MetricAtChance as error:
                if not self.plan.may_fail(name):
                    raise
                note = f"does not do the task: {str(error).partition(': ')[2].partition(', so there')[0]}"
            return {"note": note, "metric": metric_for(model, task, self.metric).name}

        return validate(_Known, self.memo.get(name, survey), f"{JOURNAL}, checkpoint {name}")

    # --- circuits ------------------------------------------------------------------------------------------------------------

    def _own(self, name: str) -> FoundCircuit:
        """The circuit of one checkpoint: found now, or before."""
        circuit = Circuit.from_dict(self.memo.get_file(self._file(name), partial(self._search_own, name)))
        return FoundCircuit(name, "own", (name,), circuit, self._known(name).note)

    def _file(self, name: str) -> str:
        return f"circuits/{self._slug(name)}.json"

    def _search_own(self, name: str) -> dict[str, Any]:
        model, task = self._load(name)
        self._known(name, (model, task))
        with closing(self.memo.journal(_journal_of(self._file(name)))) as journal:
            return discover(
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
            ).circuit.to_dict()

    def _joint(self, able: Sequence[str], notes: dict[str, str]) -> Iterator[FoundCircuit]:
        """The circuit of several checkpoints together; a note where too few of them do the task."""
        names = able if self.plan.joint_if_able else self.plan.joint
        if self.plan.joint_if_able and len(able) < 2:
            notes["joint"] = f"no joint search: {len(able)} of the checkpoints do the task, and it takes two"
            return
        if not names:
            return
        circuit = Circuit.from_dict(self.memo.get_file(JOINT, partial(self._search, JOINT, names)))
        left = [name for name in self.names if name not in names]
        note = f"searched on {len(names)} checkpoints together" + (f"; without {', '.join(left)}" if left else "")
        yield FoundCircuit("joint", "joint", tuple(names), circuit, note)

    def _donor_pairs(self, able: Sequence[str]) -> list[tuple[str, str]]:
        if self.plan.donors_if_able:
            return [(a, b) for a in able for b in able if a != b]
        return list(self.plan.donors)

    def _donor(self, a: str, b: str) -> FoundCircuit:
        """A's circuit with what B needs of the rest."""
        file = self._donor_file(a, b)
        circuit = Circuit.from_dict(self.memo.get_file(file, partial(self._search_donor, a, b)))
        return FoundCircuit(f"donor {a} -> {b}", "donor", (a, b), circuit, f"the circuit of {a}, and what {b} needs beside it")

    def _donor_file(self, a: str, b: str) -> str:
        return f"circuits/donor.{self._slug(a)}.{self._slug(b)}.json"

    def _search_donor(self, a: str, b: str) -> dict[str, Any]:
        return self._search(self._donor_file(a, b), [b], donor=a)

    def _search(self, file: str, names: Sequence[str], donor: str | None = None) -> dict[str, Any]:
        """The circuit of several checkpoints together, or of one that completes another's."""
        start = None if donor is None else self._own(donor).circuit
        models = [self._load(name)[0] for name in names]
        assert self.task is not None, "a model was loaded"
        with closing(self.memo.journal(_journal_of(file))) as journal:
            metric = metric_for(models[0], self.task, self.metric)
            context = SearchContext(metric, self.asked["memory"], self.asked["seed"], journal, self.progress)
            discovery = joint_discover(models, self.task, self.algorithm, self.ablation, context, donor=start, **self.settings)
        return discovery.circuit.to_dict()

    def _slug(self, name: str) -> str:
        return slug(self.names.index(name), name)

    # --- cells ---------------------------------------------------------------------------------------------------------------

    def _cells(self, circuits: Sequence[FoundCircuit]) -> dict[tuple[str, str], tuple[Score, ...]]:
        """Every cell, computed column by column where it is missing."""
        files = {
            (circuit.label, name): f"cells/{slug(row, circuit.label)}.{self._slug(name)}.json"
            for row, circuit in enumerate(circuits)
            for name in self.names
        }
        columns = [(circuit, name) for name in self.names for circuit in circuits]
        units = {files[circuit.label, name]: partial(self._cell, circuit, name) for circuit, name in columns}
        self.memo.spread(units, self.memo.get_file)
        missing = {file for file in units if not self.memo.has(file)}
        kept: dict[str, tuple[Score, ...]] = {}
        with progress_bar(len(missing), "transfer", "cell", self.progress) as bar:
            for file, compute in units.items():
                kept[file] = validate(_Cell, self.memo.get_file(file, compute), file).scores
                bar.update(file in missing)
        self.judge = None
        return {place: kept[file] for place, file in files.items()}

    def _cell(self, row: FoundCircuit, column: str) -> dict[str, Any]:
        """One cell, as its file holds it; the model of a column is loaded for the first one that is missing."""
        if self.judge is None or self.judge[0] != column:
            self.judge = None  # its model goes before the next one comes
            self.judge = column, self._judge(column)
        scores = [asdict(score) for score in self.judge[1].score(row.circuit)]
        return {"circuit": row.label, "checkpoint": column, "scores": scores}

    def _judge(self, name: str) -> Judge:
        model, task = self._load(name)
        names = ("n_random", "confidence", "seed", "memory")
        measure = metric_for(model, task, self.metric)
        return Judge(model, task, self.ablation, measure, **{setting: self.asked[setting] for setting in names})


def _journal_of(file: str) -> str:
    """The journal of the search whose circuit goes into a file."""
    return f"{file.removesuffix('.json')}.journal.jsonl"


def slug(index: int, name: str) -> str:
    """A file's name for the index-th circuit or checkpoint."""
    return f"{index:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[-60:]}"


def _is_worth_keeping(folder: Path) -> bool:
    """Whether a transfer's folder holds anything that took time: a circuit, decisions of a search, a cell."""
    files = (path for part in ("circuits", "cells") for path in folder.glob(f"{part}/*.json") if path.name != LIST)
    journals = (path for pattern in ("circuits/*.jsonl", "cells/*/unit.*.jsonl") for path in folder.glob(pattern))
    return any(True for _ in files) or any(Journal.read(path).decisions for path in journals)


def _given(label: str, circuit: Circuit, ablation: Ablation) -> FoundCircuit:
    came_from = circuit.provenance
    note = ""
    if came_from.ablation and get_ablation(dict(came_from.ablation)) != ablation:
        note = f"found under another ablation: {get_ablation(dict(came_from.ablation)).label}"
    return FoundCircuit(label, "given", (came_from.model,) if came_from.model else (), circuit, note)
