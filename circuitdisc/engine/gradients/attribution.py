"""Attribution: estimate what every edge is worth from a few forward and backward passes.

    score(s -> r) = sum over positions of (ablated_s - clean_s) . g_r,   g_r = d metric / d input of r

averaged over examples. It estimates metric(edge cut) - metric(full): negative where the edge helps. The algorithms differ in
where the gradient is taken; all use the same two things, `Differences` and `Gradients`, and none holds a buffer of
examples x positions x senders x residual width.

Shape letters: C rows (points at which gradients are taken), B examples, T positions, D residual width, S senders, R receivers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.gradients.differences import (
    Differences,
    PlaceSource,
    Recorder,
    differences,
    embed_rows,
    tokens_that_count,
)
from circuitdisc.engine.gradients.edge_scores import Gradients, add_scores, at_tokens
from circuitdisc.engine.gradients.layers import EMBEDDING, HEADS, Place, SenderGroup, sender_groups
from circuitdisc.engine.gradients.memory import Gradient, Shapes, examples_in_budget
from circuitdisc.engine.gradients.path_points import PathPoints, PathSum
from circuitdisc.engine.gradients.segments import MetricGradient, SegmentedRun, log_probabilities, readout
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.patching import Cost
from circuitdisc.engine.requirements import gradients_of
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.models.components import Components, Frame
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Example, PromptBatch, collate


@dataclass
class AttributionChunk:
    """Some of the examples, with what the uncut runs on them gave.

    Args:
        frame: masks, rotary angles and norm scales of the clean run.
        differences: ablated minus clean of every sender.
        clean: the clean run; its segments are kept if gradients at it are wanted.
        full_logprobs: the full model's log-probabilities at the readings, if the metric needs them. [N, V]
        residuals: the clean residual stream at every place, if asked for. [1, B, T, D]
    """

    batch: PromptBatch
    frame: Frame
    differences: Differences
    clean: SegmentedRun
    full_logprobs: Float[Tensor, "N V"] | None
    residuals: dict[Place, Float[Tensor, "1 B T D"]]


class Attribution:
    """One model under one ablation and one metric, ready to be attributed.

    Args:
        examples: what scores are averaged over; also what the ablation learns from.
        gradient: where gradients will be taken.
        memory: budget for activations, as `8GiB`; examples are split to fit.
        name: of the algorithm, for messages and the progress bar.

    Raises:
        BadSetting: the metric's gradient vanishes, the ablation replaces patterns, the model has no fast components, or not
            even one example fits the budget.
    """

    def __init__(
        self,
        model: Model,
        ablation: Ablation,
        examples: Sequence[Example],
        metric: Metric,
        *,
        gradient: Gradient,
        memory: str | int = "4GiB",
        name: str = "attribution",
        progress: bool = False,
    ) -> None:
        self.components = _check(model, ablation, metric, gradient, name)
        self.model, self.graph, self.ablation = model, model.graph, ablation
        self.examples, self.metric, self.name, self.progress = examples, metric, name, progress
        self.groups = sender_groups(self.graph)
        self.cost = Cost()
        self.path_sum: PathSum | None = None
        self.gradient = gradient
        self.chunk_size = examples_in_budget(
            Shapes.of(self.components, metric), parse_memory(memory), examples, gradient, ablation.method.averages
        )
        self.source = PlaceSource(model, examples, self.chunk_size, self.cost)
        self.fitted = ablation.method.fit(self.source)

    def chunks(self, steps_per_chunk: int = 1) -> Iterator[AttributionChunk]:
        """The examples made ready, as many at a time as fit, with a progress bar.

        Args:
            steps_per_chunk: how often `self.bar` is moved on for each chunk, by the caller; 1 is moved on here.
        """
        n_chunks = -(-len(self.examples) // self.chunk_size)
        self.cost.model_runs += 1 + self.ablation.method.runs_per_example
        self.bar = progress_bar(n_chunks * steps_per_chunk, f"{self.name} on {self.model.name}", "step", self.progress)
        for first in range(0, len(self.examples), self.chunk_size):
            batch = collate(self.examples[first : first + self.chunk_size], device=self.components.device)
            yield self._prepare(batch)
            if steps_per_chunk == 1:
                self.bar.update(1)
        self.bar.close()

    def _prepare(self, batch: PromptBatch) -> AttributionChunk:
        components, graph = self.components, self.graph
        record = Recorder(tokens_that_count(components, self.ablation, batch))
        frame = components.frame(batch.is_token, batch.position_ids)
        embedded = embed_rows(components, graph, batch.clean, batch)
        record((-1, EMBEDDING), embedded)
        residuals: dict[Place, Tensor] = {}
        note = residuals.__setitem__ if self.gradient.places else None
        x = embedded.sum(0)[None]
        clean = SegmentedRun(
            components, graph, frame, x, gradients=self.gradient.at_full, uncut=True, read=batch.reads, write=record, note=note
        )
        residuals[graph.n_layers, HEADS] = clean.residual
        residuals[0, HEADS] = x
        full = log_probabilities(components, clean.residual, batch) if self.metric.zero_at_full else None
        prepared = differences(self.source, self.ablation, batch, record, self.fitted)
        return AttributionChunk(batch, frame, prepared, clean, full, residuals)

    # --- gradients ---------------------------------------------------------------------------------------------------

    def interpolated(
        self, chunk: AttributionChunk, group: SenderGroup, shares: Sequence[float], gradients: bool = True
    ) -> SegmentedRun:
        """The model run on from one place, whose senders write share * clean + (1 - share) * ablated: a row a share."""
        place = group.next_place(self.graph)
        clean = chunk.residuals[place]
        total = chunk.differences.total(group, clean.shape[1:])
        left = torch.tensor([1 - share for share in shares], dtype=clean.dtype, device=clean.device)
        x = clean + left[:, None, None, None] * total
        part = (self.graph.n_layers - place[0]) / self.graph.n_layers
        self.cost.model_runs += part * len(shares) * chunk.batch.n_examples / len(self.examples)
        return SegmentedRun(
            self.components, self.graph, chunk.frame, x, start=place, gradients=gradients, read=chunk.batch.reads
        )

    def gradients(self, chunk: AttributionChunk, run: SegmentedRun, factors: Sequence[float] | None = None) -> Gradients:
        """The metric's gradient with respect to every receiver behind the run's start, summed over its rows.

        Args:
            factors: what each row counts; None: 1. Length C.
        """
        into = self._readout(chunk, run.residual).into
        if factors is not None:
            into = into * into.new_tensor(factors)[:, None, None, None]
        gradients = Gradients(self.components, chunk.differences.tokens, at_tokens(into, chunk.differences.tokens))
        for step in run.backward(into):
            gradients.add(step)
        self.count_backward(chunk, run)
        return gradients

    def count_backward(self, chunk: AttributionChunk, run: SegmentedRun) -> None:
        part = (self.graph.n_layers - run.start[0]) / self.graph.n_layers
        self.cost.backward_runs += part * run.residual.shape[0] * chunk.batch.n_examples / len(self.examples)

    # --- scores ------------------------------------------------------------------------------------------------------

    def empty_scores(self) -> Float[Tensor, "R S"]:
        return torch.zeros(self.graph.n_receivers, self.graph.n_senders, dtype=torch.float64, device=self.components.device)

    def finish(self, scores: Float[Tensor, "R S"], n_rows: int = 1) -> Float[np.ndarray, "R S"]:
        """The mean over examples and rows; NaN where the graph has no edge."""
        mean = (self.components.agreed(scores) / (len(self.examples) * n_rows)).cpu().numpy()
        return np.where(self.graph.edge_mask, mean, np.nan)

    def edges_at_full(self) -> Float[np.ndarray, "R S"]:
        """Scores with the gradient at the clean run."""
        scores = self.empty_scores()
        for chunk in self.chunks():
            add_scores(scores, self.graph, chunk.differences, self.gradients(chunk, chunk.clean), self.groups)
            del chunk  # before the next is made ready
        return self.finish(scores)

    def edges_between(self, points: PathPoints) -> Float[np.ndarray, "R S"]:
        """Scores with the gradient averaged over points between ablated and clean embeddings; sets `path_sum`."""
        scores, ends = self.empty_scores(), []
        for chunk in self.chunks():
            run = self.interpolated(chunk, self.groups[0], points.shares)
            ends.append(self._change_of_embedding(chunk, run, points))
            add_scores(scores, self.graph, chunk.differences, self.gradients(chunk, run, points.factors), self.groups)
            del run, chunk
        return self._add_up(self.finish(scores, len(points.shares)), ends, points)

    def edges_between_activations(self, points: PathPoints, of_embedding: PathPoints) -> Float[np.ndarray, "R S"]:
        """Scores of the edges out of each place with the gradient averaged over points between its ablated and clean output.

        Sets `path_sum`.

        Args:
            of_embedding: the points between the ablated and the clean embedding; as many.
        """
        scores, ends = self.empty_scores(), []
        for chunk in self.chunks(len(self.groups)):
            for group in self.groups:
                first = group is self.groups[0]
                taken = of_embedding if first else points
                run = self.interpolated(chunk, group, taken.shares)
                if first:
                    ends.append(self._change_of_embedding(chunk, run, taken))
                add_scores(scores, self.graph, chunk.differences, self.gradients(chunk, run, taken.factors), [group])
                self.bar.update(1)
                del run
            del chunk
        return self._add_up(self.finish(scores, len(points.shares)), ends, of_embedding)

    def _change_of_embedding(self, chunk: AttributionChunk, run: SegmentedRun, points: PathPoints) -> Float[Tensor, "B"]:
        """Metric with the embedding ablated minus that of the clean run, example by example."""
        if 0.0 in points.shares:
            ablated = run.residual[points.shares.index(0.0)][None]
        else:
            ablated = self.interpolated(chunk, self.groups[0], (0.0,), gradients=False).residual
        return (self._readout(chunk, ablated).values - self._readout(chunk, chunk.clean.residual).values)[0].double()

    def _add_up(
        self, scores: Float[np.ndarray, "R S"], ends: Sequence[Float[Tensor, "B"]], points: PathPoints
    ) -> Float[np.ndarray, "R S"]:
        change = torch.cat(list(ends))
        total = float(np.nansum(scores[:, : self.groups[0].stop]))
        self.path_sum = PathSum(total, float(change.mean()), float(change.abs().mean()), len(points.shares))
        return scores

    def _readout(self, chunk: AttributionChunk, residual: Float[Tensor, "C B T D"]) -> MetricGradient:
        return readout(self.components, residual, chunk.batch, self.metric, chunk.full_logprobs)


def _check(model: Model, ablation: Ablation, metric: Metric, gradient: Gradient, name: str) -> Components:
    """The model's components, if it, the ablation and the metric can be attributed."""
    components = gradients_of(model, ablation, metric, name)
    if gradient.at_full and metric.zero_at_full:
        raise BadSetting(
            f"algorithm '{name}' takes its gradient at the full model, where '{metric.name}' is at its maximum "
            "and the gradient is 0: use metric=logit_diff or metric=log_prob, or an algorithm that takes gradients elsewhere, "
            "such as eap_ig"
        )
    return components
