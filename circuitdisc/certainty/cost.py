"""What a measurement costs beside the search, in one unit: plain forward passes of a prompt."""

from circuitdisc.engine.patching import Cost
from circuitdisc.graph import ComputationGraph
from circuitdisc.scoring.work import plain_forwards


def prompts_run(cost: Cost, graph: ComputationGraph, n: int) -> float:
    """A cost on n examples in plain forward passes of a prompt; a backward pass counts as two."""
    return plain_forwards(cost, graph) * n
