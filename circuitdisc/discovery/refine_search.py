"""The walk of `refine`: exact flips of the edges around a circuit, and what is made of them, all of it replayed by the journal.

`FlipWalk` ends where no single flip is due (`refine.py` states the steps); `WalkToSize` ends on a circuit of a given size.
"""

import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from circuitdisc.circuit import Circuit, live_receivers
from circuitdisc.discovery.bisect import TESTS_PER_MARK, cut_groups, next_line
from circuitdisc.discovery.rules import OfSize, Priced, Within
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.patching import Patching, Removal
from circuitdisc.errors import BadRun
from circuitdisc.metrics import Metric
from circuitdisc.runs import Journal

A = TypeVar("A", bound=Priced | Within)
Mask = Bool[np.ndarray, "R S"]
KNOWN = 16  # circuits whose flips are kept


@dataclass(frozen=True)
class State:
    """A circuit and its metric."""

    mask: Mask
    value: float


# --- the walk -------------------------------------------------------------------------------------------------------------


@dataclass
class FlipWalk(Generic[A]):
    """Steps 2 to 5. What the journal already holds is taken from there.

    Args:
        order: flat indices of all edges, the one with the largest score first.
        n_candidates: how many of these may be put back; None: all.
        widest: the largest group that is put back together.
    """

    patching: Patching
    chunks: list[Chunk]
    metric: Metric
    aim: A
    journal: Journal
    recorded: deque[dict]
    order: Int[np.ndarray, "n"]
    n_candidates: int | None
    widest: int
    bar: tqdm

    STEPS: ClassVar[str] = "groups put back"

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
        words = f"refine began with {start.n_edges:,} edges ({name}); {self.n_better} {self.STEPS} made the circuit better."
        n, n_all = int(self.candidates.sum()), self.graph.n_edges
        if n == n_all:
            return (words,)
        return (words, f"Only the {n:,} of {n_all:,} edges with the largest scores by {ranking} were tried to be put back.")

    def _begin(self, mask: Mask, start: str) -> State:
        checksum = zlib.crc32(np.packbits(mask).tobytes())
        if not self.recorded:
            value = self._measure(mask)
            self.journal.write(start=start, checksum=checksum, metric=value)
            return State(mask, value)
        line = next_line(self.recorded, "start")
        if line["checksum"] != checksum:
            raise BadRun(
                f"this run began with another circuit than {start} has now, so that it cannot be resumed: start it again in a "
                "new folder"
            )
        return State(mask, line["metric"])

    def _cost(self, state: State) -> float:
        return self.aim.cost(state.value, int(state.mask.sum()))

    def _measure(self, mask: Mask) -> float:
        return self.patching.measure(self.chunks, mask, self.metric)

    def _put_back(self, mask: Mask, edges: Int[np.ndarray, "n"]) -> State:
        """A circuit with these edges besides, measured; those that lead nowhere stay out."""
        wider = mask.copy()
        wider.flat[edges] = True
        wider &= live_receivers(self.graph, wider)[:, None]
        added = [self.graph.edge_name(r, s) for r, s in np.argwhere(wider & ~mask).tolist()]
        if self.recorded:
            line = next_line(self.recorded, "added")
            if line["added"] != added:
                raise BadRun("the journal's additions are not those of this search: start again in a new folder")
            return State(wider, line["metric"])
        value = self._measure(wider)
        self.journal.write(added=added, metric=value)
        if (n_lines := len(self.journal.decisions)) % TESTS_PER_MARK == 0:
            self.journal.mark(f"{n_lines} lines")
        return State(wider, value)

    def _grow(self, state: State) -> State:
        """Step 1: with `keep`, up to the share."""
        n = 1
        while not np.isfinite(self._cost(state)):
            absent = self.order[~state.mask.flat[self.order]]
            state, n = self._put_back(state.mask, absent[:n]), 2 * n
        return state

    # --- steps 2 to 4 --------------------------------------------------------------------------------------------------

    def _descend(self, state: State, last: Mask) -> State:
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

    def _missed(self, state: State, flipped: Float[np.ndarray, "R S"]) -> Int[np.ndarray, "n"]:
        absent = self._nearest(flipped, ~state.mask)
        missed = [self.aim.missed(state.value, value) for value in flipped.flat[absent].tolist()]
        return absent[np.array(missed, dtype=bool)]

    def _nearest(self, flipped: Float[np.ndarray, "R S"], among: Mask) -> Int[np.ndarray, "n"]:
        """Flat indices of the flipped edges among these, the one whose flip ends nearest to the full model first."""
        places = np.flatnonzero(among & np.isfinite(flipped))
        distances = [self.aim.distance(value) for value in flipped.flat[places].tolist()]
        return places[np.argsort(distances, kind="stable")]

    def _forward(self, state: State, flipped: Float[np.ndarray, "R S"], due: Int[np.ndarray, "n"]) -> State:
        best = state.mask.copy()
        best.flat[due[0]] = True
        alone = State(best, float(flipped.flat[due[0]]))
        if len(due) == 1:
            return alone
        together = self._put_back(state.mask, due)
        return together if self._cost(together) <= self._cost(alone) else alone

    def _backward(self, state: State, flipped: Float[np.ndarray, "R S"], last: Mask) -> State:
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
        return State(mask, value)

    def _flips(self, mask: Mask, tried: Mask | None = None) -> Float[np.ndarray, "R S"]:
        """Step 2: the metric with each edge alone flipped, NaN for edges that are not tried.

        Groups often lead back to where they began: the last circuits' flips are kept.

        Args:
            tried: None: the circuit's own, and the candidates beside it.
        """
        if tried is None:
            tried = (mask | self.candidates) & live_receivers(self.graph, mask)[:, None]
        key = np.packbits(np.stack([mask, tried])).tobytes()
        if key not in self._known:
            self._known[key] = self._measured_flips(mask, tried)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _measured_flips(self, mask: Mask, tried: Mask) -> Float[np.ndarray, "R S"]:
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

    def _better(self, state: State) -> State | None:
        """A better circuit by way of a group put back; None if no group leads to one."""
        for group in self._groups(state):
            wider = self._put_back(state.mask, group)
            after = self._descend(wider, wider.mask & ~state.mask)
            if self._cost(after) < self._cost(state):
                return after
        return None

    def _groups(self, state: State) -> Iterator[Int[np.ndarray, "n"]]:
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


# --- a circuit of a given size ----------------------------------------------------------------------------------------------


@dataclass
class WalkToSize(FlipWalk[OfSize]):
    """The steps of `refine` with `edges`.

    Args:
        n_swaps: how many edges of the circuit are tried to be swapped, those whose cut leads least far; None: all.
    """

    n_swaps: int | None

    STEPS: ClassVar[str] = "swaps"

    def run(self, mask: Mask, start: str) -> Mask:
        """All steps from a circuit on."""
        state = self._to_size(self._begin(mask, start))
        while (better := self._swapped(state)) is not None:
            state, self.n_better = better, self.n_better + 1
        return state.mask

    def _to_size(self, state: State) -> State:
        """Cut, then put back, half of what is too many or too few at a time, by what each edge does alone."""
        while (n := int(state.mask.sum()) - self.aim.n_edges) > 0:
            order = self._nearest(self._flips(state.mask, state.mask), state.mask)
            state = self._without(state.mask, order[: max(1, n // 2)])
        while (n := self.aim.n_edges - int(state.mask.sum())) > 0:
            absent = self._absent(state.mask)
            order = self._nearest(self._flips(state.mask, absent), absent)
            state = self._put_back(state.mask, order[: max(1, n // 2)])
        return state

    def _absent(self, mask: Mask) -> Mask:
        """Candidates that may be put into a circuit."""
        return self.candidates & ~mask & live_receivers(self.graph, mask)[:, None]

    def _without(self, mask: Mask, edges: Int[np.ndarray, "n"]) -> State:
        """A circuit without these edges, and without what then leads nowhere, measured."""
        smaller = mask.copy()
        smaller.flat[edges] = False
        smaller &= live_receivers(self.graph, smaller)[:, None]
        if self.recorded:
            return State(smaller, next_line(self.recorded, "left")["metric"])
        value = self._measure(smaller)
        self.journal.write(left=int(smaller.sum()), metric=value)
        return State(smaller, value)

    def _swapped(self, state: State) -> State | None:
        """The first swap that helps: each edge in its order for its best candidate."""
        order = self._nearest(self._flips(state.mask, state.mask), state.mask)
        for edge in order[: self.n_swaps].tolist():
            without = state.mask.copy()
            without.flat[edge] = False
            absent = self._absent(without)
            absent.flat[edge] = False
            if (without & ~live_receivers(self.graph, without)[:, None]).any():
                # What feeds the edge's sender leads nowhere now, unless the sender is read elsewhere: any other edge in its
                # place would leave a smaller circuit.
                absent &= np.arange(self.graph.n_senders) == edge % self.graph.n_senders
            flipped = self._flips(without, absent)
            for best in self._nearest(flipped, absent)[:1].tolist():
                value = float(flipped.flat[best])
                if self.aim.helps(state.value, value):
                    without.flat[best] = True
                    self._write_swap(edge, best)
                    return State(without, value)
        return None

    def _write_swap(self, cut: int, added: int) -> None:
        names = [self.graph.edge_name(*divmod(edge, self.graph.n_senders)) for edge in (cut, added)]
        if not self.recorded:
            self.journal.write(swapped=names)
        elif next_line(self.recorded, "swapped")["swapped"] != names:
            raise BadRun("the journal's swaps are not those of this search: start again in a new folder")
