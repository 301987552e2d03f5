"""`plan`: what a search and the scores of its circuit will count, and take in memory and in time, before they are run.

1. Counts follow from graph, settings and examples (`counts.py`), memory from the shapes (`sizes.py`).
2. Time is measured where the weights are here: a plain forward, the first steps of the search itself, the first circuits that
   are scored, two minutes at most (`measured.py`). Without weights it follows from a speed that is given.
3. On N ranks the examples are dealt out.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, Literal

from typing_extensions import Unpack

from circuitdisc.ablation import get_ablation
from circuitdisc.checks import N_RANDOM_OR_AUTO, Real, Whole, check_values
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.registry import Searching, get_algorithm
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadSetting, CircuitdiscWarning, GraphMismatch, UnknownName
from circuitdisc.files import size_words
from circuitdisc.models.model import Model
from circuitdisc.options import Option, of_others, takes
from circuitdisc.planning.counts import (
    UNABLATED,
    Counts,
    Search,
    Span,
    counts_of,
)
from circuitdisc.planning.measured import Timing, stand_in, time_forward, time_score, time_search
from circuitdisc.planning.models import has_weights
from circuitdisc.planning.ranks import rank_numbers, shares_of
from circuitdisc.planning.result import Fit, PlannedPart, RanksPlan, RunPlan, ends_of, spans_of
from circuitdisc.planning.score_counts import counts_of_checks, counts_of_score
from circuitdisc.planning.sizes import (
    GRADIENTS,
    HOLDING,
    MOST_EXAMPLES,
    MOST_LAYERS,
    MOST_TOKENS,
    RUNS_NOTHING,
    Peak,
    Prompts,
    Sizes,
    attribution_chunk,
    chunk_size,
    evaluation_peak,
    machine_memory,
    most_of,
    most_that_fits,
    peak_of,
    sender_bytes,
    training_peak,
)
from circuitdisc.scoring.work import AUTO, n_controls
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import metric_for
from circuitdisc.wording import duration

STARTS = 3
"""Full model, circuit and empty circuit, which are scored beside the controls."""
SEARCH_SHARE = 0.7
"""Of the time for measuring, for the search."""


class Planning(Searching, total=False, extra_items=Any):
    """What is planned for and how; further settings are the algorithm's own."""

    n_random: Annotated[
        int | Literal["auto"], Option(AUTO, "random circuits that the circuit is scored with, as in `score`.", N_RANDOM_OR_AUTO)
    ]
    allow_chance: Annotated[bool, Option(False, "as in `discover`.")]
    ranks: Annotated[int, Option(1, "plan for 1 to so many processes, each with a copy of the model.", Whole(1, 65_536))]
    measure: Annotated[float, Option(120.0, "seconds that measuring may take; 0: nothing is run.", Real(0, 3600))]
    speed: Annotated[
        float | None,
        Option(
            None, "GFLOP/s of a rank, where nothing is run: time then follows from the shapes.", Real(0, 1e9, open_low=True)
        ),
    ]
    device_memory: Annotated[
        str | int | None, Option(None, "of a rank, as `80GiB`: which models and prompts fit there, beside this machine.")
    ]
    device: Annotated[str, Option("cpu", "where the run will be, for a model whose weights are not here: `cpu` or `cuda`.")]


@takes(Planning)
def plan(
    model: Model, task: Task, algorithm: str | None = "acdc", *, circuit: Circuit | None = None, **options: Unpack[Planning]
) -> RunPlan:
    """Plan a search and the scores of its circuit, or the scores of a given circuit alone.

    Args:
        model: loaded, or its shapes alone (`open_model`).
        algorithm: a name from `ALGORITHMS`; None: the scores alone.
        circuit: is scored; None: a random one of the size that is searched for stands in for it.
        memory: budget for activations of the run, as `4GiB`.
        settings: the algorithm's own.

    Raises:
        UnknownName: the algorithm, metric, ablation or a setting is not known.
        BadSetting: a setting is out of its bounds, or the model has no fast components.
        MetricAtChance, NothingToExplain: the search would be refused.
    """
    given: Any = options
    return _Planner(model, task, algorithm, circuit, given, of_others(Planning, given)).plan()


@dataclass
class _Part:
    """A part, before it is written down."""

    name: str
    n_examples: int
    counts: Counts | None
    peak: Peak | None
    timing: Timing | None = None


class _Planner:
    """The steps of one plan."""

    def __init__(
        self, model: Model, task: Task, algorithm: str | None, circuit: Circuit | None, given: Mapping[str, Any],
        own: Mapping[str, Any],
    ) -> None:  # fmt: skip
        if not model.can("gradients"):
            raise BadSetting(f"{model.name} has no fast components, from whose shapes runs are planned ({model.backend.how})")
        if circuit is not None and circuit.graph != model.graph:
            raise GraphMismatch(f"the circuit belongs to {circuit.graph.describe()}; {model.name} has {model.graph.describe()}")
        if algorithm is None and circuit is None:
            raise BadSetting("nothing to plan: name an algorithm, or give a circuit that is scored")
        self.model, self.task, self.algorithm, self.circuit, self.given = model, task, algorithm, circuit, given
        self.ablation = get_ablation(given["ablation"])
        self.metric = metric_for(model, task, given["metric"])
        self.own, self.settings = own, _settings_of(algorithm, own)
        self.budget = parse_memory(given["memory"])
        on_cpu = (model.device.type if has_weights(model) else given["device"]) == "cpu"
        self.sizes = Sizes.of(model, self.metric, on_cpu)
        self.examples = (*task.train, *task.heldout)
        self.prompts = _prompts(task.train)
        self.all_prompts = _prompts(self.examples)
        self.n_chunks = -(-len(task.train) // chunk_size(self.sizes, self.prompts.length, self.budget))
        self.measures = has_weights(model) and given["measure"] > 0 and given["speed"] is None
        self.stated = None if given["device_memory"] is None else parse_memory(given["device_memory"], "device_memory")
        self.notes: list[str] = []
        self.refused = self._is_refused()

    def _is_refused(self) -> bool:
        """Whether what the search holds of all examples is over the budget; then a note says so."""
        copies = HOLDING.get(self.algorithm or "")
        if copies is None or (needed := sender_bytes(self.sizes, self.prompts.n_tokens, copies)) <= self.budget:
            return False
        fitting = self.budget // sender_bytes(self.sizes, self.prompts.length, copies)
        self.notes.append(
            f"{self.algorithm} would be refused: it holds all search examples, which takes {size_words(needed)}, over memory="
            f"{size_words(self.budget)}; {fitting} of {self.prompts.n} fit"
        )
        return True

    def plan(self) -> RunPlan:
        started = perf_counter()
        forward = time_forward(self.model, self.task, self.given["measure"]) if self.measures else None
        self.untimed = forward is not None and self._trains_too_long(forward.seconds)
        operations = self._operations(self.task.train)
        speed = operations / forward.seconds / 1e9 if forward else self.given["speed"]
        second = None if speed is None else operations / speed / 1e9
        parts = self._parts(forward)
        spent = perf_counter() - started if self.measures else 0.0
        written = tuple(self._written(part, second) for part in parts)
        return RunPlan(
            job="discover" if self.algorithm else "score",
            model=self.model.name,
            task=self.task.name,
            parameters=self.sizes.parameters,
            weights=self.sizes.weights,
            dtype=str(self.model.dtype).removeprefix("torch."),
            n_train=len(self.task.train),
            n_heldout=len(self.task.heldout),
            longest=self.all_prompts.length,
            budget=self.budget,
            operations=operations,
            forward_seconds=second,
            speed=speed,
            measured=spent,
            parts=written,
            ranks=self._ranks(parts, written),
            fits=self._fits(parts),
            notes=tuple(self.notes),
        )

    def _trains_too_long(self, forward: float) -> bool:
        """Whether what `optimal` learns, which shows no bar, would take the time for measuring; then a note says so."""
        seconds = Search(self.model, self.ablation, {}, len(self.task.train)).training.usual * forward
        if seconds <= self.given["measure"] * SEARCH_SHARE:
            return False
        self.notes.append(
            f"ablation=optimal learns for about {duration(seconds)}, longer than may be measured (measure=): times are "
            "those of the usual counts"
        )
        return True

    def _with_training(self, peak: Peak | None) -> Peak | None:
        return most_of([peak, training_peak]) if self.ablation.kind == "optimal" else peak

    # --- parts --------------------------------------------------------------------------------------------------------

    def _parts(self, forward: Timing | None) -> list[_Part]:
        parts, search = [], None
        if self.algorithm is not None:
            search = self._search(forward)
            if self.algorithm not in RUNS_NOTHING:
                checks = counts_of_checks(self.ablation, self.given["allow_chance"])
                timing = None
                if search.timing and forward:  # they are within the time of the search
                    timing = Timing(0.0, 0.0, "within the search's")
                parts.append(_Part("checks", len(self.task.train), checks, evaluation_peak, timing))
            parts.append(search)
        parts.append(self._score(search))
        return parts

    def _search(self, forward: Timing | None) -> _Part:
        assert self.algorithm is not None, "there is a search"
        of = Search(self.model, self.ablation, self.settings, len(self.task.train), self.n_chunks, self._changing())
        counts = counts_of(self.algorithm, of)
        peak = peak_of(self.algorithm, self.settings, self.ablation)
        part = _Part(self.algorithm, len(self.task.train), counts, self._with_training(peak))
        if counts is None:
            self.notes.append(f"nobody planned the counts of '{self.algorithm}': only its time is measured")
        if forward is None or self.refused or self.untimed:
            return part
        names = ("ablation", "metric", "seed", "memory", "allow_chance")
        asked = {name: self.given[name] for name in names}
        seconds = self.given["measure"] * SEARCH_SHARE
        timing, found = time_search(self.model, self.task, self.algorithm, self.own, asked, counts, forward.seconds, seconds)
        part.timing = timing
        if found is not None:
            self.circuit = self.circuit or found.circuit
        elif timing is None:
            self.notes.append(
                f"{self.algorithm} came to no step within {seconds:.0f} s that says how long it takes: its time is that of its "
                "usual count"
            )
        return part

    def _changing(self) -> float:
        """The share of the tokens at and behind the first that a corrupted prompt changes; all where others are cut to."""
        if not self.ablation.method.empty_is_corrupted:
            return 1.0
        changed = 0
        for example in self.task.train:
            pairs = zip(example.clean, example.corrupted or (), strict=False)
            first = next((at for at, (clean, corrupted) in enumerate(pairs) if clean != corrupted), len(example))
            changed += len(example) - first
        return changed / sum(map(len, self.task.train))

    def _score(self, search: _Part | None) -> _Part:
        n_random = self._n_random(search)
        splits = [split for split in (self.task.train, self.task.heldout) if split]
        n_chunks = sum(-(-len(split) // chunk_size(self.sizes, max(map(len, split)), self.budget)) for split in splits)
        of_score = Search(self.model, self.ablation, {}, len(self.examples), learned=self.algorithm not in (None, *UNABLATED))
        n_circuits = STARTS + n_random[0], STARTS + n_random[1]
        counts = counts_of_score(of_score, len(self.task.train), n_circuits, len(splits), n_chunks)
        part = _Part("score", len(self.examples), counts, self._with_training(evaluation_peak))
        if self.measures and not self.untimed:
            names = ("ablation", "metric", "seed", "memory")
            circuit, basis = self.circuit, "the circuit" if search is None else "the circuit that was found"
            if circuit is None:
                circuit, basis = stand_in(self.model.graph, self._n_edges(), self.given["seed"]), "a random circuit"
            asked = {name: self.given[name] for name in names}
            part.timing = time_score(self.model, self.task, circuit, int(n_random[1]), asked, basis)
        return part

    def _n_edges(self) -> int | None:
        """Of the circuit, where settings say it."""
        if "fraction" not in self.settings:
            return self.settings.get("prune_first")
        return self.settings["edges"] or max(1, round(self.settings["fraction"] * self.model.graph.n_edges))

    def _n_random(self, search: _Part | None) -> Span:
        """Controls: what is asked for, or between how many `auto` takes, by what the search may cost."""
        if self.given["n_random"] != AUTO:
            return float(self.given["n_random"]), float(self.given["n_random"])
        counts = None if search is None else search.counts
        numbers = []
        for end in (0, 1):
            cost = None
            if counts is not None:
                ends = (counts.model_runs[end], counts.backward_runs[end], counts.node_evaluations[end])
                cost = Cost(model_runs=ends[0], backward_runs=ends[1], node_evaluations=min(ends[2], 1e18))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CircuitdiscWarning)
                numbers.append(float(n_controls(self.model, self.task, cost)))
        return numbers[0], numbers[1]

    # --- time and what fits -------------------------------------------------------------------------------------------

    def _operations(self, examples: Sequence[Any]) -> float:
        return self.sizes.operations([len(each) for each in examples], sum(len(each.positions) for each in examples))

    def _written(self, part: _Part, forward: float | None) -> PlannedPart:
        """A part with its peak, and its time from the plain forwards where it was not measured.

        Args:
            forward: seconds of a plain forward over the search examples.
        """
        counts, prompts = part.counts, self._prompts_of(part)
        peak = None if part.peak is None else part.peak(self.sizes, prompts, self.budget)
        usual = None if counts is None else counts.usual
        given: dict[str, Any] = {}
        if part.timing is not None:
            timing = part.timing
            given = {"seconds": timing.seconds, "cpu_seconds": timing.cpu_seconds, "basis": timing.basis}
        elif forward is not None and counts is not None:
            each = (
                forward
                if part.n_examples == self.prompts.n
                else forward * self._operations(self.examples) / self._operations(self.task.train)
            )
            ends = ends_of((counts.forwards[0] * each, counts.forwards[1] * each))
            how = "the measured forward" if self.measures else "the given speed"
            given = {"seconds": counts.usual * each, "seconds_span": ends, "basis": f"estimate: its usual count, by {how}"}
        return PlannedPart(
            part.name, part.n_examples, 1, **spans_of(counts), usual=usual, why="" if counts is None else counts.why,
            dealt=self._dealt(part), peak=peak, **given,
        )  # fmt: skip

    def _dealt(self, part: _Part) -> int:
        """Into how many pieces a part's work can be dealt out: ranks of CPUs take the chunks of an attribution in turn."""
        if part.name not in GRADIENTS or not self.sizes.shapes.on_cpu:
            return part.n_examples
        chunk = attribution_chunk(self.sizes, self.prompts, self.budget, GRADIENTS[part.name](self.settings))
        return -(-part.n_examples // chunk)

    def _ranks(self, parts: Sequence[_Part], written: Sequence[PlannedPart]) -> tuple[RanksPlan, ...]:
        """The run on 1, 2, 4 ... ranks: `shares_of` with the memory of each."""
        plans = []
        for n in rank_numbers(self.given["ranks"]):
            work, seconds = shares_of(written, n)
            copies, split = self._needed(parts, self.sizes, self.budget, ranks=n), self.sizes.split(n)
            within = None if split is None else int(self._needed(parts, split, self.budget))
            known = all(part.peak is not None for part in parts)
            plans.append(RanksPlan(n, work, seconds, int(copies) if known else None, within if known else None))
        return tuple(plans)

    def _needed(
        self, parts: Sequence[_Part], sizes: Sizes, budget: int, length: int | None = None, n: int | None = None, ranks: int = 1
    ) -> float:
        """Weights and the largest peak that is known, with prompts of another length, another number of them, or dealt out
        to ranks."""
        each = [0]
        for part in parts:
            prompts = self._prompts_of(part)
            prompts = prompts if length is None else prompts.of_length(length)
            prompts = prompts if n is None or prompts is self.all_prompts else prompts.of_number(n)
            prompts = prompts.of_number(-(-prompts.n // ranks))
            each += [] if part.peak is None else [part.peak(sizes, prompts, budget)]
        return sizes.weights + max(each)

    def _prompts_of(self, part: _Part) -> Prompts:
        return self.all_prompts if part.name == "score" else self.prompts

    def _fits(self, parts: Sequence[_Part]) -> tuple[Fit, ...]:
        device = self.model.device if has_weights(self.model) else "cpu"
        rooms = [("this machine", machine_memory(device))]
        rooms += [] if self.stated is None else [("stated", self.stated)]
        return tuple(self._fit(parts, where, size) for where, size in rooms)

    def _fit(self, parts: Sequence[_Part], where: str, size: int) -> Fit:
        def layers_fit(n: int) -> bool:
            sizes = self.sizes.with_layers(n)
            return _has_graph(sizes) and self._needed(parts, sizes, 0) <= size

        fits = self._needed(parts, self.sizes, self.budget) <= size
        if any(part.peak is None for part in parts):
            return Fit(where, size, None if fits else False, None, None, None, None)
        layers = most_that_fits(layers_fit, MOST_LAYERS)
        most = min(MOST_TOKENS, self.model.n_ctx)
        return Fit(
            where,
            size,
            fits,
            layers,
            self.sizes.with_layers(layers).parameters if layers else 0,
            most_that_fits(lambda length: self._needed(parts, self.sizes, 0, length) <= size, most),
            most_that_fits(lambda n: self._needed(parts, self.sizes, 0, n=n) <= size, MOST_EXAMPLES),
        )


def _has_graph(sizes: Sizes) -> bool:
    """Whether graphs of so many layers are handled."""
    try:
        return sizes.graph.n_layers > 0
    except GraphMismatch:
        return False


def _settings_of(algorithm: str | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """The algorithm's settings with its defaults.

    Raises:
        UnknownName, BadSetting: one is not known or out of its bounds.
    """
    if algorithm is None:
        if own:
            raise UnknownName("setting of score", next(iter(own)), Planning.__annotations__)
        return {}
    chosen = get_algorithm(algorithm)
    if foreign := set(own) - set(chosen.settings):
        raise UnknownName(f"setting of algorithm '{algorithm}'", sorted(foreign)[0], chosen.settings)
    return {**chosen.settings, **own, **check_values(chosen.function, own)}


def _prompts(examples: Sequence[Any]) -> Prompts:
    return Prompts(
        len(examples), max(map(len, examples)), max(len(example.positions) for example in examples), tuple(examples)
    )  # fmt: skip
