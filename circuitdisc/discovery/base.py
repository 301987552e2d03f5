"""What every discovery algorithm takes and gives: one call, one result."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.checks import THRESHOLD
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.selection import By, greedy, top_k
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.patching.engine import Cost
from circuitdisc.runs import Journal


@dataclass
class Discovery:
    """What an algorithm found.

    Args:
        circuit: the circuit, with its provenance.
        edge_scores: a score for every edge, or None for algorithms that only decide. NaN where there is no edge. [R, S]
        trace: every decision, in order.
        cost: runs, node evaluations and seconds.
        node_scores: a score for every sender, or None for algorithms that score edges or only decide. [S]
        notes: what a reader must know of this search, in sentences; they travel with the circuit's provenance.
    """

    circuit: Circuit
    edge_scores: Float[np.ndarray, "R S"] | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    node_scores: Float[np.ndarray, "S"] | None = None
    notes: tuple[str, ...] = ()

    def top_k(self, n: int, by: By = "absolute") -> Circuit:
        """The circuit of the n edges with the best scores, pruned; see `selection.top_k`.

        Raises:
            BadSetting: the algorithm scored no edges.
        """
        return top_k(self.circuit.graph, self._scores(), n, by)

    def greedy(self, n: int, by: By = "absolute") -> Circuit:
        """The circuit of n edges grown from `logits`; see `selection.greedy`.

        Raises:
            BadSetting: the algorithm scored no edges.
        """
        return greedy(self.circuit.graph, self._scores(), n, by)

    def _scores(self) -> Float[np.ndarray, "R S"]:
        if self.edge_scores is None:
            name = self.circuit.provenance.algorithm or "this algorithm"
            raise BadSetting(
                f"{name} scores no edges, so that no other size can be chosen: use a scored algorithm such as eap_ig"
            )
        return self.edge_scores

    def cost_dict(self) -> dict[str, float]:
        return asdict(self.cost)


@dataclass
class SearchContext:
    """What every algorithm gets beside model, task and ablation.

    Args:
        metric: what is measured: a metric, or its name (`get_metric` takes either).
        memory: budget for activations, as `4GiB`.
        seed: of everything random.
        journal: where decisions are written; lines already in it are taken over.
        progress: show a progress bar.
    """

    metric: str | Metric = "logit_diff"
    memory: str | int = "4GiB"
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    progress: bool = False


def check_threshold(threshold: object, relative: bool, metric: Metric) -> float:
    """A threshold that can decide.

    Raises:
        BadSetting: it is no number from 0, or a fraction of a value that is 0 by construction.
    """
    if relative and metric.zero_at_full:
        raise BadSetting(
            f"relative=true with metric '{metric.name}': the full model's value is 0, and no fraction of 0 can be lost; "
            "use relative=false, or another metric"
        )
    return THRESHOLD.check("threshold", threshold)


def passes(baseline: float, value: float, threshold: float, relative: bool, two_sided: bool) -> bool:
    """True if the metric's change from `baseline` to `value` is below the threshold, so that the cut may stay.

    Args:
        threshold: the change allowed; with `relative`, as a fraction of the baseline's size.
        two_sided: a rise counts as a change too; otherwise only a fall does.
    """
    fall = baseline - value
    change = abs(fall) if two_sided else fall
    return change < (threshold * abs(baseline) if relative else threshold)
