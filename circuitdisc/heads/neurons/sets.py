"""Sets of MLP neurons beside circuits: what one says in terms of the other, and what is lost on the way.

A neuron is not a sender of the graph: an edge circuit keeps a whole MLP or none of it. So a neuron set becomes the circuit of
the MLPs that its neurons belong to, which keeps more; and a circuit becomes all neurons of its MLPs.
"""

from collections.abc import Iterable
from typing import NamedTuple

from circuitdisc.circuit import Circuit
from circuitdisc.errors import GraphMismatch
from circuitdisc.graph import ComputationGraph


class Neuron(NamedTuple):
    """One unit of an MLP's hidden layer, both counted from 0."""

    layer: int
    number: int

    @property
    def node(self) -> str:
        """The MLP that it belongs to."""
        return f"m{self.layer}"


def mlps_of_neurons(graph: ComputationGraph, neurons: Iterable[tuple[int, int]]) -> list[str]:
    """Names of the MLPs that these neurons (layer, number) belong to, first layer first.

    Raises:
        GraphMismatch: a layer has no MLP.
    """
    layers = sorted({Neuron(*neuron).layer for neuron in neurons})
    for layer in layers:
        if f"m{layer}" not in graph.sender_index:
            raise GraphMismatch(f"there is no MLP in layer {layer} of this graph ({graph.describe()}), so it has no neurons")
    return [f"m{layer}" for layer in layers]


def circuit_of_neurons(graph: ComputationGraph, neurons: Iterable[tuple[int, int]], heads: Iterable[str] = ()) -> Circuit:
    """The circuit of all edges among the MLPs that these neurons belong to, these heads, the embeddings and `logits`.

    It keeps the whole of each MLP, so it is larger than the neuron set.

    Args:
        neurons: (layer, number).
        heads: heads to keep beside them.
    """
    return Circuit.from_nodes(graph, [*heads, *mlps_of_neurons(graph, neurons)])


def neurons_of_circuit(circuit: Circuit, d_mlp: int) -> list[Neuron]:
    """All neurons of the MLPs that carry something to `logits` in a circuit.

    Args:
        d_mlp: neurons in each MLP.
    """
    live = circuit.live_senders()
    layers = [node.layer for node, is_live in zip(circuit.graph.senders, live, strict=True) if is_live and node.kind == "mlp"]
    return [Neuron(layer, number) for layer in layers for number in range(d_mlp)]
