"""One call of `cmap`: its checked settings, and one direction of it: plan, the giver's activations, the taker's runs."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float

from circuitdisc.checkpoints.attention_difference import ModelLike, attention_between, default_keys
from circuitdisc.checkpoints.cmap.plan import plan_patching
from circuitdisc.checkpoints.cmap.result import CrossMap, ModelGap
from circuitdisc.checkpoints.cmap.scores import scored
from circuitdisc.checkpoints.cmap.sets import Label, Wanted, places_of, wanted_of
from circuitdisc.checkpoints.listing import load
from circuitdisc.checks import N_RANDOM, Whole
from circuitdisc.engine.cross.cache import Given, keep_activations
from circuitdisc.engine.cross.patch import Patch
from circuitdisc.engine.cross.plan import MEMORY, CrossPlan, shapes_of
from circuitdisc.engine.cross.run import CrossRun
from circuitdisc.engine.measuring import examples_of
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting
from circuitdisc.files import size_words
from circuitdisc.metrics import AnyMetric
from circuitdisc.models.model import Model
from circuitdisc.options import OnSplit, Option
from circuitdisc.progress import progress_bar
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import metric_for


class CrossPatching(OnSplit, total=False, extra_items=Any):
    """What is patched and how; further settings are those of `load_model`, for models by name: `dtype`, `device`."""

    what: Annotated[
        str | Sequence[str],
        Option(
            ("output", "value"),
            "parts of heads: `output`, `value`, `query`, `key`, `pattern`. Pairs and the growing set are of the first.",
        ),
    ]
    positions: Annotated[
        str | int | Sequence[str | int] | None,
        Option(None, "where activations are taken over: a role of the task, `end`, ..., or several; None: at all tokens."),
    ]
    alone: Annotated[
        bool,
        Option(
            True,
            "every head by itself; False: groups and parts only, which spares most of the runs (no pairs, no set that grows).",
        ),
    ]
    parts: Annotated[
        bool,
        Option(True, "also the embedding, MLPs, residual stream, attention biases, readout, and everything."),
    ]
    top: Annotated[int, Option(5, "how many of the best heads are tried two by two; 0 for none.", Whole(0, 10_000))]
    grow: Annotated[bool, Option(True, "also patch more and more heads, the best on the train split first.")]
    steps: Annotated[
        int | Sequence[int] | None,
        Option(None, "points of that curve, as in `knockout_curve`.", Whole(0, 100_000, many=True)),
    ]
    n_random: Annotated[int, Option(20, "random sets beside every group, and random orders beside the curve.", N_RANDOM)]
    metric: Annotated[AnyMetric | None, Option(None, "None takes the task's own.")]
    split: Annotated[
        str,
        Option("heldout", "the examples that judge: `heldout` or `train`. Heads are always ranked on the train split."),
    ]
    attention: Annotated[
        bool,
        Option(True, "measure both models' attention from `query` to `keys` (None: `first` and the task's roles)."),
    ]
    query: Annotated[str | int, Option("end", "where attention is measured from.")]
    keys: Annotated[str | int | Sequence[str | int] | None, Option(None, "where to.")]
    cache: Annotated[
        Literal["auto", "memory", "disk"],
        Option("auto", "where the giver's activations are kept; `auto`: in memory if half of the budget holds them."),
    ]
    cache_folder: Annotated[
        str | Path | None,
        Option(None, "where a folder for them is made, and removed at the end; None: where temporary files go."),
    ]


@dataclass(frozen=True)
class CrossCall:
    """The checked settings of one call; see `CrossPatching`."""

    base: ModelLike
    tuned: ModelLike
    what: tuple[str, ...]
    positions: tuple[str | int, ...] | None
    groups: Mapping[str, Sequence[str]]
    alone: bool
    parts: bool
    top: int
    steps: int | Sequence[int] | None
    grow: bool
    n_random: int
    metric: AnyMetric | None
    split: str
    query: str | int
    keys: tuple[str | int, ...] | None
    attention: bool
    confidence: float
    seed: int
    budget: int
    cache: str
    folder: Path | None
    progress: bool
    model_settings: Mapping[str, Any]

    def open(self, which: str) -> Model:
        """The `base` or the `tuned` model."""
        checkpoint = getattr(self, which)
        return checkpoint if isinstance(checkpoint, Model) else load(str(checkpoint), **self.model_settings)

    def name_of(self, which: str) -> str:
        checkpoint = getattr(self, which)
        return checkpoint.name if isinstance(checkpoint, Model) else str(checkpoint)

    def wanted(self, model: Model) -> Wanted:
        components = components_of(model, "cross-model patching", whole=True)
        places = {name: places_of(model.graph, heads) for name, heads in self.groups.items()}
        return wanted_of(components.spec, model.graph.has_mlp, self.what, places, vars(self))


class CrossJob:
    """One direction: examples, plan, the giver's activations, the taker's runs."""

    def __init__(self, call: CrossCall, model: Model, task: Task) -> None:
        self.call, self.task = call, task
        self.measure, self.wanted = metric_for(model, task, call.metric), call.wanted(model)
        self.judged = examples_of(task, call.split)
        self.over = partition_of(self.judged)
        search = examples_of(task, "train") if self.wanted.needs_order else ()
        self.n_search, self.examples = len(search), (*search, *self.judged)
        self.keys = default_keys(self.judged, call.query) if call.keys is None else call.keys
        self.plan = self._plan(model)
        self.forwards = 0.0

    def _plan(self, model: Model) -> CrossPlan:
        call, shapes = self.call, shapes_of(model)
        return plan_patching(
            shapes,
            [len(example) for example in self.examples],
            self.wanted,
            call.budget,
            n_search=self.n_search,
            n_positions=None if call.positions is None else len(call.positions),
            on_cpu=model.device.type == "cpu",
            cache=call.cache,
        )

    @contextmanager
    def cache(self) -> Iterator[Path | None]:
        """A folder for the giver's activations, removed at the end; None if they are kept in memory."""
        if self.plan.store == MEMORY:
            yield None
            return
        parent = self.call.folder
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="circuitdisc-cmap-", dir=parent) as folder:
            free = shutil.disk_usage(folder).free
            if free < self.plan.cache_bytes:
                raise BadSetting(
                    f"the activations of one model take {size_words(self.plan.cache_bytes)} on disk, and {folder} has "
                    f"{size_words(free)} free: name another folder (cache_folder=), take fewer examples, or raise memory="
                )
            yield Path(folder)

    def keep(self, model: Model, folder: Path | None) -> Given:
        """The giver's activations and metrics."""
        call, description = self.call, f"activations of {model.name}"
        with progress_bar(len(self.examples), description, "example", call.progress) as bar:
            return keep_activations(
                model,
                self.examples,
                self.plan.chunks,
                self.wanted.kinds,
                [self.measure],
                positions=call.positions,
                readout=self.wanted.readout,
                folder=folder,
                on_progress=bar.update,
            )

    def attention(self, model: Model) -> Float[np.ndarray, "R L H B"]:
        """Where every head looks, on the examples that judge."""
        call = self.call
        return attention_between(model, self.judged, call.query, self.keys, call.budget, call.progress)

    def run(self, direction: str, model: Model, given: Given) -> CrossMap:
        """All patched runs of the taker, scored."""
        run = CrossRun(model, given, self.call.positions)
        judge_chunks = [at for at, (first, _) in enumerate(given.chunks) if first >= self.n_search]
        search_chunks = [at for at, (first, _) in enumerate(given.chunks) if first < self.n_search]
        metrics = given.metrics[self.measure.name].numpy()
        order: list[int] = []
        if self.wanted.needs_order:
            values = self._values(run, self.wanted.singles(self.wanted.what[0]) | {("taker",): Patch()}, search_chunks)
            gap = ModelGap(values.pop(("taker",)), metrics[: self.n_search], self.call.confidence, self.call.seed)
            scores = gap.scores(np.stack(list(values.values())))
            order = np.argsort(-np.nan_to_num(scores), kind="stable").tolist()
        values = self._values(run, self.wanted.patches(order) | {("taker",): Patch()}, judge_chunks)
        gap = ModelGap(values.pop(("taker",)), metrics[self.n_search :], self.call.confidence, self.call.seed, self.over)
        self.forwards = shapes_of(model).forwards(run.work.reads, run.work.writes, run.work.mlps)
        return scored(direction, given.name, model.name, self.wanted, gap, values, order)

    def _values(self, run: CrossRun, patches: Mapping[Label, Any], chunks: Sequence[int]) -> dict[Label, np.ndarray]:
        total = len(set(patches.values())) * len(chunks)
        with progress_bar(total, f"patching {run.model.name}", "run", self.call.progress) as bar:
            by_metric = run.values(self.examples, list(patches.values()), [self.measure], chunks=chunks, on_progress=bar.update)
        return dict(zip(patches, by_metric[self.measure.name], strict=True))
