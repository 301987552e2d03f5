"""judgement.json as other parts read it: every score of one circuit, and the sentences that sum them up."""

from collections.abc import Mapping
from dataclasses import field, make_dataclass

from circuitdisc.scoring.base import Scores
from circuitdisc.scoring.registry import SCORES

JudgementFile = make_dataclass(
    "JudgementFile",
    [
        ("verdict", list[str]),
        ("scores", Scores),
        *((kind.name, kind.result | None) for kind in SCORES.values() if kind.always),
        *((kind.name, kind.result | None, field(default=None)) for kind in SCORES.values() if not kind.always),
        ("missing", Mapping[str, str], field(default_factory=dict)),
    ],
)
"""The schema of judgement.json; `to_dict` of a judgement adds to the scores what a page shows beside them.

A score of another package is read when it is shown.
"""
