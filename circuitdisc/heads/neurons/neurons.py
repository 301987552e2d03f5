"""Comparative neuron analysis: which MLP neurons the answer depends on, and which of them depend on a head.

1. A neuron's importance at a reading is the rise of the right answer's log-probability when what it writes is added to the
   residual (`heads/neurons/importance.py` has the definition); an example's is the mean over its readings.
2. The same with some heads ablated: residual, activations and final norm are those of that run.
3. A neuron's change is its importance in the full model minus that without the heads: what the heads do through this neuron.

Source: Yu & Ananiadou 2024, "Interpreting Arithmetic Mechanism in Large Language Models through Comparative Neuron Analysis"
(EMNLP); the importance is that of Yu & Ananiadou 2024, "Neuron-Level Knowledge Attribution in Large Language Models" (EMNLP),
method `added`.

Shape letters: G layers looked at, M neurons of a layer, B examples, N readings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.checks import CONFIDENCE, Whole, bounded
from circuitdisc.engine.measuring import examples_of, mean_intervals
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.neuron_run import NeuronRuns
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.heads.base import as_list, head_mask
from circuitdisc.heads.neurons.importance import Method, neuron_importance
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.results import Row, ValuesOverExamples, plain_rows
from circuitdisc.stats import Partition, partition_of
from circuitdisc.tasks.base import Task, collate
from circuitdisc.tasks.measured import need_choice


@dataclass(frozen=True, repr=False)
class NeuronImportance(ValuesOverExamples):
    """Importance of every neuron of some layers, example by example.

    Args:
        layers: the layers looked at. Length G.
        values: importance in the full model, in nats. [G, M, B]
        without: the same with `knocked_out` ablated; None if no head was. [G, M, B]
        activations: mean activation at the readings of the full model. [G, M]
        knocked_out: the heads ablated.
        method: `added` or `removed`.
    """

    KEYS = ("layers", "neurons=first", "knocked_out", "method", "ablation", "n", "split", "confidence")

    layers: tuple[int, ...]
    values: Float[np.ndarray, "G M B"]
    without: Float[np.ndarray, "G M B"] | None
    activations: Float[np.ndarray, "G M"]
    knocked_out: tuple[str, ...]
    method: str
    ablation: str
    split: str
    confidence: float
    over: Partition | None = None

    @property
    def change(self) -> Float[np.ndarray, "G M"]:
        """Mean importance in the full model minus that without the heads.

        Raises:
            BadSetting: no head was knocked out.
        """
        if self.without is None:
            raise BadSetting("no head was knocked out, so no importance changed: give knock_out= the names of heads")
        return (self.values - self.without).mean(-1)

    def by(self, what: str | None = None) -> Float[np.ndarray, "G M"]:
        """What neurons are ordered by: `importance` or `change`; None: `change` if heads were knocked out."""
        what = what or ("importance" if self.without is None else "change")
        if what not in ("importance", "change"):
            raise UnknownName("order of neurons", what, ("importance", "change"))
        return self.mean if what == "importance" else self.change

    def order(self, what: str | None = None) -> list[str]:
        """Names of all neurons (`m3.n17`), the largest first."""
        values = self.by(what)
        flat = np.argsort(-values.ravel(), kind="stable").tolist()
        return [f"m{self.layers[at // values.shape[1]]}.n{at % values.shape[1]}" for at in flat]

    def table(self, k: int = 20, what: str | None = None) -> list[Row]:
        """The k neurons with the largest importance, or change."""
        values = self.by(what)
        rows: list[Row] = []
        for at in np.argsort(-values.ravel(), kind="stable")[:k].tolist():
            g, index = divmod(at, values.shape[1])
            rows.append(self._row(g, index))
        return plain_rows(rows)

    def _row(self, g: int, index: int) -> Row:
        row: Row = {"neuron": f"m{self.layers[g]}.n{index}", "importance": self.mean[g, index]}
        shown = self.values[g, index]
        if self.without is not None:
            row |= {"without heads": float(self.without[g, index].mean()), "change": self.change[g, index]}
            shown = shown - self.without[g, index]
        low, high = mean_intervals(shown, self.over, self.confidence)
        return row | {"low": float(low), "high": float(high), "activation": self.activations[g, index], "n": self.n}

    @property
    def first(self) -> list[Row]:
        """The first hundred neurons: what a file has, in which all would be too many."""
        return self.table(100)


@bounded(layers=Whole(0, 100_000, many=True), confidence=CONFIDENCE)
def neurons(
    model: Model,
    task: Task,
    *,
    knock_out: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    method: Method = "added",
    ablation: str | Ablation | dict[str, Any] = "mean",
    split: str = "train",
    confidence: float = 0.95,
    memory: str | int = "4GiB",
    progress: bool = False,
) -> NeuronImportance:
    """Measure the importance of every neuron for the right answer, in the full model and with heads knocked out.

    Args:
        knock_out: heads to ablate (`a3.h1`), all together; none: importance in the full model alone.
        layers: whose neurons; None: all.
        method: `added` (the paper's): the neuron's output is added to the residual of its layer; `removed`: it is taken out
            of the final residual.
        ablation: what an ablated head carries; means are those of the train split.
        split: `train` or `heldout`.
        confidence: coverage of the intervals.
        memory: budget for activations, as `4GiB`.
        progress: show a progress bar.

    Raises:
        GraphMismatch: a head that the model does not have.
        BadSetting: a layer that it does not have, or another setting out of its bounds.
        BadModel: it has no MLPs.
        UnknownName: method, ablation or split is not known.
    """
    if method not in ("added", "removed"):
        raise UnknownName("method", str(method), ("added", "removed"))
    need_choice(model, "neuron importance")
    examples, kind = examples_of(task, split), get_ablation(ablation)
    heads = tuple(as_list("knock_out", knock_out))
    dropped = head_mask(model.graph, heads)
    chosen = checked_layers(layers, model.graph.n_layers)
    patching = Patching(model, kind, examples_of(task, "train"), memory=memory)
    runs = NeuronRuns(patching, None)
    traces = [runs.trace(examples, chosen, None)]
    traces += [runs.trace(examples, chosen, ~dropped)] if heads else []
    batch = collate(examples, device=model.device)
    full, without, activations = [], [], []
    with progress_bar(len(chosen), "neurons", "layer", progress) as bar:
        for layer in chosen:
            importance = neuron_importance(runs.components, batch.labels, traces, layer, method, parse_memory(memory) // 2)
            values = [batch.per_example(values_of.T).cpu().numpy() for values_of in importance]
            full.append(values[0])
            without += values[1:]
            activations.append(traces[0].hidden[layer].to(importance[0].dtype).mean(0).cpu().numpy())
            bar.update(1)
    return NeuronImportance(
        layers=chosen,
        values=np.stack(full),
        without=np.stack(without) if heads else None,
        activations=np.stack(activations),
        knocked_out=heads,
        method=method,
        ablation=kind.label,
        split=split,
        confidence=confidence,
        over=partition_of(examples),
    )


def checked_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    """The layers asked for, in order; all if none are.

    Raises:
        BadSetting: one is not a layer of the model.
    """
    if layers is None:
        return tuple(range(n_layers))
    chosen = sorted(set(as_list("layers", layers)))
    if not chosen or chosen[-1] >= n_layers:
        raise BadSetting(f"layers={layers!r}: give layers from 0 to {n_layers - 1}, as in [0, 1]")
    return tuple(chosen)
