"""What every discovery algorithm takes and gives: one call, one result."""

from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.selection import By, greedy, top_k
from circuitdisc.discovery.units import UnitScores
from circuitdisc.engine.gradients.path_points import PathSum
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.results import SHOWN, Row, Shown, plain_rows
from circuitdisc.runs import Journal


@dataclass
class Discovery(Shown):
    """What an algorithm found: scores of edges from which the circuit was chosen, or a circuit that was decided part by part.

    Args:
        circuit: the circuit, with its provenance.
        edge_scores: the scores that chose the circuit, one for every edge, NaN where there is no edge. They are then the
            result, and give circuits of other sizes. None for algorithms that decide, whose circuit is the result. [R, S]
        trace: every decision, in order.
        cost: runs, node evaluations and seconds.
        node_scores: a score for every sender, or None for algorithms that score edges or only decide. [S]
        notes: what a reader must know of this search, in sentences; they travel with the circuit's provenance.
        ranking: scores that only set the order in which an algorithm decided. They say little of its circuit: nothing is
            chosen from them, and nothing judges by them. [R, S]
        path_sum: for integrated gradients, whether the scores across a cut of the graph add up.
        units: what each unit of the examples adds to the scores, if that was asked for and could be kept.
        no_units: why it was not kept.
        signed: edge scores say which way the metric moves, and not only how far.
    """

    circuit: Circuit
    edge_scores: Float[np.ndarray, "R S"] | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    node_scores: Float[np.ndarray, "S"] | None = None
    notes: tuple[str, ...] = ()
    ranking: Float[np.ndarray, "R S"] | None = None
    path_sum: PathSum | None = None
    units: UnitScores | None = None
    no_units: str = ""
    signed: bool = True

    def __repr__(self) -> str:
        scored = ", a score for every edge" if self.edge_scores is not None else ""
        return f"Discovery({self.circuit!r}{scored}, {self.cost.seconds:.3g} s)"

    def table(self, most: int | None = None) -> list[Row]:
        """A row an edge of the graph, the largest score first; of an algorithm that only decides, a row a kept edge.

        Args:
            most: rows; None: all.
        """
        if self.edge_scores is None:
            return self.circuit.table(most)
        graph, scores, kept = self.circuit.graph, self.edge_scores, self.circuit.mask
        places = np.argwhere(graph.edge_mask)
        order = np.argsort(-np.abs(scores[graph.edge_mask]), kind="stable")
        return plain_rows(
            {"edge": graph.edge_name(r, s), "score": scores[r, s], "kept": bool(kept[r, s])}
            for r, s in places[order[:most]].tolist()
        )

    def _drawn(self) -> str:
        """Its explorer: of a page, which is above this floor."""
        return import_module("circuitdisc.pages.inline").explore(self)._repr_html_() if self.circuit.n_edges else ""

    def _first_rows(self) -> tuple[list[Row], int]:
        circuit = self.circuit
        return self.table(SHOWN), circuit.n_edges if self.edge_scores is None else circuit.graph.n_edges

    def top_k(self, n: int, by: By = "absolute") -> Circuit:
        """The circuit of the n edges with the best scores, pruned; see `selection.top_k`.

        Raises:
            BadSetting: the algorithm scored no edges, or `by` asks for a sign that they have not.
        """
        return top_k(self.circuit.graph, self._scores(by), n, by)

    def greedy(self, n: int, by: By = "absolute") -> Circuit:
        """The circuit of n edges grown from `logits`; see `selection.greedy`.

        Raises:
            BadSetting: the algorithm scored no edges, or `by` asks for a sign that they have not.
        """
        return greedy(self.circuit.graph, self._scores(by), n, by)

    def _scores(self, by: By = "absolute") -> Float[np.ndarray, "R S"]:
        if self.edge_scores is None:
            name = self.circuit.provenance.algorithm or "this algorithm"
            why = "scores no edges" if self.ranking is None else "decides by its tests; its scores are only their order"
            raise BadSetting(f"{name} {why}, so that no other size can be chosen: use a scored algorithm such as eap_ig")
        if by == "signed" and not self.signed:
            raise BadSetting(
                f"by=signed: the scores of {self.circuit.provenance.algorithm or 'this search'} have no sign: use by=absolute"
            )
        return self.edge_scores

    def cost_dict(self) -> dict[str, float]:
        return asdict(self.cost)


@dataclass
class SearchContext:
    """What every algorithm gets beside model, task and ablation.

    Args:
        metric: what is measured: a metric, or its name (`get_metric` takes either).
        memory: budget for activations, as `4GiB`.
        seed: of everything random.
        journal: where decisions are written; lines already in it are taken over.
        progress: show a progress bar.
        keep_units: also keep what each unit of the examples adds to the scores, where the algorithm can and memory allows it.
    """

    metric: str | Metric = "logit_diff"
    memory: str | int = "4GiB"
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    progress: bool = False
    keep_units: bool = False
