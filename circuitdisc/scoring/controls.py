"""Random controls: circuits of the same size and the same mix of kinds and layers, drawn without replacement."""

from collections import defaultdict

import numpy as np

from circuitdisc.circuit import Circuit


def random_circuit(circuit: Circuit, generator: np.random.Generator) -> Circuit:
    """A random circuit like this one.

    An edge circuit: as many edges between each pair of (kind and layer of sender, kind and layer of receiver), so that only
    the choice of heads is random. A head circuit: as many heads in each layer.
    """
    return _random_heads(circuit, generator) if circuit.granularity == "head" else _random_edges(circuit, generator)


def _random_heads(circuit: Circuit, generator: np.random.Generator) -> Circuit:
    per_layer = defaultdict(int)
    for name in circuit.heads():
        per_layer[int(name[1:].split(".")[0])] += 1
    chosen = [
        f"a{layer}.h{head}"
        for layer, count in per_layer.items()
        for head in generator.choice(circuit.graph.n_heads, count, replace=False)
    ]
    return Circuit.from_heads(circuit.graph, chosen)


def _random_edges(circuit: Circuit, generator: np.random.Generator) -> Circuit:
    graph = circuit.graph
    strata: dict[tuple, list[tuple[int, int]]] = defaultdict(list)
    for receiver, sender in np.argwhere(graph.edge_mask):
        source, target = graph.senders[sender], graph.receivers[receiver]
        strata[source.kind, source.layer, target.kind, target.node.layer].append((receiver, sender))
    mask = np.zeros_like(circuit.mask)
    for edges in strata.values():
        count = sum(bool(circuit.mask[edge]) for edge in edges)
        for index in generator.choice(len(edges), count, replace=False):
            mask[edges[index]] = True
    return Circuit(graph, mask)
