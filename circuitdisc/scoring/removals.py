"""What completeness and minimality share: a circuit's parts, the sets K of them, and both splits held in memory.

Sets are searched for on the train split and judged on the split asked for, so that a set that was chosen because it looks bad
does not look worse than it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.circuit import Circuit
from circuitdisc.engine.part_removal import PartRemoval
from circuitdisc.engine.parts import PartKind, check_parts, part_kind, parts_of
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.lazy import computed_once
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.scoring.judging import check_graph, check_split, judging
from circuitdisc.tasks.base import Task

Names = tuple[str, ...]


@dataclass
class Subject:
    """A circuit that is to be taken apart.

    Args:
        parts: the parts of the circuit.
        by: what they are.
    """

    task: Task
    circuit: Circuit
    patching: Patching
    metric: Metric
    by: PartKind
    parts: Names
    split: str

    @computed_once
    def judge(self) -> PartRemoval:
        """On the split that figures are given for."""
        return PartRemoval(self.patching, self.task.split(self.split), self.metric, self.by)

    @computed_once
    def search(self) -> PartRemoval:
        """On the split that sets are chosen on: always `train`."""
        return self.judge if self.split == "train" else PartRemoval(self.patching, self.task.train, self.metric, self.by)

    @property
    def n(self) -> int:
        return len(self.task.split(self.split))

    @property
    def full(self) -> Bool[np.ndarray, "R S"]:
        return self.circuit.graph.edge_mask


def subject(model: Model, task: Task, circuit: Circuit, by: str | None, options: Mapping[str, Any]) -> Subject:
    """The circuit, made ready.

    Raises:
        GraphMismatch: it belongs to another architecture.
        BadSetting: the split has no examples, the circuit has no parts, or the examples do not fit the memory.
        UnknownName: the split, `by`, ablation or metric is not known.
    """
    check_graph(model, circuit)
    check_split(task, options["split"])
    kind = part_kind(circuit, by)
    parts = parts_of(circuit, kind)
    if not parts:
        raise BadSetting(
            f"the circuit has no {kind}s, so that nothing can be taken out of it: give a larger circuit, or another by="
        )
    setup = judging(model, task, circuit.provenance, options)
    return Subject(task, circuit, setup.patching(), setup.metric, kind, parts, setup.split)


def class_sets(subject: Subject, classes: Mapping[str, Sequence[str]] | None) -> dict[str, Names]:
    """Named sets of parts; None takes the circuit's own groups of heads.

    Raises:
        GraphMismatch: a class names what the circuit does not have.
        BadSetting: they are no table of names.
    """
    if classes is None:
        if subject.by == "edge":
            return {}
        groups = {
            name: tuple(head for head in heads if head in subject.parts) for name, heads in subject.circuit.groups.items()
        }
        return {name: heads for name, heads in groups.items() if heads}
    if not isinstance(classes, Mapping):
        raise BadSetting(f"classes={classes!r} cannot be used: give a table of name: list of {subject.by}s")
    return {str(name): check_parts(members, subject.parts, f"class {name}") for name, members in classes.items()}


def random_sets(parts: Sequence[str], n: int, generator: np.random.Generator) -> Iterator[Names]:
    """Sets that hold each part with probability 1/2."""
    for _ in range(n):
        inside = generator.random(len(parts)) < 0.5
        yield tuple(part for part, is_in in zip(parts, inside, strict=True) if is_in)


def n_tried(n_parts: int, size: int, width: int) -> int:
    """How many candidates `grow` tries."""
    return sum(min(width, n_parts - step) for step in range(min(size, n_parts)))


def clearly_larger(new: float, old: float) -> bool:
    """True if the first is larger by more than rounding, so that a set gains no members that do nothing."""
    return new > old and not math.isclose(new, old, rel_tol=1e-6)


Gains = Callable[[Names, Names], Float[np.ndarray, "P"]]
"""From the set grown so far and some candidates to what is to be maximised, with each candidate added."""


def grow(
    parts: Sequence[str],
    gains: Gains,
    size: int,
    width: int,
    generator: np.random.Generator,
    on_step: Callable[[int], object] = lambda steps: None,
) -> tuple[Names, float]:
    """Grow a set one part at a time, each time by the best of `width` random candidates.

    Returns:
        The best set on the way, and its gain.

    Source: Wang et al. 2022, "Interpretability in the Wild", appendix on completeness (greedy search over sets K).
    """
    order = {part: place for place, part in enumerate(parts)}
    grown: Names = ()
    best: tuple[Names, float] = ((), -np.inf)
    for _ in range(min(size, len(parts))):
        rest = [part for part in parts if part not in grown]
        drawn = generator.choice(len(rest), min(width, len(rest)), replace=False)
        candidates = tuple(rest[place] for place in sorted(drawn))
        changes = gains(grown, candidates)
        winner = int(np.argmax(changes))
        grown = tuple(sorted((*grown, candidates[winner]), key=order.__getitem__))
        if clearly_larger(float(changes[winner]), best[1]):
            best = grown, float(changes[winner])
        on_step(1)
    return best
