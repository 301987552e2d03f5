"""The figures of the MIB benchmark's circuit track by its own conventions, beside those of `curves.py` and `roc.py`.

cpr_mib, cmd_mib   ten shares of the edges from .001 to 1, sizes rounded down (of a small graph the first may be 0), the edges
                   with the best scores, without those that lead nowhere or that no input reaches; areas of f and |1 - f| by
                   trapezoids over the share. CPR ranks edges by signed scores, CMD by absolute ones.
auroc_mib          at the same shares, sizes rounded up, circuits grown greedily from `logits` by absolute scores; the area
                   under (false positive rate, true positive rate) at these ten points, over the last false positive rate. It
                   does not begin at (0, 0): what lies before the first point is not counted.

Ours differ: `curve` rounds sizes up, and has one ranking for both areas; `auroc` is exact over all thresholds. Scores that have
no sign (learned masks, information flow) are ranked by size for both areas.

Source: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark" (https://arxiv.org/abs/2504.13151), as its
evaluation code (`evaluate_area_under_curve`, `evaluate_area_under_roc`) and its tables of results have them.

Shape letters: R receivers, S senders.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.selection import By, greedy, top_k
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.model import Model
from circuitdisc.scoring.curves import MIB_SHARES, Curve, area, curve
from circuitdisc.tasks.base import Task


@dataclass(frozen=True)
class MibCurves:
    """Faithfulness over MIB's sizes by both rankings, without random controls.

    Args:
        signed: its `cpr` is MIB's CPR.
        absolute: its `cmd` is MIB's CMD.
    """

    signed: Curve
    absolute: Curve


def mib_curves(model: Model, task: Task, found: Discovery, *, signed: bool = True, **options: Any) -> MibCurves:
    """Faithfulness of circuits of MIB's sizes.

    Args:
        found: a discovery with a score for every edge.
        signed: the scores have a sign; if not, both curves rank by size.
        **options: as of `curve`: `ablation`, `metric`, `split`, `confidence`, `seed`, `memory`.

    Raises:
        BadSetting: the search scored no edges, or as `curve`.
    """
    absolute = mib_curve(model, task, found, "absolute", **options)
    return MibCurves(mib_curve(model, task, found, "signed", **options) if signed else absolute, absolute)


def mib_curve(model: Model, task: Task, found: Discovery, by: By, **options: Any) -> Curve:
    """One of the two: by signed scores, whose `cpr` is MIB's, or by absolute ones, whose `cmd` is; else as `mib_curves`."""
    scores, graph = found._scores(by), found.circuit.graph
    sizes = iter(mib_sizes(graph))  # `curve` asks for one circuit a share, in order

    def circuit(n: int) -> Circuit:
        chosen = top_k(graph, scores, next(sizes), by).prune(unreached=True)
        return chosen.with_provenance(found.circuit.provenance)

    return curve(model, task, circuit, shares=MIB_SHARES, n_random=0, **options)


def mib_sizes(graph: ComputationGraph) -> list[int]:
    """MIB's shares of the graph's edges, rounded down."""
    return [int(share * graph.n_edges) for share in MIB_SHARES]


def auroc_mib(scores: Float[np.ndarray, "R S"], true: Circuit) -> float | None:
    """Area under MIB's ten points of the ROC curve; None if all edges are true, or none.

    Args:
        scores: of every edge, of any sign; NaN where the graph has none.
        true: the true circuit.
    """
    graph, edges = true.graph, true.graph.edge_mask
    is_true = true.mask[edges]
    n_true, n_false = int(is_true.sum()), int((~is_true).sum())
    if not n_true or not n_false:
        return None
    rates = []
    for share in MIB_SHARES:
        taken = greedy(graph, scores, math.ceil(share * graph.n_edges), "absolute").prune(unreached=True).mask[edges]
        rates.append(((taken & ~is_true).sum() / n_false, (taken & is_true).sum() / n_true))
    fpr, tpr = np.array(rates).T
    return float(area(fpr / fpr[-1], tpr))
