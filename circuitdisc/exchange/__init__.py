"""Files that other tools write and read: edge scores, and circuits in the graph files of EAP-IG and of the MIB benchmark.

    {"cfg": {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": false, "d_model": 768},
     "nodes": {"a0.h0": {"in_graph": true}, ...},
     "edges": {"input->a0.h0<q>": {"score": -0.12, "in_graph": true}, ...}}

Names of nodes and edges are the same there as here. Signs are not: a score here is the estimated change of the metric when an
edge is cut, so that an edge which the metric needs is negative (`lower_helps`); EAP-IG and MIB take the highest scores first
(`higher_helps`). Files are written in their sign, which is named in the file, and read in the sign that they are in.

Source: what EAP-IG's `Graph` writes and reads (github.com/hannamw/EAP-IG), which the MIB circuit track takes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.checks import Whole, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadFile, BadSetting, GraphMismatch
from circuitdisc.exchange.contents import ABOUT, HIGHER, LOWER, NODE, Contents, read_contents
from circuitdisc.files import write_json
from circuitdisc.graph import ComputationGraph

Sign = Literal["auto", "higher_helps", "lower_helps"]


@dataclass(frozen=True)
class EdgeFile:
    """What a file says of a graph's edges.

    Args:
        scores: a score for every edge, in the sign of this package (lower helps) whatever that of the file; 0 for an edge that
            the file does not name, NaN where the graph has none. [R, S]
        n_named: edges that the file names.
        circuit: the edges that it marks as in the circuit; None if it marks none.
        sign: the sign of the scores in the file.
        ranked: False if the scores tell no edge from another, or only the marked circuit from the rest.
        node_scores: of a file that scores nodes, in the sign of this package; -inf for a node that it always keeps. [S]
        notes: what a reader must know of the file, in sentences.
    """

    scores: Float[np.ndarray, "R S"]
    n_named: int
    circuit: Circuit | None = None
    sign: str = LOWER
    ranked: bool = True
    node_scores: Float[np.ndarray, "S"] | None = None
    notes: tuple[str, ...] = ()


def read_edge_scores(
    path: str | Path, graph: ComputationGraph, sign: Sign = "auto", by: Literal["absolute", "signed"] = "absolute"
) -> EdgeFile:
    """Scores of edges from a file.

    A file that scores nodes gives each edge the score of the weaker of its two ends, so that the edges above a threshold are
    those among the nodes above it.

    Args:
        path: `.npz` as a run leaves it (`edge_scores.npz`), `.json` (EAP-IG's graph, or an object of edge name -> score), or
            `.pt` as EAP-IG writes it.
        graph: the graph of the model that they belong to.
        sign: `higher_helps` (EAP-IG and MIB), `lower_helps` (this package), or `auto`: what the file says; where it says
            nothing, higher helps in graph files, and lower helps in others.
        by: how the nodes of a file that scores nodes are ranked: by size, or with their sign.

    Raises:
        BadFile: the file is missing, malformed, too large, holds a score that is no number, or no score and no circuit at all.
        GraphMismatch: an edge is not one of the graph, or the file is another model's.
        UnknownName: `sign` or `by` is not known.
    """
    check_choice("sign", sign, get_args(Sign))
    check_choice("by", by, ("absolute", "signed"))
    path = Path(path)
    contents = read_contents(path, graph)
    in_file, notes = _sign(path, contents, sign)
    flip = -1.0 if in_file == HIGHER else 1.0
    marked = contents.marked & graph.edge_mask
    circuit = Circuit(graph, marked) if marked.any() else None
    scores, nodes = np.where(graph.edge_mask, 0.0, np.nan), None
    if contents.level == NODE:
        nodes = _unscored_first(flip * contents.node_scores)
        scores, ranked = _weaker_end(graph, nodes, by), True
        notes.append(_node_note(contents))
    else:
        scores[graph.edge_mask] = flip * np.nan_to_num(contents.edge_scores[graph.edge_mask])
        ranked = _ranks(scores[graph.edge_mask], marked[graph.edge_mask])
    if not ranked and circuit is None:
        raise BadFile(
            f"{path}: all {contents.n_named:,} scores are {_first(contents.edge_scores, graph):.3g} and no edge is marked "
            "with in_graph, so that the file tells no edge from another"
        )
    if not ranked:
        scores = np.where(graph.edge_mask, -marked.astype(float), np.nan)
        notes = ["The file ranks no edges: it marks a circuit, which is taken as it is."]
    elif contents.level != NODE and contents.n_named < graph.n_edges:
        notes.append(
            f"The file names {contents.n_named:,} of the graph's {graph.n_edges:,} edges; the others count as 0 and tie."
        )
    return EdgeFile(scores + 0.0, contents.n_named, circuit, in_file, ranked, nodes, (*notes, *contents.notes))


def _sign(path: Path, contents: Contents, asked: str) -> tuple[str, list[str]]:
    """The sign of a file's scores, and what must be said of it."""
    named = contents.sign
    if named is not None and named not in (HIGHER, LOWER):
        raise BadFile(f"{path}: its sign is {named!r}, which is neither {HIGHER} nor {LOWER}")
    if asked != "auto":
        differ = named is not None and named != asked
        return asked, [f"The file says {named}; it was read as {asked}, as asked for."] if differ else []
    if named is not None:
        return named, []
    if contents.is_graph:
        words = "the higher a score, the more its edge helps, as EAP-IG and MIB write them"
        return HIGHER, [f"The file does not say which sign helps: it was read as {HIGHER} ({words}); sign= says otherwise."]
    words = "a score is the change of the metric when its edge is cut"
    return LOWER, [f"The file does not say which sign helps: it was read as {LOWER} ({words}); sign= says otherwise."]


def _ranks(scores: Float[np.ndarray, "E"], marked: Bool[np.ndarray, "E"]) -> bool:
    """False if the scores are all equal, or say no more than which edges are marked."""
    if (scores == scores[0]).all():
        return False
    if not marked.any() or marked.all():
        return True
    inside, outside = scores[marked], scores[~marked]
    return not ((inside == inside[0]).all() and (outside == outside[0]).all())


def _first(scores: Float[np.ndarray, "R S"], graph: ComputationGraph) -> float:
    return float(np.nan_to_num(scores[graph.edge_mask])[0])


def _unscored_first(nodes: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    """Nodes without a score come before all others: EAP-IG always keeps them."""
    return np.where(np.isnan(nodes), -np.inf, nodes)


def _weaker_end(graph: ComputationGraph, nodes: Float[np.ndarray, "S"], by: str) -> Float[np.ndarray, "R S"]:
    """For every edge the score of the end that is chosen later; `logits` is always chosen."""
    at = {node.name: index for index, node in enumerate(graph.senders)}
    receivers = np.array(
        [nodes[at[receiver.node.name]] if receiver.node.name in at else -np.inf for receiver in graph.receivers]
    )
    ends = np.stack(np.broadcast_arrays(receivers[:, None], nodes[None, :]))
    strength = np.abs(ends) if by == "absolute" else -ends
    weaker = np.take_along_axis(ends, strength.argmin(0)[None], 0)[0]
    known = np.abs(nodes[np.isfinite(nodes)])
    always = -2 * max(1e-30, float(known.max(initial=0.0)))  # an edge of which neither end has a score
    return np.where(graph.edge_mask, np.where(np.isinf(weaker), always, weaker), np.nan)


def _node_note(contents: Contents) -> str:
    kept = int(np.isnan(contents.node_scores).sum())
    always = f"; {kept:,} without a score are always kept" if kept else ""
    return (
        f"The file scores nodes, not edges: each edge has the score of the weaker of its two ends{always}. Circuits of a "
        "number of edges that divides a node's edges are none of whole nodes."
    )


@bounded(d_model=Whole(1, 2**20))
def write_graph_json(
    path: str | Path,
    circuit: Circuit,
    scores: Float[np.ndarray, "R S"] | None = None,
    *,
    d_model: int | None = None,
    prune: bool = False,
) -> None:
    """Write a circuit, and scores of all edges, as EAP-IG and the MIB benchmark read them: the higher, the more an edge helps.

    Args:
        scores: in the sign of this package, the change of the metric when an edge is cut; they are written with the other
            sign. None writes 1 for the circuit's edges and 0 for the others.
        d_model: width of the residual stream, which their loader asks for; None takes the graph's.
        prune: leave out what EAP-IG's `prune()` leaves out before it evaluates a circuit: edges into nodes with no path to
            `logits`, and edges out of nodes that no path from the input reaches.

    Raises:
        GraphMismatch: the graph keeps token and position embedding apart, which that layout does not know.
        BadSetting: the width is not known, or a score is not finite.
        BadRun: the file cannot be written.
    """
    graph = circuit.graph
    if graph.split_embeddings:
        raise GraphMismatch("EAP-IG's layout has one node `input`; this graph keeps token and position embedding apart")
    width = graph.d_model if d_model is None else d_model
    if width is None:
        raise BadSetting(
            "EAP-IG's layout holds the width of the residual stream, which this circuit does not know: give d_model="
        )
    pruned = circuit.prune(unreached=True)
    left = pruned if prune else circuit
    known = circuit.mask.astype(float) if scores is None else 0.0 - np.asarray(scores, dtype=float)
    if known.shape != graph.edge_mask.shape or not np.isfinite(known[graph.edge_mask]).all():
        raise BadSetting(f"scores to write must be finite, one for each edge of the graph: {graph.edge_mask.shape}")
    touched = {*left.nodes(), "logits"}
    whole = ComputationGraph(graph.n_layers, graph.n_heads, has_mlp=True, parallel=graph.parallel)  # theirs always has MLPs
    nodes = {name: {"in_graph": name in touched} for name in (*whole.sender_index, "logits")}
    edges: dict[str, dict[str, Any]] = {}
    for at in np.argwhere(whole.edge_mask).tolist():
        name = whole.edge_name(*at)
        ours = _place(graph, whole, *at)
        edges[name] = {
            "score": 0.0 if ours is None else float(known[ours]),
            "in_graph": ours is not None and bool(left.mask[ours]),
        }
    cfg = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel, "d_model": int(width)}
    about = {
        "sign": HIGHER,
        "scores": "membership: 1 in the circuit, 0 outside" if scores is None else "minus the change of the metric when cut",
        "edges": left.n_edges,
        "edges_after_prune": pruned.n_edges,
        "circuit": circuit.provenance.to_dict(),
    }
    write_json(Path(path), {"cfg": cfg, "nodes": nodes, "edges": edges, ABOUT: about})


def _place(graph: ComputationGraph, whole: ComputationGraph, receiver: int, sender: int) -> tuple[int, int] | None:
    """Where an edge of their graph stands in ours; None for an MLP's in a model without."""
    if graph.has_mlp:
        return receiver, sender
    row = graph.receiver_index.get(whole.receivers[receiver].name)
    column = graph.sender_index.get(whole.senders[sender].name)
    return None if row is None or column is None else (row, column)
