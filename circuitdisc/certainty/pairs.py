"""Pairs of parts, and the runs of a model or a circuit without them: exact, batched, and kept unit by unit.

Shape letters: B examples, P sets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, groupby
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from circuitdisc.certainty.cost import prompts_run
from circuitdisc.circuit import Circuit
from circuitdisc.engine.part_removal import Mask, PartRemoval
from circuitdisc.engine.parts import without
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadSetting
from circuitdisc.runs import Memo
from circuitdisc.scoring.removals import Names, Subject

Outside = Literal["set", "each", "none"]
Pair = tuple[str, Names]
"""A part, and the parts that are taken out before it."""

MOST_PAIRS = 100_000
_BLOCK = 400  # sets of parts in one unit of the journal


# --- pairs, and the sets that are taken out for them --------------------------------------------------------------------------


def pairs_of(judged: Subject, outside: Outside) -> list[Pair]:
    """All pairs that are tried.

    Raises:
        BadSetting: there are none, or too many.
    """
    parts, others = judged.parts, ()
    if judged.by == "head" and outside != "none":
        others = tuple(head for head in judged.circuit.graph.heads if head not in parts)
    n_outside = len(others) * (1 + len(parts) * (outside == "each" and len(parts) > 1))
    if (n_pairs := len(parts) * (len(parts) - 1) // 2 + n_outside) > MOST_PAIRS:
        raise BadSetting(f"{len(parts):,} {judged.by}s make {n_pairs:,} pairs, over {MOST_PAIRS:,}: take a smaller circuit")
    pairs: list[Pair] = [(b, (a,)) for a, b in combinations(parts, 2)] + [(head, parts) for head in others]
    if outside == "each" and len(parts) > 1:
        pairs += [(head, (part,)) for head in others for part in parts]
    if not pairs:
        raise BadSetting(f"the circuit has one {judged.by} and there are none beside it, so that no pair can be made")
    return pairs


def is_inside(pair: Pair, judged: Subject) -> bool:
    """Whether both are parts of the circuit."""
    return pair[0] in judged.parts


def together(pair: Pair) -> Names:
    return tuple(sorted((*pair[1], pair[0])))


def sets_of(pair: Pair) -> tuple[Names, ...]:
    """What is taken out to know a pair: nothing, the part, the others, both."""
    return (), (pair[0],), pair[1], together(pair)


def growth(pair: Pair, value: Mapping[Names, Any]) -> Any:
    """How much the effect of either grows without the other."""
    nothing, part, others, both = (value[key] for key in sets_of(pair))
    return part + others - nothing - both


# --- runs ---------------------------------------------------------------------------------------------------------------------


class PairRuns:
    """Values of the model and of the circuit without sets of parts, unit by unit, and what they have cost.

    Args:
        memo: keeps what is computed.
    """

    def __init__(self, judged: Subject, memo: Memo, progress: bool) -> None:
        self.judged, self.memo, self.progress = judged, memo, progress
        learned = prompts_run(judged.patching.cost, judged.circuit.graph, len(judged.task.train))  # by the ablation
        self.forwards = {"pairs": learned, "judgement": 0.0}

    def means(self, name: str, mask: Mask, sets: Sequence[Names], on_step: Callable[[int], object]) -> dict[Names, float]:
        """Means over the search examples without each of these sets."""
        means: dict[Names, float] = {}
        for number, block in enumerate(self._blocks(sets)):
            values = self._unit(f"{name} {number}", lambda block=block: removed(self.judged.search, mask, block).mean(1), False)
            means |= dict(zip(block, values.tolist(), strict=True))
            on_step(len(block))
        return means

    def values(self, name: str, mask: Mask, sets: Sequence[Names]) -> dict[Names, Float[np.ndarray, "B"]]:
        """Values of the held-out examples."""
        return dict(zip(sets, self._unit(name, lambda: removed(self.judged.judge, mask, sets), True), strict=True))

    def empty(self) -> float:
        """Mean of the empty circuit on the search examples."""
        circuit = self.judged.circuit
        nothing = Circuit.from_heads(circuit.graph, []) if circuit.granularity == "head" else Circuit.empty(circuit.graph)
        return float(self._unit("empty", lambda: self.judged.search.values(nothing.mask).mean(keepdims=True), False)[0])

    def _blocks(self, sets: Sequence[Names]) -> Iterator[list[Names]]:
        """Sets that begin at the same place stand together; edges behind the same one have a block of their own."""
        graph, known = self.judged.circuit.graph, list(dict.fromkeys(sets))
        if self.judged.by == "edge":
            yield from (list(block) for _, block in groupby(sorted(known, key=lambda key: key[:-1]), lambda key: key[:-1]))
            return
        known.sort(key=lambda key: min((graph.sender_index[name] for name in key), default=-1))
        yield from (known[start : start + _BLOCK] for start in range(0, len(known), _BLOCK))

    def _unit(self, name: str, compute: Callable[[], np.ndarray], heldout: bool) -> np.ndarray:
        task, patching = self.judged.task, self.judged.patching

        def counted() -> dict[str, Any]:
            patching.cost = Cost()
            values = compute()
            n = len(task.heldout if heldout else task.train)
            return {"values": values.tolist(), "forwards": prompts_run(patching.cost, self.judged.circuit.graph, n)}

        unit = self.memo.get(name, counted)
        self.forwards["judgement" if heldout else "pairs"] += unit["forwards"]
        return np.array(unit["values"])


def removed(removal: PartRemoval, mask: Mask, sets: Sequence[Names]) -> Float[np.ndarray, "P B"]:
    """Metric values of a circuit without each of these sets: nodes by what they reach, edges as rows of one batch."""
    if not removal.cuts_edges:
        return removal.sets_removed(mask, sets)
    values = np.zeros((len(sets), removal.n_examples))
    for before, places in groupby(sorted(range(len(sets)), key=lambda place: sets[place][:-1]), lambda place: sets[place][:-1]):
        group = list(places)
        left = without(removal.graph, mask, before)
        for place in group:
            if not sets[place]:
                values[place] = removal.values(left)
        some = [place for place in group if sets[place]]
        values[some] = removal.each_removed(left, [sets[place][-1] for place in some])
    return values
