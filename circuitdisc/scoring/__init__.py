"""Scoring: is the circuit as good as the model, and better than chance?"""

from circuitdisc.scoring.base import Score, Scores
from circuitdisc.scoring.score import score

__all__ = ["Score", "Scores", "score"]
