"""Direct logit attribution: what every component adds to the logit difference.

1. Run the model on the clean prompts; keep what every component writes at the answer positions.
2. Hold the final norm's scale at its value there: from the residual to the logits everything is then linear.
3. A component's attribution is its own part of logit(right) - logit(wrong). The parts add up to the model's logit difference.

A model that caps its logits (Gemma 2) is attributed before the cap: the parts add up to the difference of the uncapped logits.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; nostalgebraist 2020, "interpreting GPT: the
logit lens" (the difference after each layer).

Shape letters: C components, B examples, L layers, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.engine.backends import full_run
from circuitdisc.engine.measuring import Reading, mean_intervals
from circuitdisc.engine.memory import examples_that_fit, parse_memory
from circuitdisc.engine.readout import direct_effects
from circuitdisc.engine.requirements import components_of
from circuitdisc.graph import heads_where
from circuitdisc.heads.base import check_wrong
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.options import OnSplit, takes
from circuitdisc.results import Row, ValuesOverExamples, plain_rows
from circuitdisc.stats import Partition
from circuitdisc.tasks.base import Example, Task, collate


@dataclass(frozen=True, repr=False)
class LogitAttribution(ValuesOverExamples):
    """What every component adds to the logit difference, example by example.

    Args:
        names: components in the model's order: embedding, per layer its heads, attention bias (`a3.bias`) and MLP; `norm_shift`
            and `unembed_bias`.
        layers: each component's layer; -1 for embeddings, L for what comes after the last layer.
        values: what each adds, in logits. [C, B]
        low, high: intervals of the means over examples. [C]
        logit_diff: the model's own logit difference, before any cap. [B]
        after_layer: the sum of everything up to the embedding and up to each layer, with the norm's shift and the
            unembedding's bias: the last is the logit difference. [L + 1, B]
        n_layers, n_heads: of the model.
        note: what a reader must know; empty for most models.
    """

    KEYS = (
        "names", "layers", "mean", "low", "high", "logit_diff", "after_layer", "n", "split", "confidence", "note",
    )  # fmt: skip

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[np.ndarray, "C B"]
    low: Float[np.ndarray, "C"]
    high: Float[np.ndarray, "C"]
    logit_diff: Float[np.ndarray, "B"]
    after_layer: Float[np.ndarray, "L1 B"]
    n_layers: int
    n_heads: int
    split: str
    confidence: float
    note: str = ""
    over: Partition | None = None

    @property
    def heads(self) -> Float[np.ndarray, "L H"]:
        """Means of the heads."""
        mean = dict(zip(self.names, self.mean, strict=True))
        names = heads_where(np.ones((self.n_layers, self.n_heads), dtype=bool))
        return np.array([mean[name] for name in names]).reshape(self.n_layers, self.n_heads)

    @property
    def error(self) -> float:
        """The largest difference, over examples, between the sum of the parts and the model's own logit difference."""
        return float(np.abs(self.values.sum(0) - self.logit_diff).max())

    def table(self) -> list[Row]:
        """Components, the largest mean (of either sign) first."""
        order = np.argsort(-np.abs(self.mean), kind="stable")
        return plain_rows(
            {"component": self.names[c], "adds": self.mean[c], "low": self.low[c], "high": self.high[c], "n": self.n}
            for c in order.tolist()
        )

    def by_layer(self) -> list[Row]:
        """For each layer what its heads, attention bias and MLP add together, and the difference after it."""
        running, (low, high) = self.after_layer.mean(1), mean_intervals(self.after_layer, self.over, self.confidence)
        rows: list[Row] = []
        for layer in range(-1, self.n_layers):
            parts = {"heads": 0.0, "bias": 0.0, "mlp": 0.0}
            for name, of, mean in zip(self.names, self.layers, self.mean, strict=True):
                if of == layer >= 0:
                    parts["mlp" if name.startswith("m") else "bias" if name.endswith(".bias") else "heads"] += float(mean)
            at: Row = {"layer": "embedding" if layer < 0 else layer}
            ends = {"after": running[layer + 1], "low": low[layer + 1], "high": high[layer + 1]}
            rows.append(at | (parts if layer >= 0 else dict.fromkeys(parts)) | ends)
        return plain_rows(rows)


@takes(OnSplit)
def logit_attribution(model: Model, task: Task | Sequence[Example], **options: Unpack[OnSplit]) -> LogitAttribution:
    """Split the logit difference into what every component adds directly.

    Args:
        task: a task, or examples; each needs wrong answers.

    Raises:
        BadSetting: an example has no wrong answer, the model has no fast components, or a number is out of its bounds.
        UnknownName: there is no such split.
    """
    setup = Reading.of(model, task, options)
    examples = setup.examples
    check_wrong(examples, "logit_diff")
    components = components_of(model, "logit attribution", whole=True)
    size = examples_that_fit(model, parse_memory(setup.memory) // 2, max(len(example) for example in examples))
    names, layers = (), ()
    values: list[np.ndarray] = []
    own: list[np.ndarray] = []
    with setup.bar(len(examples), "logit attribution", "example") as bar:
        for first in range(0, len(examples), size):
            batch = collate(examples[first : first + size], device=model.device)
            effects = direct_effects(model, batch, full_run(model, batch.clean, batch.is_token, batch.position_ids))
            names, layers = effects.names, effects.layers
            values.append(batch.per_example(effects.values).cpu().numpy())
            own.append(batch.per_example(effects.logit_diff).cpu().numpy())
            bar.update(batch.n_examples)
    together = np.concatenate(values, axis=1)
    n_layers = model.graph.n_layers
    return LogitAttribution(
        names,
        layers,
        together,
        *setup.intervals(together),
        logit_diff=np.concatenate(own),
        after_layer=_running(np.array(layers), together, n_layers),
        n_layers=n_layers,
        n_heads=model.graph.n_heads,
        note=_note(components, model.dtype),
        **setup.about(),
    )


def _running(layers: np.ndarray, values: Float[np.ndarray, "C B"], n_layers: int) -> Float[np.ndarray, "L1 B"]:
    """The sum after the embedding and after each layer; what comes after the last layer counts from the beginning."""
    always = values[layers == n_layers].sum(0)
    return np.stack([always + values[layers <= layer].sum(0) - (layer == n_layers) * always for layer in range(-1, n_layers)])


def _note(components: Components, dtype: torch.dtype) -> str:
    notes = []
    if components.spec.logit_softcap is not None:
        notes.append(f"the model caps its logits at {components.spec.logit_softcap:g}: these are the logits before the cap")
    if dtype in (torch.bfloat16, torch.float16):
        notes.append(f"the model runs in {str(dtype).removeprefix('torch.')}: the parts add up to within its rounding")
    return "; ".join(notes)
