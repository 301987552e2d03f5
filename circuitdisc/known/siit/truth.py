"""The true edges of a trained case: those that its causal model has, at the nodes that its variables live in.

What the positions feed is the same in every prompt: such an edge is structural, and neither `resample` nor `mean` shows it;
`zero` does. Where the embedding is one sender, `input->a0.h0<q>` of a head that asks by position is structural in this sense.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.graph import ComputationGraph, Node
from circuitdisc.known.siit.program import SiitProgram

KNOWN = ("zero", "mean", "resample")


@dataclass(frozen=True)
class SiitTruth:
    """True edges by name.

    Args:
        structural: all edges of the design, those that carry positions with them.
        showing: ablation -> the edges that matter under it, for the ablations that the truth was measured to hold for.
        name: of the case.
    """

    structural: frozenset[str]
    showing: Mapping[str, frozenset[str]]
    name: str = ""

    @property
    def ablations(self) -> tuple[str, ...]:
        """The ablations that the truth holds for."""
        return tuple(self.showing)

    def edges(self, ablation: str) -> frozenset[str]:
        """The true edges under an ablation.

        Raises:
            UnknownName: there is no such ablation.
            BadSetting: the truth does not hold for it.
        """
        if ablation not in KNOWN:
            raise UnknownName("ablation", ablation, KNOWN)
        if ablation not in self.showing:
            raise BadSetting(
                f"the truth of '{self.name}' holds for {' and '.join(self.showing)} ablation and says nothing of {ablation}, "
                "under which other edges may count: search under one of the former"
            )
        return self.showing[ablation]

    def hidden(self, ablation: str) -> frozenset[str]:
        """Structural edges that cannot be seen under an ablation.

        Raises:
            UnknownName, BadSetting: as `edges`.
        """
        return self.structural - self.edges(ablation)


@dataclass(frozen=True)
class TrueEdge:
    """An edge of the causal model and the one of the transformer that it lives on."""

    parent: str
    child: str
    slot: str
    name: str


def true_edges(program: SiitProgram, *, split_embeddings: bool = False) -> tuple[TrueEdge, ...]:
    """Every edge of a program, those from `positions` with them, the one into `logits` last."""
    homes = dict(program.nodes)
    homes |= (
        {"tokens": "tok_embed", "positions": "pos_embed"}
        if split_embeddings
        else dict.fromkeys(("tokens", "positions"), "input")
    )
    edges = []
    for parent, child, slot in program.causal.edges:
        node = homes.get(child, "logits")
        receiver = f"{node}<{slot}>" if Node.parse(node).kind == "head" else node
        edges.append(TrueEdge(parent, child, slot, f"{homes[parent]}->{receiver}"))
    return tuple(edges)


def truth_of(program: SiitProgram, graph: ComputationGraph, ablations: tuple[str, ...]) -> SiitTruth:
    """The truth of a program in a graph.

    Raises:
        GraphMismatch: a variable lives in a node that the graph does not have, or before one of its parents.
    """
    edges = true_edges(program, split_embeddings=graph.split_embeddings)
    structural = frozenset(Circuit.from_edges(graph, {edge.name for edge in edges}).edge_names())
    varying = frozenset(edge.name for edge in edges if edge.parent != "positions")
    showing = {ablation: structural if ablation == "zero" else varying for ablation in ablations}
    return SiitTruth(structural, showing, f"siit/{program.name}")
