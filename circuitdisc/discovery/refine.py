"""Refinement: any circuit, walked by exact search backwards and forwards until neither changes it.

d is the distance of a circuit's metric from the full model's.

1. Begin with a circuit: the best edges of a scored algorithm, or one from a file. With `keep`, put back the edges with the
   largest scores, 1, 2, 4, ... at a time, until the circuit keeps the share.
2. Flip every edge alone, exactly: each kept edge is cut, each other edge into a live node is put back.
3. Forward: put back every edge that alone lowers d by more than the threshold, all together if that is no worse than the best
   of them alone.
4. Backward, when nothing is missed: cut the edges that alone may go, in groups as `bisect` does, those that change least first.
   Go on with step 2 until no single flip is due.
5. Put back a group that no single flip would have: the 1, 2, 4, ... edges that come nearest to being missed, then those with
   the largest scores. Repeat steps 2 to 4 from there, and take what comes out if it is better: with a threshold, if
   d + threshold x edges is lower; with `keep`, if it has fewer edges. End when no group is.

What is true of the circuit that comes out, whatever the scores were:
- minimal edge by edge: cutting any single edge of it raises d by the threshold or more (with `keep`: leaves the bounds);
- nothing is missed: no single edge that was tried lowers d by more than the threshold when it is put back;
- no worse than it began: d + threshold x edges only ever falls (with `keep`: the circuit lies within the bounds, and has no
  more edges than one that began within them), which is also why the search ends.
All of it holds for the metric's mean over the examples that were searched on.

Source: add and drop moves of local search (Kernighan and Lin 1970) with the restarts of iterated local search (Lourenco, Martin
and Stuetzle 2003), over edges; group tests as in `bisect`.
"""

import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import EDGES, Whole, check_choice
from circuitdisc.circuit import Circuit, live_receivers
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.bisect import TESTS_PER_MARK, cut_groups, next_line
from circuitdisc.discovery.ranking import RANKINGS, ascending, check_ranking, edge_ranking
from circuitdisc.discovery.rules import KeepOptions, KeepRule, Priced, Within, rule_of
from circuitdisc.discovery.selection import Selection, Sizing
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.patching import Patching, Removal
from circuitdisc.errors import BadRun, BadSetting, GraphMismatch, shown
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, takes
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task

Mask = Bool[np.ndarray, "R S"]
KNOWN = 16  # circuits whose flips are kept


class RefineOptions(KeepOptions, Sizing, total=False):
    """Where refinement begins and what it tries."""

    start: Annotated[
        str,
        Option(
            "eap_ig",
            "the circuit to begin with: a scored algorithm at its defaults, whose best edges (`edges`, `fraction`, `grow`) are "
            "taken; or the folder of a run, or a circuit's file.",
        ),
    ]
    ranking: Annotated[
        str,
        Option(
            "eap_ig",
            "the scored algorithm whose scores say which edges are put back in groups, where `start` is a file; a scored start "
            "has scores of its own.",
        ),
    ]
    candidates: Annotated[
        int | None,
        Option(None, "how many edges, those with the largest scores, may be put back; None: all of the graph.", EDGES),
    ]
    widest: Annotated[int, Option(8, "the largest group of edges that is put back together in step 5.", Whole(1, 2**31 - 1))]


@takes(RefineOptions)
def refine(model: Model, task: Task, ablation: Ablation, context: SearchContext, **options: Unpack[RefineOptions]) -> Discovery:
    """Cut what a circuit does not need and put back what it misses, until neither changes it.

    Args:
        threshold: what an edge must be worth, in units of the metric: kept edges bring it nearer to the full model's by at
            least this; `auto` from the scores.
        keep: in place of a threshold: the fewest edges with which the circuit keeps this share of the gap in the metric between
            the full model and the empty circuit (and rises no further above the full model).
        two_sided: above the full model a circuit is as far from it as below. `False`: only what lies below counts, so that
            edges that raise the metric further are put back. None: `False` for `kl`, and `True` for all others.

    Returns:
        The circuit, in `ranking` the scores that ordered groups, and in the trace every edge's effect and every test.

    Raises:
        BadSetting, UnknownName: a setting cannot be used.
        GraphMismatch: the circuit to begin with is of another graph.
        BadRun: a run that is resumed finds another start than it began with.
    """
    given: Any = options
    metric, graph, journal = get_metric(context.metric), model.graph, context.journal
    if ablation.target == "pattern":
        raise BadSetting("refine cuts edges; an attention pattern is no edge: use ablation.target=output, or head_ablation")
    check_choice("ranking", given["ranking"], RANKINGS)
    selection = Selection(given["edges"], given["fraction"], given["grow"])
    selection.n_edges(graph)
    scored = given["start"] in RANKINGS
    start = None if scored else _circuit_at(given["start"], graph)
    ranking = given["start"] if scored else given["ranking"]
    scores, ranking_cost = edge_ranking(ranking, model, task, ablation, context)
    recorded = deque(journal.decisions)
    check_ranking(ranking, ascending(graph, scores), recorded, journal)
    if recorded:
        recorded.popleft()
    circuit = (start or selection.circuit(graph, scores)).prune()
    patching = Patching(model, ablation, task.train, memory=context.memory)
    chunks = patching.hold_share(task.train)
    full = patching.measure(chunks, graph.edge_mask, metric)
    empty = np.zeros_like(graph.edge_mask)
    rule = rule_of(
        {**given, "relative": False, "ranking": ranking},
        metric,
        scores,
        lambda: (full, patching.measure(chunks, empty, metric), full),
    )
    aim = Within(rule) if isinstance(rule, KeepRule) else Priced(rule, full)
    bar = progress_bar(graph.n_edges, f"refine on {model.name}", "edge", context.progress)
    order = ascending(graph, scores)[::-1]
    search = _Search(patching, chunks, metric, aim, journal, recorded, order, given["candidates"], given["widest"], bar)
    mask = search.run(circuit.mask, f"{given['start']}, {circuit.n_edges:,} edges")
    bar.close()
    patching.cost.add(ranking_cost)
    notes = (aim.note(metric), *search.notes(circuit, given["start"], ranking))
    return Discovery(Circuit(graph, mask).prune(), None, journal.decisions, patching.cost, notes=notes, ranking=scores)


def _circuit_at(start: str, graph: ComputationGraph) -> Circuit:
    """The circuit of a run's folder, or of a file.

    Raises:
        BadSetting: there is none.
        GraphMismatch: it is of another graph.
    """
    path = Path(start if isinstance(start, str) else "")
    file = path / "circuit.json" if path.is_dir() else path
    if not isinstance(start, str) or not file.is_file():
        names = ", ".join(RANKINGS)
        raise BadSetting(
            f"start={shown(start)} is neither a scored algorithm ({names}), the folder of a finished run, nor a circuit.json"
        )
    circuit = Circuit.load(file)
    if circuit.graph != graph:
        raise GraphMismatch(f"start={start} is a circuit of {circuit.graph.describe()}; this model has {graph.describe()}")
    return circuit


@dataclass(frozen=True)
class _State:
    """A circuit and its metric."""

    mask: Mask
    value: float


# --- the search -----------------------------------------------------------------------------------------------------------


@dataclass
class _Search:
    """Steps 2 to 5. What the journal already holds is taken from there.

    Args:
        order: flat indices of all edges, the one with the largest score first.
        n_candidates: how many of these may be put back; None: all.
        widest: the largest group that is put back together.
    """

    patching: Patching
    chunks: list[Chunk]
    metric: Metric
    aim: Priced | Within
    journal: Journal
    recorded: deque[dict]
    order: Int[np.ndarray, "n"]
    n_candidates: int | None
    widest: int
    bar: tqdm

    def __post_init__(self) -> None:
        self.graph = self.patching.graph
        self.candidates = np.zeros_like(self.graph.edge_mask)
        self.candidates.flat[self.order[: self.n_candidates]] = True
        self.n_better = 0
        self._known: OrderedDict[bytes, Float[np.ndarray, "R S"]] = OrderedDict()

    def run(self, mask: Mask, start: str) -> Mask:
        """All steps from a circuit on."""
        state = self._begin(mask, start)
        state = self._descend(self._grow(state), np.zeros_like(mask))
        while (better := self._better(state)) is not None:
            state, self.n_better = better, self.n_better + 1
        return state.mask

    def notes(self, start: Circuit, name: str, ranking: str) -> tuple[str, ...]:
        """What a reader must know of this search."""
        words = f"refine began with {start.n_edges:,} edges ({name}); {self.n_better} groups put back made the circuit better."
        n, n_all = int(self.candidates.sum()), self.graph.n_edges
        if n == n_all:
            return (words,)
        return (words, f"Only the {n:,} of {n_all:,} edges with the largest scores by {ranking} were tried to be put back.")

    def _begin(self, mask: Mask, start: str) -> _State:
        checksum = zlib.crc32(np.packbits(mask).tobytes())
        if not self.recorded:
            value = self._measure(mask)
            self.journal.write(start=start, checksum=checksum, metric=value)
            return _State(mask, value)
        line = next_line(self.recorded, "start")
        if line["checksum"] != checksum:
            raise BadRun(
                f"this run began with another circuit than {start} has now, so that it cannot be resumed: start it again in a "
                "new folder"
            )
        return _State(mask, line["metric"])

    def _cost(self, state: _State) -> float:
        return self.aim.cost(state.value, int(state.mask.sum()))

    def _measure(self, mask: Mask) -> float:
        return self.patching.measure(self.chunks, mask, self.metric)

    def _put_back(self, mask: Mask, edges: Int[np.ndarray, "n"]) -> _State:
        """A circuit with these edges besides, measured; those that lead nowhere stay out."""
        wider = mask.copy()
        wider.flat[edges] = True
        wider &= live_receivers(self.graph, wider)[:, None]
        added = [self.graph.edge_name(r, s) for r, s in np.argwhere(wider & ~mask).tolist()]
        if self.recorded:
            line = next_line(self.recorded, "added")
            if line["added"] != added:
                raise BadRun("the journal's additions are not those of this search: start again in a new folder")
            return _State(wider, line["metric"])
        value = self._measure(wider)
        self.journal.write(added=added, metric=value)
        if (n_lines := len(self.journal.decisions)) % TESTS_PER_MARK == 0:
            self.journal.mark(f"{n_lines} lines")
        return _State(wider, value)

    def _grow(self, state: _State) -> _State:
        """Step 1: with `keep`, up to the share."""
        n = 1
        while not np.isfinite(self._cost(state)):
            absent = self.order[~state.mask.flat[self.order]]
            state, n = self._put_back(state.mask, absent[:n]), 2 * n
        return state

    # --- steps 2 to 4 --------------------------------------------------------------------------------------------------

    def _descend(self, state: _State, last: Mask) -> _State:
        """From a circuit to one that no single flip is due in.

        Args:
            last: edges that are cut after all others.
        """
        while True:
            flipped = self._flips(state.mask)
            due = self._missed(state, flipped)
            after = self._forward(state, flipped, due) if len(due) else self._backward(state, flipped, last)
            if not self._cost(after) < self._cost(state):
                return state
            state = after

    def _missed(self, state: _State, flipped: Float[np.ndarray, "R S"]) -> Int[np.ndarray, "n"]:
        absent = self._nearest(flipped, ~state.mask)
        missed = [self.aim.missed(state.value, value) for value in flipped.flat[absent].tolist()]
        return absent[np.array(missed, dtype=bool)]

    def _nearest(self, flipped: Float[np.ndarray, "R S"], among: Mask) -> Int[np.ndarray, "n"]:
        """Flat indices of the flipped edges among these, the one whose flip ends nearest to the full model first."""
        places = np.flatnonzero(among & np.isfinite(flipped))
        distances = [self.aim.distance(value) for value in flipped.flat[places].tolist()]
        return places[np.argsort(distances, kind="stable")]

    def _forward(self, state: _State, flipped: Float[np.ndarray, "R S"], due: Int[np.ndarray, "n"]) -> _State:
        best = state.mask.copy()
        best.flat[due[0]] = True
        alone = _State(best, float(flipped.flat[due[0]]))
        if len(due) == 1:
            return alone
        together = self._put_back(state.mask, due)
        return together if self._cost(together) <= self._cost(alone) else alone

    def _backward(self, state: _State, flipped: Float[np.ndarray, "R S"], last: Mask) -> _State:
        order = np.concatenate([self._nearest(flipped, state.mask & ~last), self._nearest(flipped, state.mask & last)])
        passes = [self.aim.passes(state.value, value) for value in flipped.flat[order].tolist()]
        mask, value = cut_groups(
            state.mask,
            state.value,
            order[np.array(passes, dtype=bool)],
            self._measure,
            self.graph,
            self.aim,
            self.journal,
            self.recorded,
            self.bar,
        )
        return _State(mask, value)

    def _flips(self, mask: Mask) -> Float[np.ndarray, "R S"]:
        """Step 2: the metric with each edge alone flipped, NaN for edges that are not tried.

        Groups often lead back to where they began: the last circuits' flips are kept.
        """
        key = np.packbits(mask).tobytes()
        if key not in self._known:
            self._known[key] = self._measured_flips(mask)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _measured_flips(self, mask: Mask) -> Float[np.ndarray, "R S"]:
        live = live_receivers(self.graph, mask)
        tried = (mask | self.candidates) & live[:, None]
        flipped, removal = np.full(mask.shape, np.nan), None
        self.bar.reset(int(tried.sum()))
        for receiver in reversed(np.flatnonzero(tried.any(1)).tolist()):
            senders = np.flatnonzero(tried[receiver]).tolist()
            name = self.graph.receivers[receiver].name
            if self.recorded:
                line = next_line(self.recorded, "flips")
                names = [self.graph.senders[sender].name for sender in senders]
                if line["flips"] != name or list(line["values"]) != names:
                    raise BadRun("the journal's flips are not those of this search: start again in a new folder")
                flipped[receiver, senders] = list(line["values"].values())
            else:
                if removal is None:
                    removal = self.patching.removal(
                        self.chunks, mask, self.metric, first=0, accepts=False, beside=tried & ~mask
                    )
                flipped[receiver, senders] = self._flip(removal, receiver, senders)
                values = zip(senders, flipped[receiver, senders].tolist(), strict=True)
                self.journal.write(flips=name, values={self.graph.senders[sender].name: value for sender, value in values})
                self.journal.mark(name)
            self.bar.update(len(senders))
        if removal is not None:
            removal.close()
        return flipped

    @staticmethod
    def _flip(removal: Removal, receiver: int, senders: list[int]) -> list[float]:
        most, values = removal.most_rows(receiver), list[float]()
        for first in range(0, len(senders), most):
            some = senders[first : first + most]
            values += removal.try_cuts(receiver, some, [True] * len(some))
        return values

    # --- step 5 --------------------------------------------------------------------------------------------------------

    def _better(self, state: _State) -> _State | None:
        """A better circuit by way of a group put back; None if no group leads to one."""
        for group in self._groups(state):
            wider = self._put_back(state.mask, group)
            after = self._descend(wider, wider.mask & ~state.mask)
            if self._cost(after) < self._cost(state):
                return after
        return None

    def _groups(self, state: _State) -> Iterator[Int[np.ndarray, "n"]]:
        """Groups of edges to be put back: by what each does alone, then by score."""
        flipped, tried = self._flips(state.mask), set[bytes]()
        by_score = self.order[(self.candidates & ~state.mask).flat[self.order]]
        for order in (self._nearest(flipped, ~state.mask), by_score):
            n = 1
            while n <= min(self.widest, len(order)):
                group = order[:n]
                key = np.sort(group).tobytes()
                if key not in tried:
                    tried.add(key)
                    yield group
                n *= 2
