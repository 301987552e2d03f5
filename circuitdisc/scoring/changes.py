"""Circuits made from a circuit: its complement, without one of its members, inflated by a random path, random paths alone.

A member of an edge circuit is an edge; a member of a head circuit is a head.
"""

import numpy as np
from jaxtyping import Bool

from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph

Place = tuple[int, int]
"""Row (receiver) and column (sender) of an edge mask."""


def members(circuit: Circuit) -> list[str]:
    """Names of a circuit's edges, or of a head circuit's heads."""
    return circuit.heads() if circuit.granularity == "head" else circuit.edge_names()


def complement(circuit: Circuit) -> Circuit:
    """Every edge that the circuit cuts; of a head circuit, the head circuit of the other heads."""
    if circuit.granularity == "edge":
        return ~circuit
    kept = set(circuit.heads())
    return Circuit.from_heads(circuit.graph, [name for name in circuit.graph.heads if name not in kept])


def without(circuit: Circuit, member: str) -> Circuit:
    """The circuit without one of its members."""
    if circuit.granularity == "head":
        return Circuit.from_heads(circuit.graph, [name for name in circuit.heads() if name != member])
    mask = circuit.mask.copy()
    mask[circuit.graph.parse_edge(member)] = False
    return Circuit(circuit.graph, mask)


def inflate(circuit: Circuit, generator: np.random.Generator) -> tuple[Circuit, Circuit]:
    """The circuit with a random path added, and the same without one random edge of what was added.

    The path leads from an embedding to `logits` and has at least one edge that the circuit lacks. A head circuit gets a random
    head, which is then taken away again.

    Raises:
        BadSetting: the circuit is the whole graph, so that nothing can be added.
    """
    graph = circuit.graph
    if circuit.granularity == "head":
        kept = circuit.heads()
        others = [name for name in graph.heads if name not in set(kept)]
        _check_room(len(others))
        return Circuit.from_heads(graph, [*kept, others[generator.integers(len(others))]]), circuit
    added = [place for place in random_path(graph, circuit.mask, generator) if not circuit.mask[place]]
    mask = circuit.mask.copy()
    mask[tuple(np.transpose(added))] = True
    reduced = mask.copy()
    reduced[added[generator.integers(len(added))]] = False
    return Circuit(graph, mask), Circuit(graph, reduced)


def random_paths(circuit: Circuit, generator: np.random.Generator) -> Circuit:
    """Random paths from an embedding to `logits`, one after the other until there are as many edges as the circuit has.

    The last path is kept whole, so that there may be a few edges more.
    """
    mask = np.zeros_like(circuit.mask)
    while mask.sum() < circuit.n_edges:
        mask[tuple(np.transpose(random_path(circuit.graph, mask, generator)))] = True
    return Circuit(circuit.graph, mask)


def random_path(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"], generator: np.random.Generator) -> list[Place]:
    """A path from an embedding to `logits` through a random edge that the mask lacks.

    The edge is drawn evenly among those that are lacking; from its ends the path goes on by steps drawn evenly.

    Raises:
        BadSetting: the mask lacks none.
    """
    lacking = np.argwhere(graph.edge_mask & ~mask)
    _check_room(len(lacking))
    receiver, sender = (int(index) for index in lacking[generator.integers(len(lacking))])
    return [*_upwards(graph, sender, generator), (receiver, sender), *_downwards(graph, receiver, generator)]


def _upwards(graph: ComputationGraph, sender: int, generator: np.random.Generator) -> list[Place]:
    """Steps back from a sender to an embedding."""
    path: list[Place] = []
    while receivers := graph.node_receivers[graph.senders[sender].name]:
        receiver = int(generator.choice(receivers))
        sender = int(generator.integers(graph.n_upstream[receiver]))
        path.insert(0, (receiver, sender))
    return path


def _downwards(graph: ComputationGraph, receiver: int, generator: np.random.Generator) -> list[Place]:
    """Steps on from a receiver to `logits`."""
    path: list[Place] = []
    while (name := graph.receivers[receiver].node.name) != "logits":
        sender = graph.sender_index[name]
        receiver = int(generator.choice(np.flatnonzero(graph.edge_mask[:, sender])))
        path.append((receiver, sender))
    return path


def _check_room(n_others: int) -> None:
    if n_others == 0:
        raise BadSetting("the circuit is the whole graph, so that nothing can be added to it: test a smaller circuit")
