"""A plan of a run: what it will count, take in memory and in time, on one process and on several, and what fits."""

from dataclasses import dataclass
from math import inf

from circuitdisc.files import size_words
from circuitdisc.planning.counts import COUNTED_IN, Counts, Span
from circuitdisc.results import Result, Row

Ends = tuple[float, float | None]
"""The least and the most; None: any number, which JSON has no figure for."""

WORDS = {
    "model_runs": "forward passes",
    "backward_runs": "backward passes",
    "circuit_runs": "runs of circuits",
    "candidates": "candidates",
    "node_evaluations": "node evaluations",
    "forwards": "in plain forwards",
}


@dataclass(frozen=True, repr=False)
class PlannedPart(Result):
    """One part of a run.

    Args:
        name: `checks`, the algorithm's, `score`.
        n_examples: over which passes are counted; passes are divided by them, as in `Cost`.
        times: how often it is done (checkpoints, cells).
        model_runs, backward_runs, circuit_runs, candidates, node_evaluations: the least and the most of each count of `Cost`;
            None where nobody planned this algorithm's.
        forwards: the same in forward passes of the whole model over the examples.
        usual: of these, if every candidate is tried once, all nodes stay alive and no guess is wrong.
        why: what a range depends on.
        dealt: into how many pieces the work can be dealt out to ranks: examples, or chunks of them.
        peak: the most bytes beside the weights; None where nobody planned it.
        seconds, cpu_seconds: expected, all times together; None without a measurement or a speed.
        seconds_span: by the least and the most count, where the time is not extrapolated from the run itself.
        basis: where the time comes from.
    """

    name: str
    n_examples: int
    times: int
    model_runs: Ends | None
    backward_runs: Ends | None
    circuit_runs: Ends | None
    candidates: Ends | None
    node_evaluations: Ends | None
    forwards: Ends | None
    usual: float | None
    why: str
    dealt: int
    peak: int | None
    seconds: float | None = None
    cpu_seconds: float | None = None
    seconds_span: Ends | None = None
    basis: str = ""

    @property
    def exact(self) -> bool:
        """Whether every count is known."""
        spans = [getattr(self, name) for name in COUNTED_IN[:-1]]
        return all(each is not None and each[0] == each[1] for each in spans)

    def table(self) -> list[Row]:
        """A row a count."""
        given = {name: getattr(self, name) for name in COUNTED_IN}
        return [
            {"part": self.name, "count": WORDS[name], "least": each[0], "most": each[1]} for name, each in given.items() if each
        ]


@dataclass(frozen=True, repr=False)
class RanksPlan(Result):
    """The run on several processes, over which the examples are spread.

    Args:
        work: share of all the work that the busiest rank does.
        seconds: expected; None without a time on one.
        memory: bytes of the busiest rank: the model, and activations of its examples; None where a part's are not known.
        split: the same where the ranks split one model by heads and MLP columns instead, and each runs all examples; None
            where the heads do not divide, too.
    """

    ranks: int
    work: float
    seconds: float | None
    memory: int | None
    split: int | None


@dataclass(frozen=True, repr=False)
class Fit(Result):
    """What a memory of some size has room for; None where what a part takes is not known.

    Args:
        where: `this machine`, or `stated`.
        size: bytes of it.
        fits: whether weights and planned peak do; False where those of some parts alone do not.
        layers, parameters: of the largest model of this width that does, with the least activations.
        tokens: of the longest prompts that do, as many as the task has; at most what the model takes. 0: none.
        examples: the most search examples that do, up to 1,000,000.
    """

    where: str
    size: int
    fits: bool | None
    layers: int | None
    parameters: int | None
    tokens: int | None
    examples: int | None


@dataclass(frozen=True, repr=False)
class RunPlan(Result):
    """What a run will take.

    Args:
        job: `discover`, `score` or `transfer`.
        parameters, weights: numbers in all weights, and their bytes.
        budget: for activations (`memory`).
        operations: floating-point operations of a plain forward over the search examples.
        forward_seconds: of one, measured or by `speed`; None for neither.
        speed: GFLOP/s: measured, or as given.
        measured: seconds that measuring took; 0 where nothing was run.
        notes: what a reader must know.
    """

    FORMAT = "circuitdisc.plan"
    WHERE = "not a plan"

    job: str
    model: str
    task: str
    parameters: int
    weights: int
    dtype: str
    n_train: int
    n_heldout: int
    longest: int
    budget: int
    operations: float
    forward_seconds: float | None
    speed: float | None
    measured: float
    parts: tuple[PlannedPart, ...]
    ranks: tuple[RanksPlan, ...]
    fits: tuple[Fit, ...]
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int | None:
        """Bytes of a rank beside Python and its libraries: weights, and the largest peak of a part; None: not known of one."""
        peaks = [part.peak for part in self.parts]
        return None if None in peaks else self.weights + max(peak or 0 for peak in peaks)

    @property
    def seconds(self) -> float | None:
        """Expected on one process; None where a part has no time."""
        each = [part.seconds for part in self.parts]
        return None if None in each else sum(second for second in each if second is not None)

    def part(self, name: str) -> PlannedPart:
        """The part of this name.

        Raises:
            KeyError: there is none.
        """
        return {part.name: part for part in self.parts}[name]

    def table(self) -> list[Row]:
        """A row a part."""
        return [
            {
                "part": part.name if part.times == 1 else f"{part.name}, {part.times} times",
                **{WORDS[name]: in_words(getattr(part, name)) for name in COUNTED_IN},
                "memory": None if part.peak is None else size_words(part.peak),
                "seconds": part.seconds,
            }
            for part in self.parts
        ]


def in_words(ends: Ends | None) -> str | None:
    """`12`, or `3 to 4,500`."""
    if ends is None:
        return None
    low, high = (
        "any number" if end is None else f"{end:,.0f}" if end >= 100 or end == int(min(end, 1e15)) else f"{end:.3g}"
        for end in ends
    )
    return low if ends[0] == ends[1] else f"{low} to {high}"


def ends_of(span: Span) -> Ends:
    """A span as a plan has it."""
    return span[0], None if span[1] == inf else span[1]


def spans_of(counts: Counts | None) -> dict[str, Ends | None]:
    """The counts of a part."""
    return {name: None if counts is None else ends_of(getattr(counts, name)) for name in COUNTED_IN}
