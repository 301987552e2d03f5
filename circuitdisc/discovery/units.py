"""Searches on samples of the examples that take no run: of scores that are means over examples, each example's part is kept.

The scores on a sample are then sums of parts, and the circuit is chosen from them as that of all examples was. That is the
search itself where what the ablation carries does not depend on the other examples (`resample`, `zero`). Averages and learnt
constants stay those of all search examples.

Shape letters: G units (examples, or groups of them that are drawn whole), E edges of the graph.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.selection import Selection, connected
from circuitdisc.graph import ComputationGraph
from circuitdisc.stats import Partition

SIGN_RESAMPLES, AT_ONCE = 1000, 20


@dataclass(frozen=True)
class UnitScores:
    """What each unit of the search examples adds to the scores of a search.

    Args:
        sums: over each unit's examples, of the score of every edge. [G, E]
        over: which unit each example belongs to.
        selection: how the circuit is chosen from scores.
        frozen: the ablation learns from the examples, and its values are those of all of them.
        seed: of the resamples that `selection.sign_consistent` looks at.
        repair: what was done with edges on no path from an embedding: `dropped`, `connected` (see `target.py`), or nothing.
    """

    graph: ComputationGraph
    sums: Float[np.ndarray, "G E"]
    over: Partition
    selection: Selection
    frozen: bool
    seed: int = 0
    repair: str = "none"

    def scores(self, counts: Float[np.ndarray, "G"]) -> Float[np.ndarray, "R S"]:
        """The mean score of every edge, NaN where the graph has none.

        Args:
            counts: how often each unit is in the sample; not all 0.
        """
        sizes = np.bincount(self.over.of, minlength=len(self.sums))
        found = np.full(self.graph.edge_mask.shape, np.nan)
        found[self.graph.edge_mask] = counts @ self.sums / (counts @ sizes)
        return found

    def allowed(self, counts: Float[np.ndarray, "G"]) -> Bool[np.ndarray, "R S"] | None:
        """Edges whose score has the sample's own sign in enough bootstrap resamples of it; None where that is not asked.

        A score of 0 has no sign. The units of the sample are drawn, as often as they are in it.
        """
        share = self.selection.sign_consistent
        if share is None:
            return None
        sums, generator = np.repeat(self.sums, counts.astype(int), axis=0), np.random.default_rng(self.seed)
        sign, n = np.sign(sums.sum(0)), len(sums)
        alike = np.zeros(len(sign))
        for _ in range(0, SIGN_RESAMPLES, AT_ONCE):
            drawn = generator.multinomial(n, np.full(n, 1 / n), size=AT_ONCE)
            alike += (np.sign(drawn @ sums) == sign).sum(0)
        mask = np.zeros_like(self.graph.edge_mask)
        mask[self.graph.edge_mask] = (alike >= share * SIGN_RESAMPLES - 1e-9) & (sign != 0)
        return mask

    def circuit(self, counts: Float[np.ndarray, "G"]) -> Circuit:
        """The circuit of a sample of units; that of no example is empty."""
        if not counts.any():
            return Circuit.empty(self.graph)
        scores = self.scores(counts)
        circuit = self.selection.circuit(self.graph, scores, self.allowed(counts))
        if self.repair == "connected":
            return connected(circuit, scores, self.selection.by)
        return circuit.prune(unreached=True) if self.repair == "dropped" else circuit
