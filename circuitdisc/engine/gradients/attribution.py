"""Attribution: estimate what every edge is worth from a few forward and backward passes.

    score(s -> r) = sum over positions of (ablated_s - clean_s) . g_r,   g_r = d metric / d input of r

averaged over examples. It estimates metric(edge cut) - metric(full): negative where the edge helps. The algorithms differ in
where the gradient is taken; all use the same two things, `Differences` and `Gradients`, and none holds a buffer of
examples x positions x senders x residual width.

Shape letters: C rows (points at which gradients are taken), B examples, T positions, D residual width, S senders, R receivers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
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
from circuitdisc.engine.gradients.memory import Gradient, Shapes, chunk_bytes, examples_in_budget
from circuitdisc.engine.gradients.path_points import PathPoints, PathSum
from circuitdisc.engine.gradients.rules import RULES
from circuitdisc.engine.gradients.segments import MetricGradient, SegmentedRun, Write, log_probabilities, readout
from circuitdisc.engine.gradients.unit_sums import SpanSums, UnitSums
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.patching import Cost
from circuitdisc.engine.ranks import Share, gathered, largest_share, ranks, summed, turns
from circuitdisc.engine.requirements import gradients_of
from circuitdisc.errors import BadSetting
from circuitdisc.files import size_words
from circuitdisc.metrics import Metric
from circuitdisc.models.backward import PLAIN
from circuitdisc.models.components import Components
from circuitdisc.models.frame import Frame
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.stats import Partition
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
        rule: of the backward pass: a name in `RULES`.

    Raises:
        UnknownName: there is no such rule.
        BadSetting: the metric's gradient vanishes, the ablation replaces patterns, the model has no fast components, or not
            even one example fits the budget; or the rule has no backward pass for its MLPs.
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
        rule: str = "plain",
    ) -> None:
        check_choice("rule", rule, tuple(RULES))
        self.rule = RULES[rule]
        self.components = _check(model, ablation, metric, gradient, name)
        if self.rule.changes_mlps and any(block.experts is not None for block in self.components.weights.layers):
            raise BadSetting(f"rule={rule} has no backward pass for mixtures of experts: use rule=plain for {model.name}")
        self.model, self.graph, self.ablation = model, model.graph, ablation
        self.examples, self.metric, self.name, self.progress = examples, metric, name, progress
        self.groups = sender_groups(self.graph)
        self.cost = Cost()
        self.path_sum: PathSum | None = None
        self.units: UnitSums | None = None
        self.n_rows = 1
        self.gradient = gradient
        self.memory = parse_memory(memory)
        self.chunk_size = examples_in_budget(
            Shapes.of(self.components, metric), self.memory, examples, gradient, ablation.method.averages
        )
        self.source = PlaceSource(model, examples, self.chunk_size, self.cost)
        self.fitted = ablation.method.fit(self.source)
        if self.components.device.type != "cpu":  # where a chunk may hold all examples, and a part of it is work enough
            self.chunk_size = min(self.chunk_size, largest_share(len(examples)))

    def keep_units(self, over: Partition) -> str:
        """Keep also what each unit of the examples adds to the scores of edges, if that fits beside a chunk.

        Returns:
            Why it is not kept; empty if it is.
        """
        if why := self._no_room(over.n_drawn, over.drawn):
            return why
        self.units = UnitSums(over.of, self.edges, self.components.device)
        return ""

    def keep_spans(self, of_tokens: Sequence[Int[np.ndarray, "T"]], n_spans: int) -> None:
        """Keep what each span of the prompts adds to the scores of edges.

        Args:
            of_tokens: the span of each token of each example. [B] [T]

        Raises:
            BadSetting: it does not fit beside a chunk.
        """
        if why := self._no_room(n_spans, "spans"):
            raise BadSetting(f"{self.name}: {why}: raise memory=, or name fewer roles")
        self.units = SpanSums(of_tokens, n_spans, self.edges, self.components.device)

    def _no_room(self, n: int, what: str) -> str:
        """Why the sums of so many units are not kept; empty if they are."""
        shapes, averages = Shapes.of(self.components, self.metric), self.ablation.method.averages
        room = self.memory - chunk_bytes(shapes, self.chunk_size, self.examples, self.gradient, averages)
        needed = UnitSums.bytes_of(n, self.graph)
        if needed <= room:
            return ""
        return f"the scores of {n:,} {what} take {size_words(needed)}, and the budget has room for {size_words(max(0, room))}"

    def over_chunks(
        self,
        shape: tuple[int, ...],
        score: Callable[[AttributionChunk, Float[Tensor, "*X"]], Float[Tensor, "B"] | None],
        steps_per_chunk: int | None = None,
    ) -> tuple[Float[Tensor, "*X"], Float[Tensor, "B"]]:
        """Sums over the examples, which are made ready as many at a time as fit, with a progress bar.

        Ranks take the chunks in turn, and sums are added up in the chunks' order: on CPUs, where chunks do not depend on the
        number of ranks, that changes no bit.

        Args:
            shape: of the sums.
            score: (a chunk, zeros to add its sums to) -> values of its examples, or none.
            steps_per_chunk: how often `score` moves `self.bar` on for each chunk; None: it is moved on here.

        Returns:
            The sums, in float64, and the values of all examples, if there are any.
        """
        n_chunks, before = -(-len(self.examples) // self.chunk_size), (self.cost.model_runs, self.cost.backward_runs)
        n_rounds = -(-n_chunks // ranks().n)
        whole, values = self._zeros(shape), list[Tensor]()
        self.bar = progress_bar(n_rounds * (steps_per_chunk or 1), f"{self.name} on {self.model.name}", "step", self.progress)
        share: Share | None = None
        for share, index in turns(n_chunks):
            sums, of_examples = self._zeros(shape), self._zeros((0,))
            if index is not None:
                examples = self.examples[index * self.chunk_size : (index + 1) * self.chunk_size]
                chunk = self._prepare(collate(examples, device=self.components.device))
                if self.units is not None:
                    first = index * self.chunk_size
                    places = range(first, first + len(examples))
                    self.units.begin(places, chunk.differences.tokens, chunk.batch.clean.shape[1])
                given = score(chunk, sums)
                del chunk
                of_examples = of_examples if given is None else given
            for part in gathered(sums[None], share, "sums of a chunk"):
                whole += part
            values.append(gathered(of_examples, share, "values of a chunk"))
            if steps_per_chunk is None:
                self.bar.update(1)
        self.bar.close()
        everyone = None if share is None else Share(n_chunks)
        if self.units is not None:
            self.units.gather(self.components, everyone)
        spent = torch.tensor([self.cost.model_runs - before[0], self.cost.backward_runs - before[1]], dtype=torch.float64)
        spent = summed(spent, everyone, "costs of chunks").tolist()
        self.cost.model_runs = before[0] + spent[0] + 1 + self.ablation.method.runs_per_example
        self.cost.backward_runs = before[1] + spent[1]
        return whole, torch.cat(values)

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
            components, graph, frame, x, gradients=self.gradient.at_full, uncut=True, read=batch.reads, write=record, note=note,
            rule=self.rule,
        )  # fmt: skip
        residuals[graph.n_layers, HEADS] = clean.residual
        residuals[0, HEADS] = x
        full = log_probabilities(components, clean.residual, batch) if self.metric.zero_at_full else None
        prepared = differences(self.source, self.ablation, batch, record, self.fitted)
        return AttributionChunk(batch, frame, prepared, clean, full, residuals)

    # --- gradients ---------------------------------------------------------------------------------------------------

    def interpolated(
        self,
        chunk: AttributionChunk,
        group: SenderGroup,
        shares: Sequence[float],
        gradients: bool = True,
        write: Write | None = None,
        own_scales: bool = False,
    ) -> SegmentedRun:
        """The model run on from one place, whose senders write share * clean + (1 - share) * ablated: a row a share.

        Args:
            write: as `SegmentedRun` takes it.
            own_scales: norms that couple the heads of a layer have the scales of this run, of one row, and not the clean run's.
        """
        place = group.next_place(self.graph)
        clean = chunk.residuals[place]
        total = chunk.differences.total(group, clean.shape[1:])
        left = torch.tensor([1 - share for share in shares], dtype=clean.dtype, device=clean.device)
        x = clean + left[:, None, None, None] * total
        part = (self.graph.n_layers - place[0]) / self.graph.n_layers
        self.cost.model_runs += part * len(shares) * chunk.batch.n_examples / len(self.examples)
        return SegmentedRun(
            self.components,
            self.graph,
            self.components.frame(chunk.batch.is_token, chunk.batch.position_ids) if own_scales else chunk.frame,
            x,
            start=place,
            gradients=gradients,
            uncut=own_scales,
            read=chunk.batch.reads,
            write=write,
            rule=self.rule,
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

    @property
    def edges(self) -> tuple[int, int]:
        """The shape of sums for every edge."""
        return self.graph.n_receivers, self.graph.n_senders

    def _zeros(self, shape: tuple[int, ...]) -> Float[Tensor, "*X"]:
        return torch.zeros(shape, dtype=torch.float64, device=self.components.device)

    def finish(self, scores: Float[Tensor, "R S"], n_rows: int = 1) -> Float[np.ndarray, "R S"]:
        """The mean over examples and rows; NaN where the graph has no edge."""
        self.n_rows = n_rows
        mean = (self.components.agreed(scores) / (len(self.examples) * n_rows)).cpu().numpy()
        return np.where(self.graph.edge_mask, mean, np.nan)

    def edges_at_full(self) -> Float[np.ndarray, "R S"]:
        """Scores with the gradient at the clean run."""

        def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> None:
            add_scores(scores, self.graph, chunk.differences, self.gradients(chunk, chunk.clean), self.groups, self.units)

        return self.finish(self.over_chunks(self.edges, score)[0])

    def edges_between(self, points: PathPoints) -> Float[np.ndarray, "R S"]:
        """Scores with the gradient averaged over points between ablated and clean embeddings; sets `path_sum`."""

        def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> Float[Tensor, "B"]:
            run = self.interpolated(chunk, self.groups[0], points.shares)
            change = self.change_of_embedding(chunk, run, points)
            gradients = self.gradients(chunk, run, points.factors)
            add_scores(scores, self.graph, chunk.differences, gradients, self.groups, self.units)
            return change

        scores, changes = self.over_chunks(self.edges, score)
        return self.add_up(self.finish(scores, len(points.shares)), changes, len(points.shares))

    def edges_between_activations(self, points: PathPoints, of_embedding: PathPoints) -> Float[np.ndarray, "R S"]:
        """Scores of the edges out of each place with the gradient averaged over points between its ablated and clean output.

        Sets `path_sum`.

        Args:
            of_embedding: the points between the ablated and the clean embedding; as many.
        """

        def score(chunk: AttributionChunk, scores: Float[Tensor, "R S"]) -> Float[Tensor, "B"]:
            change = None
            for group in self.groups:
                taken = points if group is not self.groups[0] else of_embedding
                run = self.interpolated(chunk, group, taken.shares)
                change = self.change_of_embedding(chunk, run, taken) if change is None else change
                gradients = self.gradients(chunk, run, taken.factors)
                add_scores(scores, self.graph, chunk.differences, gradients, [group], self.units)
                del gradients
                self.bar.update(1)
                del run
            assert change is not None, "the first group is the embedding"
            return change

        scores, changes = self.over_chunks(self.edges, score, len(self.groups))
        return self.add_up(self.finish(scores, len(points.shares)), changes, len(of_embedding.shares))

    def change_of_embedding(self, chunk: AttributionChunk, run: SegmentedRun, points: PathPoints) -> Float[Tensor, "B"]:
        """Metric with the embedding ablated minus that of the clean run, example by example."""
        if 0.0 in points.shares:
            ablated = run.residual[points.shares.index(0.0)][None]
        else:
            ablated = self.interpolated(chunk, self.groups[0], (0.0,), gradients=False).residual
        return (self._readout(chunk, ablated).values - self._readout(chunk, chunk.clean.residual).values)[0].double()

    def add_up(
        self, scores: Float[np.ndarray, "R S"], change: Float[Tensor, "B"], n_points: int, into_logits: bool = False
    ) -> Float[np.ndarray, "R S"]:
        """The same scores; `path_sum` says how far some of them are from what ablating the embedding does.

        Under a rule of the backward pass scores are no slopes, and nothing is said.

        Args:
            change: of the metric by ablating the embedding, example by example.
            into_logits: it is the scores into `logits` that add up to it, and not those out of the embedding.
        """
        if self.rule == PLAIN:
            some, where = (
                (scores[-1], "into logits") if into_logits else (scores[:, : self.groups[0].stop], "out of the embedding")
            )
            sizes = float(change.mean()), float(change.abs().mean())
            self.path_sum = PathSum(float(np.nansum(some)), *sizes, n_points, where)
        return scores

    def _readout(self, chunk: AttributionChunk, residual: Float[Tensor, "C B T D"]) -> MetricGradient:
        return readout(self.components, residual, chunk.batch, self.metric, chunk.full_logprobs, self.rule)


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
