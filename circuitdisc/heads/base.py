"""What the tools for heads and neurons share: names of heads and neurons, and lists of them.

Shape letters: L layers, H heads.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from circuitdisc.errors import BadSetting, GraphMismatch
from circuitdisc.graph import ComputationGraph
from circuitdisc.tasks.base import Example

_NEURON = re.compile(r"m(\d+)\.n(\d+)")


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
