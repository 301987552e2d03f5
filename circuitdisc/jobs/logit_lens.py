"""The logit lens: what would the model answer if it ended after this layer?

1. Run the model on the clean prompts, and on the corrupted ones; keep the residual stream at the answer positions, before the
   first layer and after each.
2. Put each through the model's own final norm, at the scale of that residual, and its unembedding.
3. Take the metric of these logits, with the answers of the clean prompt. After the last layer it is the model's own.

`heads logits` holds the final norm's scale at its last value instead, so that its parts add up.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; what it misses: Belrose et al. 2023, "Eliciting Latent
Predictions from Transformers with the Tuned Lens" (https://arxiv.org/abs/2303.08112).

Shape letters: P sets of prompts, L1 places (the embedding, then each layer), B examples, T positions, N readings, D residual
width.
"""

from dataclasses import dataclass, replace
from functools import partial
from html import escape

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.engine.evaluate import of_columns
from circuitdisc.engine.forward import layer_states
from circuitdisc.engine.measuring import Reading, mean_intervals
from circuitdisc.engine.memory import examples_that_fit, parse_memory
from circuitdisc.engine.requirements import components_of
from circuitdisc.metrics import AnyMetric, Metric, log_probabilities
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.options import OnSplit, takes
from circuitdisc.pages.description import Description, Section, cell
from circuitdisc.pages.drawing import KIND_COLOURS, area, plain_axes, plain_layout
from circuitdisc.pages.page import picture
from circuitdisc.pages.verdict import Verdict, few_caveats, may_be_zero
from circuitdisc.results import Row, ValuesOverExamples, plain_rows
from circuitdisc.stats import Partition, share_interval
from circuitdisc.tasks.base import PromptBatch, Task, collate
from circuitdisc.tasks.measured import metric_for
from circuitdisc.wording import ACCURACIES, SPLIT_WORDS, interval, intervals_over

# --- the result -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class LogitLens(ValuesOverExamples):
    """The metric read off the residual stream.

    Args:
        prompts: `clean`, and `corrupted` if every example has one. Length P.
        values: at the embedding, then after each layer. [P, L1, B]
        low, high: intervals of the means over examples. [P, L1]
    """

    KEYS = ("prompts", "places", "mean", "low", "high", "metric", "n", "split", "confidence")

    prompts: tuple[str, ...]
    values: Float[np.ndarray, "P L1 B"]
    low: Float[np.ndarray, "P L1"]
    high: Float[np.ndarray, "P L1"]
    metric: str
    split: str
    confidence: float
    over: Partition | None = None

    @property
    def places(self) -> list[str]:
        """`embedding`, `layer 0`, ..."""
        return ["embedding", *(f"layer {layer}" for layer in range(self.values.shape[1] - 1))]

    def table(self) -> list[Row]:
        """A line a place: the mean of each set of prompts, and how far clean lies above corrupted, example by example."""
        columns = {name: (self.mean[p], self.low[p], self.high[p]) for p, name in enumerate(self.prompts)}
        if len(self.prompts) == 2:
            apart = self.values[0] - self.values[1]
            columns["difference"] = (apart.mean(-1), *mean_intervals(apart, self.over, self.confidence))
        ends = ("", " low", " high")
        return plain_rows(
            {"after": place}
            | {f"{name}{end}": of[at] for name, values in columns.items() for end, of in zip(ends, values, strict=True)}
            | {"n": self.n}
            for at, place in enumerate(self.places)
        )

    def steps(self) -> list[Row]:
        """A line a layer: by how much it raises the metric on the clean prompts, the largest step (of either sign) first."""
        steps = np.diff(self.values[0], axis=0)
        mean, (low, high) = steps.mean(-1), mean_intervals(steps, self.over, self.confidence)
        order = np.argsort(-np.abs(mean), kind="stable").tolist()
        return plain_rows({"layer": layer, "step": mean[layer], "low": low[layer], "high": high[layer]} for layer in order)


# --- what computes it -----------------------------------------------------------------------------------------------------


@takes(OnSplit)
def logit_lens(model: Model, task: Task, *, metric: AnyMetric | None = None, **options: Unpack[OnSplit]) -> LogitLens:
    """Read the metric off the residual stream before the first layer and after each.

    Args:
        metric: a name, or a metric of your own; None takes the task's.

    Raises:
        UnknownName: there is no such metric or split.
        BadSetting: the metric says nothing about this task, the model has no fast components, or a number is out of bounds.
        BadTask: the split is empty.
    """
    setup, measure = Reading.of(model, task, options), metric_for(model, task, metric)
    examples, components = setup.examples, components_of(model, "the logit lens")
    size = examples_that_fit(model, parse_memory(setup.memory) // 2, max(len(example) for example in examples))
    paired = all(example.corrupted is not None for example in examples)
    chunks: list[np.ndarray] = []
    with setup.bar(len(examples), "logit lens", "example") as bar:
        for first in range(0, len(examples), size):
            batch = collate(examples[first : first + size], device=model.device)
            chunks.append(_measured(model, components, batch, paired, measure).double().cpu().numpy())
            bar.update(batch.n_examples)
    values = np.concatenate(chunks, axis=-1)
    prompts = ("clean", "corrupted")[: len(values)]
    return LogitLens(prompts, values, *_ends(setup, values, measure), metric=measure.name, **setup.about())


def _ends(setup: Reading, values: Float[np.ndarray, "P L1 B"], metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals: of a share, which may be 0 or 1, Wilson's."""
    if metric.name not in ACCURACIES:
        return setup.intervals(values)
    rows = values.reshape(-1, values.shape[-1])
    ends = [share_interval(row, groups=setup.over, confidence=setup.confidence).ends for row in rows]
    low, high = np.array(ends).T.reshape(2, *values.shape[:-1])
    return low, high


@torch.no_grad()
def _measured(
    model: Model, components: Components, batch: PromptBatch, paired: bool, metric: Metric
) -> Float[Tensor, "P L1 B"]:
    clean = _residuals(model, components, batch, batch.clean)
    labels = batch.labels
    if metric.columns == "all":
        labels = replace(labels, full_logprobs=log_probabilities(components.unembed(clean[-1:])[0]))
    runs = [clean]
    if paired and batch.corrupted is not None:
        runs.append(_residuals(model, components, batch, batch.corrupted))
    # one place at a time: logits of the whole vocabulary are large
    rows = [[of_columns(batch, labels, partial(components.unembed, x[None]), metric)[0] for x in run] for run in runs]
    return torch.stack([torch.stack(row) for row in rows])


def _residuals(model: Model, components: Components, batch: PromptBatch, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "L1 N D"]:
    """The residual stream at the readings."""
    frame = components.frame(batch.is_token, batch.position_ids)
    x = components.embed(tokens, batch.position_ids, split=False)[0]
    states = layer_states(components, model.graph, frame, x, fix_scale=True)
    return torch.stack([x[batch.reads], *(state.after[batch.reads] for state in states)])


# --- what it says ---------------------------------------------------------------------------------------------------------


def describe_lens(lens: LogitLens) -> Description:
    """The metric layer by layer: in words, as a figure, as a table."""
    first, last, step = lens.table()[0], lens.table()[-1], lens.steps()[0]
    lead = [
        f"On {lens.n:,} {SPLIT_WORDS[lens.split]} {lens.metric} read at the embedding is {_words(first, 'clean')}, and after "
        f"the last layer, where it is the model's own, {_words(last, 'clean')}.",
        f"The largest step, of either sign, is that of layer {step['layer']}: {cell(step['step'])} "
        f"{interval(step['low'], step['high'])}.",
        *_parting(lens),
    ]
    caveats = [
        "The lens reads what already points at the unembedding: a low value does not say that the answer is not there.",
        *(["The interval of the largest step holds 0: it may be nothing."] if may_be_zero(step["low"], step["high"]) else []),
        *few_caveats(lens.n),
    ]
    note = (
        f"Means of {lens.metric}, with {lens.confidence:.0%} {intervals_over(lens.over)}; n = {lens.n:,}. Both sets of prompts "
        "are measured by the clean prompt's answers"
    )
    shown = picture("lens", lens_figure(lens), f"{lens.metric} after each layer; the table has the numbers.")
    names = [name for name in (*lens.prompts, "difference") if name in first]
    rows = [
        {"after": row["after"]} | {key: value for name in names for key, value in _cells(row, name)} for row in lens.table()
    ]
    caption = f"Bands: {lens.confidence:.0%} intervals of the means."
    return Description(Verdict(tuple(lead), tuple(caveats)), (Section("Layer by layer", rows, note, shown, caption, True),))


def _words(row: Row, name: str) -> str:
    return f"{cell(row[name])} {interval(row[f'{name} low'], row[f'{name} high'])}"


def _cells(row: Row, name: str) -> list[tuple[str, object]]:
    """A mean and its interval, as two columns that fit a terminal."""
    return [(name, row[name]), (f"{name}, interval", interval(row[f"{name} low"], row[f"{name} high"]))]


def _parting(lens: LogitLens) -> list[str]:
    """From where on clean and corrupted prompts are clearly apart."""
    if len(lens.prompts) < 2:
        return ["The task has no corrupted prompts to compare with."]
    rows = lens.table()
    unclear = [at for at, row in enumerate(rows) if may_be_zero(row["difference low"], row["difference high"])]
    since = max(unclear, default=-1) + 1
    if since == len(rows):
        return ["At the end clean and corrupted prompts are not clearly apart: the interval of their difference holds 0."]
    where = rows[since]["after"] if since else "the embedding"
    return [f"From {where} on clean and corrupted prompts are clearly apart: there by {_words(rows[since], 'difference')}."]


def lens_figure(lens: LogitLens) -> go.Figure:
    """The metric against the layer, a line for each set of prompts, with its interval as a band."""
    figure, x = go.Figure(), list(range(len(lens.places)))
    looks = (("logits", "rgba(213,94,0,0.18)"), ("q", "rgba(0,114,178,0.18)"))
    for p, (name, (colour, band)) in enumerate(zip(lens.prompts, looks, strict=False)):
        area(figure, x, lens.low[p], lens.high[p], band, name, showlegend=False)
        figure.add_scatter(
            x=x,
            y=lens.mean[p],
            mode="lines+markers",
            line={"color": KIND_COLOURS[colour], "width": 2},
            hovertext=lens.places,
            hovertemplate="%{hovertext}: %{y:.4g}<extra></extra>",
            name=f"{name} prompts",
        )
    figure.update_layout(**plain_layout(1000, 420), margin={"l": 80, "r": 30, "t": 40, "b": 56})
    plain_axes(figure)
    every = max(1, len(x) // 16)
    ticks = ["emb.", *map(str, range(len(x) - 1))]
    figure.update_xaxes(title_text="after layer", tickvals=x[::every], ticktext=ticks[::every], tickangle=0, showgrid=False)
    figure.update_yaxes(title_text=escape(lens.metric))
    return figure
