"""One cell of the transfer matrix: a circuit, whatever it was found on, run in one checkpoint and scored there.

Means that cut edges carry are those of the checkpoint's own train split: what another checkpoint would write there says
nothing about this one.

Shape letters: B examples, R receivers, S senders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.controls import Controls, random_circuits
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import METRICS, Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.faithfulness import faithfulness_scores
from circuitdisc.stats import interval, partition_of
from circuitdisc.tasks.base import SPLITS, Task
from circuitdisc.tasks.measured import beside, is_numeric

UNSIGNED = ("faithfulness", "ratio", "difference")  # the scores that are taken once for every metric

PerMetric = dict[str, Float[np.ndarray, "B"]]


def judged_metrics(task: Task, searched: str | Metric) -> list[Metric]:
    """The metrics that faithfulness is computed from: the one searched with, then the plain one.

    That is the logit difference, the log-probability where there are no wrong answers, the squared error of numbers.
    """
    examples = (*task.train, *task.heldout)
    plain = "logit_diff" if task.has_wrong else "log_prob"
    plain = "squared_error" if is_numeric(examples) else plain
    return list({metric.name: metric for metric in (get_metric(searched), METRICS[plain])}.values())


@dataclass
class Judge:
    """Scores circuits in one checkpoint.

    Args:
        n_random: random circuits matched with each; the same ones in every checkpoint.
        seed: of the random circuits and of the bootstrap.
    """

    model: Model
    task: Task
    ablation: Ablation
    searched: str | Metric
    n_random: int = 20
    confidence: float = 0.95
    seed: int = 0
    memory: str | int = "4GiB"
    _values: dict[tuple[str, bytes], PerMetric] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.patching = Patching(self.model, self.ablation, self.task.train, memory=self.memory)
        self.metrics = judged_metrics(self.task, self.searched)
        others = beside(self.model, self.metrics[0], "accuracy", *(("pair_accuracy",) if self.task.has_wrong else ()), "kl")
        self.measured = list({metric.name: metric for metric in (*self.metrics, *others)}.values())

    def score(self, circuit: Circuit) -> tuple[Score, ...]:
        """Every score of a circuit here, on both splits.

        Returns:
            accuracies, KL and the mean of each metric; faithfulness, ratio and difference for each metric.
        """
        controls = random_circuits(circuit, self.n_random, np.random.default_rng(self.seed))
        masks = self._masks(circuit, controls)
        scores: list[Score] = []
        for split in SPLITS:
            values = self._evaluate(split, masks)
            for metric in self.metrics:
                scored = faithfulness_scores(
                    values,
                    [name for name in masks if name.startswith("random")],
                    split=split,
                    metric=metric.name,
                    ablation=self.ablation.label,
                    over=partition_of(self.task.split(split)),
                    matched=controls.words,
                    confidence=self.confidence,
                    seed=self.seed,
                )
                first = metric is self.metrics[0]
                scores += [figure for figure in scored if first or figure.name in UNSIGNED]
                if metric.name not in ("accuracy", "pair_accuracy", "kl"):
                    scores.append(self._mean(metric, split, values, controls.words))
        return tuple(scores)

    def _masks(self, circuit: Circuit, controls: Controls) -> dict[str, Bool[np.ndarray, "R S"]]:
        graph = circuit.graph
        empty = Circuit.from_heads(graph, []) if circuit.granularity == "head" else Circuit.empty(graph)
        drawn = {f"random{index}": control.mask for index, control in enumerate(controls.circuits)}
        return {"full": graph.edge_mask, "circuit": circuit.mask, "empty": empty.mask, **drawn}

    def _evaluate(self, split: str, masks: Mapping[str, Bool[np.ndarray, "R S"]]) -> dict[str, PerMetric]:
        """Values of every mask, example by example; one that was run before (the full model's, say) is not run again."""
        keys = {name: (split, mask.tobytes()) for name, mask in masks.items()}
        known = {key: self._values[key] for key in keys.values() if key in self._values}
        new = {key: name for name, key in reversed(keys.items()) if key not in known}  # of equal masks the first by name
        if new:
            wanted = {name: masks[name] for name in new.values()}
            by_mask = self.patching.evaluate(self.task.split(split), wanted, self.measured)
            for key, name in new.items():
                known[key] = {metric: values.double().cpu().numpy() for metric, values in by_mask[name].items()}
        self._values |= {keys[name]: known[keys[name]] for name in ("full", "circuit", "empty")}
        return {name: known[key] for name, key in keys.items()}

    def _mean(self, metric: Metric, split: str, values: Mapping[str, PerMetric], matched: str) -> Score:
        """The metric itself: its mean when the circuit runs."""
        circuit, full = (values[which][metric.name] for which in ("circuit", "full"))
        over = partition_of(self.task.split(split))
        ends = interval((circuit,), groups=over, confidence=self.confidence, seed=self.seed)
        ends = ends.within(metric.least, metric.most)
        drawn = tuple(float(by_metric[metric.name].mean()) for name, by_metric in values.items() if name.startswith("random"))
        note, value = f"full model {full.mean():.3g}", float(circuit.mean())
        labels = (metric.name, split, self.ablation.label, metric.name, len(circuit))
        return Score(*labels, value, *ends.ends, self.confidence, drawn, note, ends.method, matched)


def find_score(scores: Sequence[Score], name: str, split: str, metric: str | None = None) -> Score:
    """The score with this name on this split, of this metric where it is taken for several.

    Raises:
        KeyError: it was not computed.
    """
    for score in scores:
        if (score.name, score.split) == (name, split) and metric in (None, score.metric):
            return score
    raise KeyError(f"no score '{name}'{f' of {metric}' if metric else ''} on '{split}'")
