"""Searches on samples of the examples that take no run: of scores that are means over examples, each example's part is kept.

The scores on a sample are then sums of parts, and the circuit is chosen from them as that of all examples was. That is the
search itself where what the ablation carries does not depend on the other examples (`resample`, `zero`). Averages and learnt
constants stay those of all search examples.

Shape letters: G units (examples, or groups of them that are drawn whole), E edges of the graph.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.selection import Selection, connected
from circuitdisc.graph import ComputationGraph
from circuitdisc.stats import Partition


@dataclass(frozen=True)
class UnitScores:
    """What each unit of the search examples adds to the scores of a search.

    Args:
        sums: over each unit's examples, of the score of every edge. [G, E]
        over: which unit each example belongs to.
        selection: how the circuit is chosen from scores.
        frozen: the ablation learns from the examples, and its values are those of all of them.
        repair: what was done with edges on no path from an embedding: `dropped`, `connected` (see `target.py`), or nothing.
    """

    graph: ComputationGraph
    sums: Float[np.ndarray, "G E"]
    over: Partition
    selection: Selection
    frozen: bool
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

    def circuit(self, counts: Float[np.ndarray, "G"]) -> Circuit:
        """The circuit of a sample of units; that of no example is empty."""
        if not counts.any():
            return Circuit.empty(self.graph)
        scores = self.scores(counts)
        circuit = self.selection.circuit(self.graph, scores)
        if self.repair == "connected":
            return connected(circuit, scores, self.selection.by)
        return circuit.prune(unreached=True) if self.repair == "dropped" else circuit
