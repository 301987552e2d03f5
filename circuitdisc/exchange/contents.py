"""What a file of edge scores holds, layout by layout, in its own sign: what the package reads with.

`.pt` files are read with PyTorch's weights-only reader, which builds tensors and plain containers and runs nothing, after their
size was compared with what a graph of this model can need.
"""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.errors import BadFile, GraphMismatch
from circuitdisc.files import read_arrays, read_json
from circuitdisc.graph import ComputationGraph, Node

EDGE, NODE = "edge", "node"
HIGHER, LOWER = "higher_helps", "lower_helps"
ABOUT = "circuitdisc"  # the key of what this package's graphs say beyond EAP-IG's layout
ROOM = 2**24  # bytes that a .pt file may have beyond its tensors: names, configuration
_PT_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph")


@dataclass(frozen=True)
class Contents:
    """A file's scores as they stand in it.

    Args:
        edge_scores: NaN where the file names no score, or the graph has no edge. [R, S]
        marked: edges with `in_graph`. [R, S]
        node_scores: NaN where a sender has none. [S]
        level: `edge`, or `node` where nodes alone are scored.
        n_named: edges (or nodes) that the file names.
        is_graph: whether it is one of EAP-IG's graphs.
        sign: the sign that the file names; None if it names none.
        notes: what a reader must know, in sentences.
    """

    edge_scores: Float[np.ndarray, "R S"]
    marked: Bool[np.ndarray, "R S"]
    node_scores: Float[np.ndarray, "S"]
    level: str = EDGE
    n_named: int = 0
    is_graph: bool = False
    sign: Any = None
    notes: tuple[str, ...] = ()


def read_contents(path: Path, graph: ComputationGraph) -> Contents:
    """The scores in a file; its name's ending says which layout it has.

    Raises:
        BadFile: the file is missing or malformed.
        GraphMismatch: it belongs to another architecture.
    """
    if path.suffix == ".npz":
        return _from_arrays(path, graph)
    if path.suffix == ".pt":
        return _from_pt(path, graph)
    data = read_json(path)
    if not isinstance(data, Mapping):
        raise BadFile(f"{path}: no scores of edges: give an object of edge name -> score, or a graph that EAP-IG has written")
    if "edges" in data or "nodes" in data or "cfg" in data:
        return _from_graph(path, data, graph)
    return _from_edges(path, data, graph)


# --- arrays of a run ------------------------------------------------------------------------------------------------------


def _from_arrays(path: Path, graph: ComputationGraph) -> Contents:
    arrays = read_arrays(path)
    if "edge_scores" not in arrays:
        raise BadFile(f"{path}: it holds no array 'edge_scores', as the edge_scores.npz of a run does")
    scores = arrays["edge_scores"]
    if scores.shape != graph.edge_mask.shape:
        raise GraphMismatch(f"{path}: scores of shape {scores.shape} do not fit the graph ({graph.describe()})")
    if scores.dtype.kind not in "fiu" or not np.isfinite(scores[graph.edge_mask]).all():
        raise BadFile(f"{path}: some edges have scores that are not finite")
    scores = np.where(graph.edge_mask, scores.astype(float), np.nan)
    return Contents(scores, np.zeros_like(graph.edge_mask), _no_nodes(graph), n_named=graph.n_edges, sign=LOWER)


# --- names and scores -----------------------------------------------------------------------------------------------------


def _from_edges(path: Path, edges: Mapping[str, Any], graph: ComputationGraph) -> Contents:
    """From an object of edge name -> score, or -> an object with `score` and `in_graph`."""
    if not edges:
        raise BadFile(f"{path}: no scores of edges: give an object of edge name -> score, or a graph that EAP-IG has written")
    scores, marked = np.full(graph.edge_mask.shape, np.nan), np.zeros_like(graph.edge_mask)
    for name, value in edges.items():
        entry = value if isinstance(value, Mapping) else {"score": value}
        score = _number(entry.get("score"), path, str(name))
        if _is_of_absent_mlp(graph, str(name)):
            _check_absent(score, path, str(name))
            continue
        try:
            place = graph.parse_edge(str(name))
        except GraphMismatch as error:
            raise GraphMismatch(f"{path}: {error}") from error
        scores[place] = score
        marked[place] = _flag(entry.get("in_graph", False), path, str(name))
    return Contents(scores, marked, _no_nodes(graph), n_named=len(edges))


def _from_graph(path: Path, data: Mapping[str, Any], graph: ComputationGraph) -> Contents:
    """From EAP-IG's graph: its edges, or where they have no scores those of its nodes."""
    parts = {name: data.get(name, {}) for name in ("cfg", "nodes", "edges")}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise BadFile(f"{path}: '{name}' is no object of names, as EAP-IG's graphs have it")
    _check_cfg(path, parts["cfg"], graph)
    if not parts["edges"]:
        raise BadFile(f"{path}: no scores of edges: its 'edges' is empty")
    edges = _from_edges(path, parts["edges"], graph)
    nodes, neurons, partly = _nodes(path, parts["nodes"], graph)
    about = data.get(ABOUT)
    sign = about.get("sign") if isinstance(about, Mapping) else None
    if sign is None and parts["cfg"] and "d_model" not in parts["cfg"] and _has_objects(parts["nodes"]):
        sign = LOWER  # circuitdisc wrote graphs without the width, in its own sign, before it named one
    return _levelled(path, graph, edges, nodes, neurons, partly, sign)


def _has_objects(nodes: Mapping[str, Any]) -> bool:
    """Whether nodes are objects, as they are in this package's files; EAP-IG's without `d_model` have bare truth values."""
    return bool(nodes) and all(isinstance(node, Mapping) for node in nodes.values())


def _nodes(path: Path, nodes: Mapping[str, Any], graph: ComputationGraph) -> tuple[Float[np.ndarray, "S"], bool, bool]:
    """Scores of nodes; whether single neurons are scored; and whether only some neurons of a node are in the graph."""
    scores, neurons, partly = _no_nodes(graph), False, False
    for name, node in nodes.items():
        if graph.has_mlp or not _is_mlp(graph, name):
            try:
                graph.parse_node(name)
            except GraphMismatch as error:
                raise GraphMismatch(f"{path}: {error}") from error
        if not isinstance(node, Mapping) or name not in graph.sender_index:
            continue
        score = node.get("score")
        if score is not None and not (isinstance(score, float) and np.isnan(score)):
            scores[graph.sender_index[name]] = _number(score, path, name)
        neurons = neurons or _any_number(node.get("neurons_scores"))
        kept = _flat(node.get("neurons"))
        partly = partly or (bool(kept) and any(kept) and not all(kept))
    return scores, neurons, partly


def _flat(value: Any) -> list[Any]:
    """The numbers of a list of lists (EAP-IG writes all heads of a layer at each of them)."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [item for row in value for item in (row if isinstance(row, Sequence) and not isinstance(row, str) else [row])]


def _any_number(value: Any) -> bool:
    return any(isinstance(item, int) or (isinstance(item, float) and not np.isnan(item)) for item in _flat(value))


# --- tensors --------------------------------------------------------------------------------------------------------------


def _from_pt(path: Path, graph: ComputationGraph) -> Contents:
    """From the file that EAP-IG's `to_pt` writes: tensors by sender and receiver, with the names of both."""
    data = _tensors(path, graph)
    if not isinstance(data, Mapping) or not set(_PT_KEYS) <= set(data):
        known = ", ".join(map(str, list(data)[:8])) if isinstance(data, Mapping) else type(data).__name__
        raise BadFile(f"{path}: it is no graph of EAP-IG, which holds {', '.join(_PT_KEYS)}: it has {known}")
    _check_cfg(path, data["cfg"] if isinstance(data["cfg"], Mapping) else {}, graph)
    named = [data[key] for key in ("src_nodes", "dst_nodes")]
    if not all(isinstance(names, list | tuple | dict) for names in named):
        raise BadFile(f"{path}: 'src_nodes' and 'dst_nodes' must be lists of names")
    senders, receivers = (list(names) for names in named)
    shape = (len(senders), len(receivers))
    scores = _array(path, data, "edges_scores", shape)
    marks = _array(path, data, "edges_in_graph", shape) != 0
    rows = [_index(path, receivers, receiver.name) for receiver in graph.receivers]
    columns = [_index(path, senders, sender.name) for sender in graph.senders]
    if not graph.has_mlp:
        of_mlp = [np.array([_is_mlp(graph, str(name)) for name in names], dtype=bool) for names in (senders, receivers)]
        beyond = np.where(of_mlp[0][:, None] | of_mlp[1][None, :], np.abs(scores), 0.0)
        _check_absent(float(np.nan_to_num(beyond).max(initial=0.0)), path, "an edge of an MLP")
    edge_scores = np.where(graph.edge_mask, scores[np.ix_(columns, rows)].T, np.nan)
    if not np.isfinite(edge_scores[graph.edge_mask]).all():
        raise BadFile(f"{path}: some edges have scores that are not finite")
    edges = Contents(edge_scores, marks[np.ix_(columns, rows)].T & graph.edge_mask, _no_nodes(graph), n_named=graph.n_edges)
    nodes = _no_nodes(graph) if "nodes_scores" not in data else _array(path, data, "nodes_scores", shape[:1])[columns]
    neurons = "neurons_scores" in data and bool(np.isfinite(_array(path, data, "neurons_scores", (shape[0], None))).any())
    partly = False
    if "neurons_in_graph" in data:
        inside = _array(path, data, "neurons_in_graph", (shape[0], None)) != 0
        partly = bool((inside.any(1) & ~inside.all(1)).any())
    return _levelled(path, graph, edges, nodes, neurons, partly, None)


def _tensors(path: Path, graph: ComputationGraph) -> Any:
    import torch

    whole = ComputationGraph(graph.n_layers, graph.n_heads, parallel=graph.parallel)
    width = graph.d_model or 2**15
    most = ROOM + 16 * whole.n_senders * (whole.n_receivers + width)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise BadFile(f"{path} is no .pt file as PyTorch writes it ({error}); was it cut short?") from error
    if size > most:
        raise BadFile(
            f"{path} would take {size:,} bytes, and a graph of {graph.describe()} at most {most:,}: it is not this model's"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, OSError) as error:
        raise BadFile(
            f"{path} holds more than tensors, names and numbers, or is damaged, so that it was not read "
            f"({type(error).__name__}): write the graph again with EAP-IG's to_pt, or as .json"
        ) from None


def _array(path: Path, data: Mapping[str, Any], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    import torch

    tensor = data[name]
    fits = isinstance(tensor, torch.Tensor) and tensor.dim() == len(shape) and not tensor.is_sparse
    if not fits or any(want not in (None, got) for want, got in zip(shape, tensor.shape, strict=True)):
        given = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise BadFile(f"{path}: '{name}' is {given}, where {shape} was expected")
    return tensor.detach().to(torch.float64).numpy()


def _index(path: Path, names: Sequence[Any], name: str) -> int:
    if names.count(name) != 1:
        raise GraphMismatch(f"{path}: '{name}' stands {names.count(name)} times among its nodes: it is another model's graph")
    return names.index(name)


# --- what all graphs share ------------------------------------------------------------------------------------------------


def _levelled(
    path: Path,
    graph: ComputationGraph,
    edges: Contents,
    nodes: Float[np.ndarray, "S"],
    neurons: bool,
    partly: bool,
    sign: Any,
) -> Contents:
    """A graph's contents at the level that it scores: edges before nodes.

    Raises:
        BadFile: it scores single neurons alone, or keeps some neurons of a node alone.
    """
    values = np.nan_to_num(edges.edge_scores[graph.edge_mask])
    if not np.isfinite(nodes[~np.isnan(nodes)]).all():
        raise BadFile(f"{path}: some nodes have scores that are not finite")
    has_edges, has_nodes = bool((values != values[0]).any()), bool(np.isfinite(nodes).any())
    if partly or (neurons and not has_edges and not has_nodes):
        raise BadFile(
            f"{path} is a graph of neurons (coordinates of what a node writes): circuits here keep or drop whole edges. "
            "Give a graph that scores edges or nodes, or one whose nodes have all their neurons"
        )
    notes = ["The scores of neurons in the file were not used."] if neurons else []
    if has_edges and has_nodes:
        notes.append("The file scores edges and nodes; those of edges were taken.")
    of_nodes = not has_edges and len(np.unique(nodes[~np.isnan(nodes)])) > 1
    n_named = int(np.isfinite(nodes).sum()) if of_nodes else edges.n_named
    level = NODE if of_nodes else EDGE
    return Contents(edges.edge_scores, edges.marked, nodes, level, n_named, True, sign, tuple(notes))


def _check_cfg(path: Path, cfg: Mapping[str, Any], graph: ComputationGraph) -> None:
    """The file's sizes are those of the graph; what it does not name is not compared."""
    wanted = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "d_model": graph.d_model}
    if graph.has_mlp:
        wanted["parallel_attn_mlp"] = graph.parallel
    for name, value in wanted.items():
        if value is not None and name in cfg and cfg[name] != value:
            raise GraphMismatch(f"{path}: it belongs to a model with {name}={cfg[name]!r}; this one has {value!r}")


def _is_mlp(graph: ComputationGraph, name: str) -> bool:
    return name in [Node("mlp", layer).name for layer in range(graph.n_layers)]


def _is_of_absent_mlp(graph: ComputationGraph, edge: str) -> bool:
    """Whether an edge begins or ends at an MLP, in a model without: EAP-IG's graphs always have them."""
    sender, _, receiver = edge.partition("->")
    return not graph.has_mlp and (_is_mlp(graph, sender) or _is_mlp(graph, receiver))


def _check_absent(score: float, path: Path, name: str) -> None:
    if np.nan_to_num(score) != 0:
        raise GraphMismatch(
            f"{path}: '{name}' has the score {score:.3g}, and this model has no MLPs: it is another model's graph"
        )


def _no_nodes(graph: ComputationGraph) -> Float[np.ndarray, "S"]:
    return np.full(graph.n_senders, np.nan)


def _number(value: Any, path: Path, name: str) -> float:
    if value is None:
        return float("nan")
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
    except OverflowError:  # a whole number of hundreds of digits
        number = float("inf")
    if not np.isfinite(number):
        raise BadFile(f"{path}: the score of '{name}' is {str(value)[:40]!r}, which is not a finite number")
    return number


def _flag(value: Any, path: Path, name: str) -> bool:
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    raise BadFile(f"{path}: in_graph of '{name}' is {value!r}, which is neither true nor false")
