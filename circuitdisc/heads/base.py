"""What the tools for heads and neurons share: which examples, names of heads, intervals of many means at once.

Shape letters: L layers, H heads, B examples, X quantities.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.errors import BadSetting, BadTask, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.stats import Partition, interval
from circuitdisc.tasks.base import Example, Task

Row = dict[str, Any]
"""One line of a result's table: column -> text, number or None."""

SPLITS = ("train", "heldout")
_NEURON = re.compile(r"m(\d+)\.n(\d+)")


class OverExamples:
    """What every result has that keeps a value for each example: how many there are, and the mean over them."""

    values: np.ndarray  # [*X, B]

    @property
    def n(self) -> int:
        """Examples."""
        return self.values.shape[-1]

    @property
    def mean(self) -> Float[np.ndarray, "*X"]:
        """Mean over the examples."""
        return self.values.mean(-1)


def examples_of(task: Task | Sequence[Example], split: str) -> tuple[Example, ...]:
    """A split of a task, or the examples themselves.

    Raises:
        UnknownName: there is no such split.
        BadTask: it is empty.
    """
    if split not in SPLITS:
        raise UnknownName("split", str(split), SPLITS)
    found = task.split(split) if isinstance(task, Task) else tuple(task)
    if not found:
        raise BadTask(f"there are no examples in split '{split}': give the task some, or name the other split")
    return tuple(found)


def check_wrong(examples: Sequence[Example], metric: str) -> None:
    """Every reading has a wrong answer.

    Raises:
        BadSetting: one has none.
    """
    if not all(all(example.wrong) for example in examples):
        raise BadSetting(f"metric '{metric}' needs wrong answers, and the task has examples without: use log_prob")


def as_list(name: str, value: object) -> list[Any]:
    """Several values, or one as a list of itself.

    Raises:
        BadSetting: it is neither a word, a number nor a list.
    """
    if isinstance(value, str | int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, Iterable):
        raise BadSetting(f"{name}={value!r} cannot be used: give a list")
    return list(value)


def head_mask(graph: ComputationGraph, names: Iterable[str]) -> Bool[np.ndarray, "L H"]:
    """True at these heads.

    Raises:
        GraphMismatch: a name is not a head of the graph.
    """
    mask = np.zeros((graph.n_layers, graph.n_heads), dtype=bool)
    for name in names:
        mask[graph.parse_head(name)] = True
    return mask


def neuron_index(name: str, n_layers: int, n_neurons: int) -> tuple[int, int]:
    """Layer and index of a neuron written `m3.n17`.

    Raises:
        GraphMismatch: the model has no such neuron.
    """
    match = _NEURON.fullmatch(str(name))
    if match is None or int(match[1]) >= n_layers or int(match[2]) >= n_neurons:
        raise GraphMismatch(
            f"'{name}' is not a neuron of this model ({n_layers} layers of {n_neurons}); neurons are written like m0.n0"
        )
    return int(match[1]), int(match[2])


def mean_intervals(
    values: Float[np.ndarray, "*X B"], over: Partition | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, "*X"], Float[np.ndarray, "*X"]]:
    """Lower and upper ends of the intervals of many means over the same examples (`circuitdisc/stats.py`).

    Args:
        over: what is drawn again; None: single examples.
    """
    found = interval((values,), groups=over, confidence=confidence, seed=seed)
    return found.low, found.high


def plain_rows(rows: Iterable[Row]) -> list[Row]:
    """The lines of a table with Python's own numbers; a number that is not finite becomes None."""
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def plain(value: Any) -> Any:
    """Numbers and arrays as JSON has them; a number that is not finite becomes None."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
