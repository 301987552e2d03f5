"""Scores of edges from a file: an algorithm that lives elsewhere, judged like every other.

1. Read a score for every edge: a run's `edge_scores.npz`, an object of edge name -> score, or EAP-IG's graph JSON.
2. Keep the edges with the best scores.

Source: the layout of EAP-IG's graphs, see `exchange.py`.
"""

import time

from circuitdisc.ablation import Ablation
from circuitdisc.checks import bounded
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import SIZE, By, Grow, Selection
from circuitdisc.errors import BadSetting
from circuitdisc.exchange import read_edge_scores
from circuitdisc.models.model import Model
from circuitdisc.patching.engine import Cost
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task


@bounded(**SIZE)
def from_file(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    path: str | None = None,
    edges: int | None = None,
    fraction: float = 0.05,
    grow: Grow = "top_k",
    by: By = "absolute",
) -> Discovery:
    """Choose a circuit by the scores in a file.

    Args:
        path: the file, `.npz` or `.json`; needed.
        edges: size of the circuit in edges; None takes `fraction`. Edges that lead nowhere are left out afterwards.
        fraction: size of the circuit as a share of the graph's edges.
        grow: `top_k`: the best edges wherever they are; `greedy`: grown from `logits`.
        by: `absolute`: large scores of either sign; `signed`: the lowest scores (ours: what the metric misses most).

    Returns:
        A circuit and the file's scores; edges that the file does not name have 0. The trace is empty.

    Raises:
        BadSetting: no file is named, or a setting is out of its bounds.
        BadFile: the file is missing or malformed.
        GraphMismatch: its edges are not those of the model.
    """
    started = time.perf_counter()
    selection = Selection(edges, fraction, grow, by)
    if not isinstance(path, str):
        raise BadSetting(f"algorithm 'from_file' reads scores from a file, and path={path!r}: give algorithm.path=scores.json")
    with progress_bar(1, f"from_file on {model.name}", "file", context.progress) as bar:
        scores = read_edge_scores(path, model.graph).scores
        bar.update(1)
    circuit = selection.circuit(model.graph, scores)
    return Discovery(circuit, scores, cost=Cost(seconds=time.perf_counter() - started))
