"""Ablation: the value that a sender carries on the edges that are cut. One file for each kind, listed in `registry.py`."""

from circuitdisc.ablation.base import Prompts, Scope, Target
from circuitdisc.ablation.means import Means
from circuitdisc.ablation.settings import Ablation, every_ablation, get_ablation

__all__ = ["Ablation", "Means", "Prompts", "Scope", "Target", "every_ablation", "get_ablation"]
