"""The whole comparative neuron analysis in one call: importance on the train split, judged on the held-out one.

1. `neurons`: importance of every neuron, in the full model and with heads knocked out.
2. `neuron_table`: the best neurons masked, and alone kept, beside random neurons.
3. `neuron_tokens`: what the best neurons write, as tokens.

Source: Yu & Ananiadou 2024, "Interpreting Arithmetic Mechanism in Large Language Models through Comparative Neuron Analysis"
(EMNLP).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Unpack

from circuitdisc.checks import Whole, bounded
from circuitdisc.engine.measuring import AblatingAll
from circuitdisc.heads.base import as_list
from circuitdisc.heads.neurons.importance import Method
from circuitdisc.heads.neurons.neurons import NeuronImportance, neurons
from circuitdisc.heads.neurons.table import MaskedSets, NeuronTable, neuron_table
from circuitdisc.heads.neurons.tokens import NeuronTokens, neuron_tokens
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.results import Result, Row
from circuitdisc.tasks.base import Task


@dataclass(frozen=True, repr=False)
class NeuronAnalysis(Result):
    """Importance, table and tokens of the best neurons.

    Args:
        by: what the neurons are ordered by: `importance` or `change`.
        tokens: of the first neurons of the order.
    """

    KEYS = ("by", "importance", "table", "tokens")

    importance: NeuronImportance
    table: NeuronTable
    tokens: tuple[NeuronTokens, ...]
    by: str

    def _rows(self) -> list[Row]:
        """A row a neuron, as `NeuronImportance.table` has them."""
        return self.importance.table(len(self.tokens), self.by)


class MaskingBest(AblatingAll, MaskedSets, total=False):
    """What is masked where both splits have their part."""


@bounded(
    layers=Whole(0, 100_000, many=True),
    top=Whole(1, 1_000_000),
    n_tokens=Whole(1, 1_000_000),
)
@takes(MaskingBest)
def neuron_analysis(
    model: Model,
    task: Task,
    *,
    knock_out: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    method: Method = "added",
    by: str | None = None,
    top: int = 20,
    n_tokens: int = 10,
    **options: Unpack[MaskingBest],
) -> NeuronAnalysis:
    """Find the neurons that the answer, or what heads do for it, depends on; mask them; read them as tokens.

    Args:
        knock_out: heads to ablate (`a3.h1`), all together; none: importance in the full model alone.
        layers: whose neurons; None: all.
        method: `added` or `removed`; see `neurons`.
        by: `importance` or `change`; None: `change` if heads are knocked out.
        sizes: how many neurons are masked, and kept; sizes above the number of neurons are left out.
        top: how many neurons are read as tokens.
        n_tokens: how many tokens of each.
        ablation: what an ablated head, and a masked neuron, carries: `zero`, or `mean` over the train split's prompts.
        metric: of the table, beside accuracy; None takes the task's own.
        seed: of the random neurons.

    Raises:
        CircuitdiscError: as `neurons`, `neuron_table` and `neuron_tokens`.
    """
    shared: Any = dict(options)
    of_table = {name: shared.pop(name) for name in ("metric", "seed", "n_random")}
    wanted = as_list("sizes", shared.pop("sizes"))
    of_neurons = neurons(model, task, knock_out=knock_out, layers=layers, method=method, **shared)
    by = by or ("importance" if of_neurons.without is None else "change")
    order = of_neurons.order(by)
    fitting = [size for size in wanted if size <= len(order)] or [len(order)]
    table = neuron_table(model, task, order, sizes=fitting, layers=of_neurons.layers, **of_table, **shared)
    return NeuronAnalysis(of_neurons, table, tuple(neuron_tokens(model, order[:top], k=n_tokens)), by)
