"""judgement.json as other parts read it: every score of one circuit, and the sentences that sum them up."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from circuitdisc.scoring.base import Scores
from circuitdisc.scoring.completeness import Completeness
from circuitdisc.scoring.curves import Curve
from circuitdisc.scoring.hypotheses_result import HypothesisTests
from circuitdisc.scoring.minimality import Minimality


@dataclass
class JudgementFile:
    """The schema of judgement.json; `to_dict` of a judgement adds to the scores what a page shows beside them."""

    verdict: list[str]
    scores: Scores
    completeness: Completeness | None
    minimality: Minimality | None
    curve: Curve | None
    tests: HypothesisTests | None
    minimality_of_edges: Minimality | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
