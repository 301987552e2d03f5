"""Files that other tools write and read: edge scores, and circuits in the graph JSON of EAP-IG and of the MIB benchmark.

    {"cfg": {"n_layers": 12, ...}, "nodes": {"a0.h0": {"in_graph": true}, ...},
     "edges": {"input->a0.h0<q>": {"score": -0.12, "in_graph": true}, ...}}

Names of nodes and edges are the same there as here. A score of ours is the estimated change of the metric when an edge is cut,
so that an edge which the metric needs is negative; theirs has the sign that the author chose, and most select by size.

Source: the layout that EAP-IG's `Graph.to_json` writes (github.com/hannamw/EAP-IG), which the MIB circuit track takes.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadFile, GraphMismatch
from circuitdisc.files import read_arrays, read_json, write_json
from circuitdisc.graph import ComputationGraph


@dataclass(frozen=True)
class EdgeFile:
    """What a file says of a graph's edges.

    Args:
        scores: a score for every edge; 0 for an edge that the file does not name, NaN where the graph has none. [R, S]
        n_named: edges that the file names.
        circuit: the edges that it marks as in the circuit; None if it marks none.
    """

    scores: Float[np.ndarray, "R S"]
    n_named: int
    circuit: Circuit | None = None


def read_edge_scores(path: str | Path, graph: ComputationGraph) -> EdgeFile:
    """Scores of edges from a file.

    Args:
        path: `.npz` as a run leaves it (`edge_scores.npz`), or `.json`: EAP-IG's graph, or an object of edge name -> score.
        graph: the graph of the model that they belong to.

    Raises:
        BadFile: the file is missing, malformed, or holds a score that is no number.
        GraphMismatch: an edge is not one of the graph, or the shape is another one's.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _from_arrays(path, graph)
    data = read_json(path)
    edges = data.get("edges", data) if isinstance(data, Mapping) else None
    if not isinstance(edges, Mapping) or not edges:
        raise BadFile(f"{path}: no scores of edges: give an object of edge name -> score, or a graph that EAP-IG has written")
    scores = np.where(graph.edge_mask, 0.0, np.nan)
    mask = np.zeros_like(graph.edge_mask)
    for name, value in edges.items():
        entry = value if isinstance(value, Mapping) else {"score": value}
        try:
            place = graph.parse_edge(str(name))
        except GraphMismatch as error:
            raise GraphMismatch(f"{path}: {error}") from error
        scores[place] = _number(entry.get("score"), path, str(name))
        mask[place] = bool(entry.get("in_graph", False))
    return EdgeFile(scores, len(edges), Circuit(graph, mask) if mask.any() else None)


def _from_arrays(path: Path, graph: ComputationGraph) -> EdgeFile:
    arrays = read_arrays(path)
    if "edge_scores" not in arrays:
        raise BadFile(f"{path}: it holds no array 'edge_scores', as the edge_scores.npz of a run does")
    scores = arrays["edge_scores"]
    if scores.shape != graph.edge_mask.shape:
        raise GraphMismatch(f"{path}: scores of shape {scores.shape} do not fit the graph ({graph.describe()})")
    if not np.isfinite(scores[graph.edge_mask]).all():
        raise BadFile(f"{path}: some edges have scores that are not finite")
    return EdgeFile(np.where(graph.edge_mask, scores, np.nan), graph.n_edges)


def _number(value: Any, path: Path, name: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise BadFile(f"{path}: the score of '{name}' is {value!r}, which is not a finite number")
    return float(value)


def write_graph_json(path: str | Path, circuit: Circuit, scores: Float[np.ndarray, "R S"] | None = None) -> None:
    """Write a circuit, and scores of all edges, as EAP-IG and the MIB benchmark read them.

    Args:
        scores: None writes 1 for the circuit's edges and 0 for the others.

    Raises:
        GraphMismatch: the graph keeps token and position embedding apart, which that layout does not know.
        BadRun: the file cannot be written.
    """
    graph = circuit.graph
    if graph.split_embeddings:
        raise GraphMismatch("EAP-IG's layout has one node `input`; this graph keeps token and position embedding apart")
    kept = set(circuit.nodes())
    known = circuit.mask.astype(float) if scores is None else scores
    edges = {
        graph.edge_name(receiver, sender): {
            "score": float(known[receiver, sender]),
            "in_graph": bool(circuit.mask[receiver, sender]),
        }
        for receiver, sender in np.argwhere(graph.edge_mask).tolist()
    }
    cfg = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel}
    nodes = {name: {"in_graph": name in kept} for name in (*(node.name for node in graph.senders), "logits")}
    write_json(Path(path), {"cfg": cfg, "nodes": nodes, "edges": edges})
