"""A ground truth: the edges that a model is known to use, under each ablation for which that is known.

A truth belongs to one ablation. In a compiled model an edge that carries a constant matters under zero ablation and not under
resample ablation, so that the true edges differ; a truth that is asked for another ablation refuses.

Source: Conmy et al. 2023, whose appendix gives the true edges of two compiled models under each ablation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitdisc.ablation import Ablation, every_ablation, get_ablation
from circuitdisc.ablation.registry import ABLATIONS
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadFile, BadSetting, GraphMismatch, UnknownName
from circuitdisc.files import Filed
from circuitdisc.graph import ComputationGraph
from circuitdisc.schemas import check_format, validate

FORMAT = "circuitdisc.truth"
_LABELS = {ablation.label for ablation in every_ablation()}


@dataclass(frozen=True)
class Truth(Filed):
    """The edges that a model is known to use, under each ablation for which that is known.

    Args:
        graph: of the model.
        edges: ablation -> names of its true edges. An ablation is written as its kind (`mean` is then per group and position)
            or as its label. Afterwards they stand in the graph's order.
        name: of the model or program, for messages and tables.

    Raises:
        UnknownName: an ablation is not known.
        GraphMismatch: a name is no edge of the graph.
    """

    graph: ComputationGraph
    edges: Mapping[str, Sequence[str]]
    name: str = ""

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, ...]] = {}
        for ablation, names in self.edges.items():
            known[label_of(ablation)] = tuple(Circuit.from_edges(self.graph, names).edge_names())
        object.__setattr__(self, "edges", known)

    def circuit(self, ablation: str | Ablation | Mapping[str, Any]) -> Circuit:
        """The true edges under an ablation.

        Raises:
            BadSetting: nothing is known for it.
        """
        label = label_of(ablation)
        if label not in self.edges:
            raise BadSetting(
                f"the truth of '{self.name or 'this model'}' belongs to {' and '.join(self.edges) or 'no'} ablation and says "
                f"nothing of {label} ablation, under which other edges may count: find the circuit under the former, or give "
                "a truth for the latter"
            )
        return Circuit.from_edges(self.graph, self.edges[label])

    def to_dict(self) -> dict[str, Any]:
        edges = {ablation: list(names) for ablation, names in self.edges.items()}
        return {"format": FORMAT, "version": 1, "name": self.name, "graph": self.graph.to_dict(), "edges": edges}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Truth":
        """The inverse of `to_dict`.

        Raises:
            BadFile: a key is missing or of the wrong kind.
        """
        check_format(data, FORMAT, "not a truth")
        try:
            return validate(cls, data, "not a truth")
        except (GraphMismatch, UnknownName) as error:
            raise BadFile(f"not a truth: {error}") from error


def label_of(ablation: str | Ablation | Mapping[str, Any]) -> str:
    """The label of an ablation, its kind, its settings, or its label itself."""
    if isinstance(ablation, str) and ablation in _LABELS - set(ABLATIONS):
        return ablation
    return get_ablation(dict(ablation) if isinstance(ablation, Mapping) else ablation).label
