"""What is spent on judging, in forward passes of a prompt."""

from circuitdisc.engine.patching import Patching
from circuitdisc.scoring.work import plain_forwards
from circuitdisc.tasks.base import Task


class Spending:
    """What a `Patching` spends from now on; what its ablation has learnt from the train split is counted, too.

    Args:
        patching: fresh.
        task: whose train split the ablation refers to.
    """

    def __init__(self, patching: Patching, task: Task) -> None:
        self._patching = patching
        self._fitted = plain_forwards(patching.cost, patching.graph)
        self._n_train = len(task.train)

    def on(self, n: int) -> float:
        """Forward passes of a prompt, if all that was run since was run on n examples."""
        since = plain_forwards(self._patching.cost, self._patching.graph) - self._fitted
        return self._fitted * self._n_train + since * n
