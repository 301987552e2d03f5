"""An attribution's scores of all edges, taken before an exact search: what it tries, in which order, by which threshold.

The scores decide nothing about an edge that the search tries; what it does not try, the search says.
"""

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int
from typing_extensions import TypedDict

from circuitdisc.ablation import Ablation
from circuitdisc.checks import EDGES
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.selection import top_k
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadRun, BadSetting, CircuitdiscWarning
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.options import Option
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task


class Proposing(TypedDict, total=False):
    """Which edges are tried."""

    prune_first: Annotated[
        int | None,
        Option(
            None,
            "attribution proposes so many edges, and only these are tried; all others are cut at the start. None tries all.",
            EDGES,
        ),
    ]


RANKINGS = ("eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "ceap", "eap_gp", "atp", "exact", "random")


def edge_ranking(
    name: str, model: Model, task: Task, ablation: Ablation, context: SearchContext, setting: str = "ranking"
) -> tuple[Float[np.ndarray, "R S"], Cost]:
    """Scores of all edges by a scored algorithm at its default settings, and what they cost.

    Args:
        setting: that names it, for messages.

    Raises:
        BadSetting: the algorithm cannot be had for this metric, model or ablation.
    """
    from circuitdisc.discovery.registry import get_algorithm

    try:
        with warnings.catch_warnings():  # how good the scores are shows in what the search finds
            warnings.simplefilter("ignore", CircuitdiscWarning)
            discovery = get_algorithm(name).function(model, task, ablation, replace(context, journal=Journal()))
    except BadSetting as error:
        raise BadSetting(f"no ranking of the edges: {error}. Or set {setting}=exact (slow), or {setting}=random") from error
    assert discovery.edge_scores is not None, "every ranking scores edges"
    return discovery.edge_scores, discovery.cost


def ascending(graph: ComputationGraph, scores: Float[np.ndarray, "R S"]) -> Int[np.ndarray, "n"]:
    """Flat indices of all edges, the one with the smallest score, whatever its sign, first."""
    return np.flatnonzero(graph.edge_mask)[np.argsort(np.abs(scores[graph.edge_mask]), kind="stable")]


def check_ranking(name: str, order: Int[np.ndarray, "n"], recorded: Sequence[dict], journal: Journal) -> None:
    """A resumed run must go on with the ranking that it began with: the journal's first line holds its checksum.

    Args:
        recorded: what the journal held at the start.
    """
    checksum = zlib.crc32(order.astype(np.int64).tobytes())
    if not recorded:
        journal.write(ranking=name, checksum=checksum)
    elif recorded[0].get("checksum") != checksum:
        raise BadRun(
            f"the edges' ranking by {name} has come out in another order than when this run began (another machine, number "
            "of threads or version?), so that it cannot be resumed: start it again in a new folder"
        )


def proposed(graph: ComputationGraph, scores: Float[np.ndarray, "R S"], n: int) -> Bool[np.ndarray, "R S"]:
    """The n edges with the largest scores, without those that then lead nowhere."""
    return top_k(graph, scores, n).mask


def not_tried(circuit: Circuit, name: str) -> tuple[str, ...]:
    """What a reader must know where attribution has proposed the edges that a search then tried; nothing if it proposed all."""
    n, n_all = circuit.n_edges, circuit.graph.n_edges
    if n == n_all:
        return ()
    return (
        f"{name} proposed {n:,} of the {n_all:,} edges, and the search decided these exactly: the other {n_all - n:,} were cut "
        "at the start, on the estimate alone, and never tried.",
    )
