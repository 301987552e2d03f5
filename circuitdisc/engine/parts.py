"""Parts of a circuit that are taken out whole: heads, nodes or edges.

A node is taken out by cutting all its outgoing and incoming edges, so that whoever would read it reads its ablated value.
"""

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool

from circuitdisc.checks import check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting, GraphMismatch
from circuitdisc.graph import ComputationGraph

PartKind = Literal["head", "node", "edge"]


def part_kind(circuit: Circuit, by: str | None) -> PartKind:
    """What a circuit is taken apart into; None: heads for a head circuit, nodes for any other.

    Raises:
        UnknownName: `by` is not known.
    """
    if by is None:
        return "head" if circuit.granularity == "head" else "node"
    check_choice("by", by, get_args(PartKind))
    return "head" if by == "head" else "node" if by == "node" else "edge"


def parts_of(circuit: Circuit, by: PartKind) -> tuple[str, ...]:
    """The circuit's heads, its heads and MLPs, or its edges, in topological order.

    A node counts if a kept edge carries its output.
    """
    if by == "edge":
        return tuple(circuit.edge_names())
    kinds = ("head",) if by == "head" else ("head", "mlp")
    kept = [circuit.graph.senders[sender] for sender in np.flatnonzero(circuit.mask.any(axis=0))]
    return tuple(node.name for node in kept if node.kind in kinds)


def check_parts(names: Iterable[str], parts: Iterable[str], what: str) -> tuple[str, ...]:
    """These names, each once.

    Raises:
        GraphMismatch: one is not among the circuit's parts.
        BadSetting: it is one word, not a list.
    """
    if isinstance(names, str):
        raise BadSetting(f"{what}={names!r} is one word: give a list of names")
    known = set(parts)
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in known:
            raise GraphMismatch(
                f"'{name}' ({what}) is not among the {len(known)} parts of the circuit: name only parts that it has"
            )
    return wanted


def without(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"], names: Iterable[str]) -> Bool[np.ndarray, "R S"]:
    """An edge mask with these nodes or edges taken out."""
    left = mask.copy()
    for name in names:
        if "->" in name:
            left[graph.parse_edge(name)] = False
        else:
            left[:, graph.sender_index[name]] = False
            left[list(graph.node_receivers[name])] = False
    return left
