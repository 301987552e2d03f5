"""What a score is: never a bare number, always with its ablation, metric, split, n, interval and random controls."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.circuit import Provenance
from circuitdisc.errors import BadSetting
from circuitdisc.results import Result, Row


@dataclass(frozen=True, repr=False)
class Score(Result):
    """One score of one circuit on one split.

    Args:
        name: `faithfulness`, `ratio`, `kl`, `accuracy`, ... (see the score's own file for its definition).
        split: `train` (what the search saw) or `heldout`.
        ablation: what the cut edges carry, for example `mean (per group)`.
        metric: the metric that it is computed from.
        n: examples.
        value: the score; None where it is undefined, and then `note` says why.
        low, high: interval of `value`.
        confidence: coverage of that interval.
        controls: the same score of random circuits (`circuitdisc/controls.py`).
        note: anything a reader must know.
        method: how the interval was made, and over what.
        matched: what the controls have in common with the circuit; or why there are none.
    """

    name: str
    split: str
    ablation: str
    metric: str
    n: int
    value: float | None
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    controls: tuple[float | None, ...] = ()
    note: str = ""
    method: str = ""
    matched: str = ""

    @property
    def in_words(self) -> str:
        """`faithfulness 0.914 [0.89, 0.936] on 300 heldout examples`."""
        value = "undefined" if self.value is None else f"{self.value:.3g}"
        if self.low is not None and self.high is not None:
            value += f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.name} {value} on {self.n:,} {self.split} examples"

    def __repr__(self) -> str:
        return f"Score({self.in_words}; {self.metric}, {self.ablation})"

    def table(self) -> list[Row]:
        """One line: the value with its interval, and the median and the ends of the same score of random circuits."""
        random = sorted(value for value in self.controls if value is not None and math.isfinite(value))
        return [
            {
                "score": self.name,
                "split": self.split,
                "value": self.value,
                "low": self.low,
                "high": self.high,
                "n": self.n,
                "random": median(random) if random else None,
                "random low": random[0] if random else None,
                "random high": random[-1] if random else None,
                "random circuits": len(random),
                "metric": self.metric,
                "ablation": self.ablation,
                "note": self.note,
            }
        ]


@dataclass(frozen=True, repr=False)
class Scores(Result):
    """All scores of one circuit.

    Args:
        circuit_edges, graph_edges: size of the circuit and of its graph.
        circuit_heads, graph_heads: the same in attention heads.
        means: split -> `full` / `circuit` / `empty` -> mean of the metric, what the scores are made from.
        scores: the scores.
    """

    FORMAT = "circuitdisc.scores"
    WHERE = "not a table of scores"

    circuit_edges: int
    graph_edges: int
    circuit_heads: int
    graph_heads: int
    means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()

    def __repr__(self) -> str:
        of = f"{self.circuit_edges:,} of {self.graph_edges:,} edges"
        for score in sorted(self.scores, key=_searched):
            if score.name == "faithfulness":
                return f"Scores({of}; {score.in_words}; {len(self.scores)} scores)"
        return f"Scores({of}; {len(self.scores)} scores)"

    def get(self, name: str, split: str = "heldout") -> Score:
        """The score with this name on this split.

        Raises:
            KeyError: it was not computed.
        """
        for score in self.scores:
            if (score.name, score.split) == (name, split):
                return score
        raise KeyError(f"no score '{name}' on '{split}'")

    def table(self) -> list[Row]:
        """A line a score, those of held-out examples first."""
        return [row for score in sorted(self.scores, key=_searched) for row in score.table()]


def _searched(score: Score) -> bool:
    """Whether the search saw the examples."""
    return score.split != "heldout"


def judging_ablation(ablation: str | Ablation | Mapping[str, Any] | None, found_with: Provenance) -> Ablation:
    """The ablation that a score is taken under: the one asked for, or that under which the circuit was found.

    None is assumed where neither is known (a circuit made by hand, or by set algebra): the same circuit scores differently
    under another ablation, and a score under a tacit one looks as right as any.

    Raises:
        BadSetting: neither is known.
    """
    chosen = ablation or found_with.ablation
    if not chosen:
        raise BadSetting(
            'the circuit does not say under which ablation it was found: give one, for example ablation="resample", or keep '
            "where it came from (circuit.with_provenance)"
        )
    return get_ablation(dict(chosen) if isinstance(chosen, Mapping) else chosen)


def check_one_ablation(provenances: Iterable[Provenance], mix: bool = False) -> None:
    """Refuse circuits that were found under different ablations, under which different edges count.

    A circuit that does not say how it was found (made by hand, or by set algebra) goes with any.

    Args:
        mix: take them all the same.

    Raises:
        BadSetting: they name different ablations.
    """
    labels = list(
        dict.fromkeys(get_ablation(dict(provenance.ablation)).label for provenance in provenances if provenance.ablation)
    )
    if len(labels) > 1 and not mix:
        raise BadSetting(
            f"the circuits were found under different ablations ({' and '.join(labels)}), under which different edges count: "
            "find them under one, or take them all the same with mix=True"
        )
