"""Scores of edges from a file: an algorithm that lives elsewhere, judged like every other.

1. Read a score for every edge: a run's `edge_scores.npz`, an object of edge name -> score, or EAP-IG's graph (.json or .pt).
2. Keep the edges with the best scores; of a file that scores nodes, the edges among the best nodes; of a file that marks a
   circuit and ranks nothing, that circuit.

Source: the layout of EAP-IG's graphs, see `exchange`.
"""

import numpy as np
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import By, Ranking, Selection
from circuitdisc.errors import BadSetting
from circuitdisc.exchange import EdgeFile, Sign, read_edge_scores
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task


@takes(Ranking)
def from_file(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    path: str | None = None,
    sign: Sign = "auto",
    **options: Unpack[Ranking],
) -> Discovery:
    """Choose a circuit by the scores in a file.

    Args:
        path: the file, `.npz`, `.json` or `.pt`; needed.
        sign: `higher_helps` (EAP-IG, MIB), `lower_helps` (ours), or `auto`: what the file says, else its layout's usual one.

    Returns:
        A circuit and the file's scores in our sign (lower helps); edges that the file does not name have 0. No edge scores if
        the file ranks nothing and only marks a circuit, which is then the result whatever `fraction` is. The trace is empty.

    Raises:
        BadSetting: no file is named, a setting is out of its bounds, or `edges` is not the size of the one circuit of the file.
        BadFile: the file is missing or malformed.
        GraphMismatch: its edges are not those of the model.
    """
    selection = Selection(**options)
    if not isinstance(path, str):
        raise BadSetting(f"algorithm 'from_file' reads scores from a file, and path={path!r}: give algorithm.path=scores.json")
    with progress_bar(1, f"from_file on {model.name}", "file", context.progress) as bar:
        file = read_edge_scores(path, model.graph, sign, selection.by)
        bar.update(1)
    if file.node_scores is not None and selection.grow == "top_k":
        circuit = _of_nodes(model.graph, file.node_scores, selection.n_edges(model.graph), selection.by)
    else:
        circuit = selection.circuit(model.graph, file.scores) if file.ranked else _marked(path, file, selection.edges)
    return Discovery(circuit, file.scores if file.ranked else None, notes=file.notes)


def _marked(path: str, file: EdgeFile, edges: int | None) -> Circuit:
    """The circuit of a file that ranks no edges."""
    assert file.circuit is not None, "a file that ranks nothing and marks nothing is refused"
    if edges not in (None, file.circuit.n_edges):
        raise BadSetting(
            f"{path} ranks no edges: it marks one circuit, of {file.circuit.n_edges:,} edges; leave edges={edges} out"
        )
    return file.circuit


def _of_nodes(graph: ComputationGraph, scores: Float[np.ndarray, "S"], n: int, by: By) -> Circuit:
    """The edges among the best nodes and from them into `logits`, for as many nodes as have at most n such edges."""
    order = np.argsort(-np.abs(scores) if by == "absolute" else scores, kind="stable")
    receiver_rank = np.array([np.inf] * graph.n_receivers)
    rank = np.empty(graph.n_senders)
    rank[order] = np.arange(graph.n_senders)
    for index, receiver in enumerate(graph.receivers):
        receiver_rank[index] = rank[graph.sender_index[receiver.node.name]] if receiver.qkv or receiver.kind == "mlp" else -1

    def among(n_nodes: int) -> Circuit:
        mask = graph.edge_mask & (receiver_rank < n_nodes)[:, None] & (rank < n_nodes)[None, :]
        return Circuit(graph, mask)

    low, high = 0, graph.n_senders  # more nodes never have fewer edges
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if among(middle).n_edges <= n else (low, middle - 1)
    circuit = among(low)
    if circuit.n_edges == 0:
        least = next((size for at in range(graph.n_senders + 1) if (size := among(at).n_edges)), 0)
        raise BadSetting(
            f"the file ranks nodes, and the smallest circuit of its best ones has {least:,} edges, above the {n:,} asked for: "
            f"give edges={least} or more"
        )
    return circuit
