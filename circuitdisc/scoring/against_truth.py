"""Against a ground truth: is what an algorithm found what the model is known to do?

    edges   all edges of the graph; true are those of the truth
    nodes   heads and MLPs; true are those that a true edge enters or leaves. A node scores as its best edge does, so that it
            is taken when the first of its edges is
    ROC     as the threshold falls, the share of the true ones that are taken against the share of the others; equal scores
            are taken together
    AUROC   the area under it: probability that a true one scores above another, ties counting half
    precision, recall, F1
            of a circuit: of its own edges and nodes. Of scores: at the true size, that is of the fewest of the best that are
            at least as many as the truth has, with whole groups of equal scores

Source: Conmy et al. 2023, section 4 (ROC curves over edges and nodes).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import BadSetting, GraphMismatch
from circuitdisc.graph import ComputationGraph
from circuitdisc.results import Result, Row
from circuitdisc.scoring.roc import RocCurve, auroc, average_precision, curve
from circuitdisc.scoring.truth import Truth, label_of

BY = ("absolute", "signed")


@dataclass(frozen=True, repr=False)
class Agreement(Result):
    """Edges, or nodes, against the truth. N things.

    Args:
        kind: `edges` or `nodes`.
        names: of all.
        scores: of all, the highest first to be taken; of a circuit 1 and 0. [N]
        is_true: which are true. [N]
        is_taken: which precision, recall and F1 are of. [N]
        curve: all points of the ROC curve.
    """

    KEYS = ("kind", "names", "scores", "is_true", "is_taken")

    kind: str
    names: tuple[str, ...]
    scores: Float[np.ndarray, "N"]
    is_true: Bool[np.ndarray, "N"]
    is_taken: Bool[np.ndarray, "N"]
    curve: RocCurve

    @property
    def n(self) -> int:
        return len(self.names)

    @property
    def n_hits(self) -> int:
        return int((self.is_true & self.is_taken).sum())

    @property
    def auroc(self) -> float | None:
        """None if all or none are true."""
        return auroc(self.scores, self.is_true)

    @property
    def average_precision(self) -> float | None:
        """None if none are true."""
        return average_precision(self.curve)

    @property
    def precision(self) -> float | None:
        """None if none are taken."""
        return self.n_hits / int(self.is_taken.sum()) if self.is_taken.any() else None

    @property
    def recall(self) -> float | None:
        """None if none are true."""
        return self.n_hits / int(self.is_true.sum()) if self.is_true.any() else None

    @property
    def f1(self) -> float | None:
        """2 hits / (taken + true); None if none are taken and none true."""
        total = int(self.is_taken.sum() + self.is_true.sum())
        return 2 * self.n_hits / total if total else None

    def table(self) -> list[Row]:
        """The figures in one line."""
        return [
            {
                "of": self.kind,
                "n": self.n,
                "true": int(self.is_true.sum()),
                "taken": int(self.is_taken.sum()),
                "hits": self.n_hits,
                "AUROC": self.auroc,
                "average precision": self.average_precision,
                "precision": self.precision,
                "recall": self.recall,
                "F1": self.f1,
            }
        ]

    def missed(self) -> list[str]:
        """True ones that were not taken."""
        return [self.names[i] for i in np.flatnonzero(self.is_true & ~self.is_taken)]

    def wrong(self) -> list[str]:
        """Taken ones that are not true."""
        return [self.names[i] for i in np.flatnonzero(self.is_taken & ~self.is_true)]


@dataclass(frozen=True, repr=False)
class TruthScores(Result):
    """Edges and nodes against the truth.

    Args:
        truth: its name.
        ablation: label of the ablation that it belongs to.
        edges, nodes: the figures.
        scored: True for scores of all edges, False for a circuit alone, whose ROC curve has a single point between its ends.
    """

    FORMAT = "circuitdisc.truth_scores"
    KEYS = ("truth", "ablation", "scored", "table", "roc", "missed", "wrong")

    truth: str
    ablation: str
    edges: Agreement
    nodes: Agreement
    scored: bool

    def table(self) -> list[Row]:
        """A line for edges, a line for nodes."""
        return [*self.edges.table(), *self.nodes.table()]

    def roc(self) -> dict[str, dict[str, np.ndarray]]:
        """`edges` and `nodes` -> the rates along the ROC curve."""
        return {truth.kind: {"fpr": truth.curve.fpr, "tpr": truth.curve.tpr} for truth in (self.edges, self.nodes)}

    def missed(self) -> dict[str, list[str]]:
        """`edges` and `nodes` -> true ones that were not taken."""
        return {truth.kind: truth.missed() for truth in (self.edges, self.nodes)}

    def wrong(self) -> dict[str, list[str]]:
        """`edges` and `nodes` -> taken ones that are not true."""
        return {truth.kind: truth.wrong() for truth in (self.edges, self.nodes)}


def against_truth(
    found: Discovery | Circuit | Float[np.ndarray, "R S"],
    truth: Truth,
    *,
    ablation: str | Ablation | Mapping[str, Any] | None = None,
    by: str = "absolute",
    mix: bool = False,
) -> TruthScores:
    """Compare what was found with what is true.

    Args:
        found: a discovery (its edge scores, or its circuit if it has none), a circuit, or scores of edges: the metric's change
            when each is cut, NaN where the graph has no edge.
        ablation: which truth is meant; None takes that under which the circuit was found.
        by: of scores: `absolute`: the largest changes come first, of either sign; `signed`: the largest falls do.
        mix: judge a circuit by the truth of another ablation than it was found under.

    Raises:
        BadSetting: nothing is known for this ablation, none was given, the circuit was found under another one and `mix`
            is not set, or scores do not fit or are not finite.
        GraphMismatch: the circuit belongs to another architecture.
    """
    check_choice("by", by, BY)
    scores, circuit = _parts(found)
    if circuit is not None and circuit.graph != truth.graph:
        raise GraphMismatch(f"the circuit belongs to {circuit.graph.describe()}, the truth to {truth.graph.describe()}")
    ablation = ablation or (dict(circuit.provenance.ablation) if circuit is not None else None)
    if not ablation:
        raise BadSetting('a truth belongs to one ablation, and none is known here: give one, for example ablation="resample"')
    own = label_of(dict(circuit.provenance.ablation)) if circuit is not None and circuit.provenance.ablation else None
    if own not in (None, label_of(ablation)) and not mix:
        raise BadSetting(
            f"the circuit was found under {own} ablation, and a truth of {label_of(ablation)} ablation holds other edges: "
            "take the truth of its own ablation, or compare all the same with mix=True"
        )
    true = truth.circuit(ablation)
    if scores is not None:
        keys = _keys(truth.graph, scores, by)
    else:
        assert circuit is not None
        keys = circuit.mask[truth.graph.edge_mask].astype(np.float64)
    scored = scores is not None
    return TruthScores(truth.name, label_of(ablation), _of_edges(true, keys, scored), _of_nodes(true, keys, scored), scored)


def _parts(discovery: Discovery | Circuit | np.ndarray) -> tuple[np.ndarray | None, Circuit | None]:
    if isinstance(discovery, Discovery):
        return discovery.edge_scores, discovery.circuit
    return (None, discovery) if isinstance(discovery, Circuit) else (np.asarray(discovery, dtype=np.float64), None)


def _keys(graph: ComputationGraph, scores: np.ndarray, by: str) -> Float[np.ndarray, "N"]:
    """Scores of all edges, larger first to be taken."""
    if scores.shape != graph.edge_mask.shape:
        raise BadSetting(f"scores of shape {scores.shape} do not fit the graph ({graph.describe()}): {graph.edge_mask.shape}")
    of_edges = np.asarray(scores[graph.edge_mask], dtype=np.float64)
    if not np.isfinite(of_edges).all():
        raise BadSetting("some edges have scores that are not finite: they cannot be ordered")
    return np.abs(of_edges) if by == "absolute" else -of_edges


def _of_edges(true: Circuit, keys: Float[np.ndarray, "N"], scored: bool) -> Agreement:
    graph = true.graph
    names = [graph.edge_name(int(receiver), int(sender)) for receiver, sender in np.argwhere(graph.edge_mask)]
    return _agreement("edges", names, keys, true.mask[graph.edge_mask], scored)


def _of_nodes(true: Circuit, keys: Float[np.ndarray, "N"], scored: bool) -> Agreement:
    graph = true.graph
    key_RS = np.full(graph.edge_mask.shape, -np.inf)
    key_RS[graph.edge_mask] = keys
    names = [node.name for node in graph.senders if node.kind in ("head", "mlp")]
    best = [max(key_RS[:, graph.sender_index[name]].max(), key_RS[list(graph.node_receivers[name])].max()) for name in names]
    kept = set(true.nodes())
    return _agreement("nodes", names, np.array(best), np.array([name in kept for name in names], dtype=bool), scored)


def _agreement(kind: str, names: list[str], scores: np.ndarray, is_true: np.ndarray, scored: bool) -> Agreement:
    points = curve(scores, is_true)
    if not scored:
        return Agreement(kind, tuple(names), scores, is_true, scores > 0, points)
    enough = int(np.searchsorted(points.n_taken, points.n_true))
    return Agreement(kind, tuple(names), scores, is_true, scores >= points.thresholds[enough], points)
