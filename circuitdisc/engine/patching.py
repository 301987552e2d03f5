"""Patching: run a model as a graph. What discovery algorithms and scores ask; they never touch a model's modules.

    patching = Patching(model, ablation, task.train)
    values = patching.evaluate(task.heldout, {"circuit": circuit.mask}, [metric])   # metric values, example by example
    removal = patching.removal(task.train, mask, metric, first=...)                 # cut edges one after the other

Shape letters: B examples, C rows (candidates), N readings, W columns of the unembedding, R receivers, S senders.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import kept_heads
from circuitdisc.engine.backends import runner
from circuitdisc.engine.chunk import Chunk, n_examples_of
from circuitdisc.engine.evaluate import Keep, Values, evaluate, n_logits, of_residual
from circuitdisc.engine.head_run import head_circuit, head_logits
from circuitdisc.engine.memory import (
    COPIES_OF_LOGITS,
    COPIES_OF_SENDERS,
    bytes_per_token,
    examples_that_fit,
    parse_memory,
    rows_in,
)
from circuitdisc.engine.prepared import fit_ablation, prepare
from circuitdisc.engine.ranks import across, gathered, largest_share, ranks, shared
from circuitdisc.engine.selfcheck import verify
from circuitdisc.errors import BadSetting
from circuitdisc.files import size_words
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example


@dataclass
class Cost:
    """What a search or a score has cost, in units that compare across machines.

    Args:
        model_runs: examples x runs of the whole model (clean, corrupted, or hook-based), divided by the examples.
        circuit_runs: runs of a circuit from the embedding on.
        candidates: candidate circuits whose metric was measured, incremental or not.
        node_evaluations: heads and MLPs computed, each on all tokens of all examples; a part of the tokens counts as a part.
        backward_runs: examples x backward passes through the whole model, divided by the examples.
    """

    model_runs: float = 0.0
    circuit_runs: int = 0
    candidates: int = 0
    node_evaluations: float = 0.0
    backward_runs: float = 0.0
    seconds: float = 0.0

    def add(self, other: "Cost") -> None:
        """Count what another search has cost, too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Patching:
    """One model under one ablation.

    Args:
        model: the model.
        ablation: what cut edges carry.
        reference: the examples that the ablation learns from, as `mean` averages over them: the train split, also when held-out
            examples are scored.
        memory: budget for activations, as `8GiB`; examples and candidates are batched to fit.
        padding_side: `right` or `left`; the results do not depend on it.

    Raises:
        BadModel: the cut model is not (or no longer) the module that it was made of.
    """

    def __init__(
        self,
        model: Model,
        ablation: Ablation,
        reference: Sequence[Example],
        *,
        memory: str | int = "4GiB",
        padding_side: str = "right",
    ) -> None:
        verify(model, reference)
        self.model, self.ablation, self.padding_side = model, ablation, padding_side
        self.graph = model.graph
        self.budget = parse_memory(memory)
        self.cost = Cost()
        chunk_size = self._chunk_size(reference) if reference else 1
        self.fitted = fit_ablation(model, ablation, reference, chunk_size, self.cost)

    def _chunk_size(self, examples: Sequence[Example]) -> int:
        return examples_that_fit(self.model, self.budget // 2, max(len(example) for example in examples))

    def chunk_bytes(self, examples: Sequence[Example]) -> int:
        """What one chunk of them takes while circuits run on it."""
        return min(self._chunk_size(examples), len(examples)) * max(map(len, examples)) * bytes_per_token(self.model)

    def chunks(self, examples: Sequence[Example]) -> Iterator[Chunk]:
        """The examples made ready, as many at a time as fit."""
        self.cost.model_runs += 1 + self.ablation.method.runs_per_example
        n_tokens = sum(map(len, examples))
        for chunk in prepare(self.model, self.ablation, examples, self.fitted, self._chunk_size(examples), self.padding_side):
            chunk.weight = chunk.n_tokens / n_tokens
            yield chunk

    def shares(self, examples: Sequence[Example]) -> Iterator[Chunk]:
        """The same for values that are then gathered: of each chunk this rank's share (`ranks.py`)."""
        if ranks().n == 1:
            yield from self.chunks(examples)
            return
        self.cost.model_runs += 1 + self.ablation.method.runs_per_example
        size, n_tokens = self._chunk_size(examples), sum(map(len, examples))
        for first in range(0, len(examples), size):
            share, mine = shared(examples[first : first + size])
            for chunk in prepare(self.model, self.ablation, mine, self.fitted, size, self.padding_side):
                chunk.share, chunk.weight = share, sum(map(len, examples[first : first + size])) / n_tokens
                yield chunk

    # --- whole circuits ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        examples: Sequence[Example],
        masks: Mapping[str, Bool[np.ndarray, "R S"]],
        metrics: Sequence[Metric],
        on_progress: Callable[[int], object] | None = None,
        keep: Keep | None = None,
    ) -> Values:
        """Metric values of several circuits, example by example.

        Args:
            masks: name -> edge mask.
            on_progress: called with 1 after each circuit of each chunk.
            keep: as in `evaluate`: what is finished is kept with it, and taken over.

        Returns:
            circuit name -> metric name -> values. [B]
        """
        variants = {name: partial(self.circuit_logits, mask=mask) for name, mask in masks.items()}
        return evaluate(self.shares(examples), variants, metrics, on_progress, keep)

    def n_chunks(self, examples: Sequence[Example]) -> int:
        """How many chunks `evaluate` will go through."""
        return -(-len(examples) // self._chunk_size(examples))

    @torch.no_grad()
    def circuit_logits(self, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> Float[Tensor, "N V"]:
        """Logits of the whole vocabulary at the readings when a circuit runs."""
        self.cost.circuit_runs += 1
        if self.ablation.target == "pattern":
            return self._pattern_logits(chunk, mask)
        logits, node_evaluations = runner(self.model).circuit(chunk, mask)
        self.cost.node_evaluations += chunk.weight * node_evaluations
        return logits

    def _pattern_logits(self, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> Float[Tensor, "N V"]:
        """A cut attention pattern is a matter of whole heads: only head circuits can be run so."""
        kept = kept_heads(self.graph, mask)
        if not (head_circuit(self.graph, kept).mask == mask).all() or not self.model.can("patterns"):
            raise BadSetting("ablation.target=pattern runs head circuits of models with fast components alone")
        self.cost.node_evaluations += chunk.weight * self.graph.n_senders
        return head_logits(self.model.components, self.graph, chunk, kept, "pattern")[0]

    @torch.no_grad()
    def head_logits(
        self, chunk: Chunk, kept: Bool[np.ndarray, "L H"], layer: int = 0, before: Float[Tensor, "B T D"] | None = None
    ) -> tuple[Float[Tensor, "N V"], list[Float[Tensor, "B T D"]]]:
        """Logits of the whole vocabulary at the readings when only these heads are kept.

        Args:
            before: the residual before `layer` under the same heads, to go on from; None starts at the embedding.

        Returns:
            The logits, and the residual before each layer from `layer` on; none of a model that only runs as a whole.
        """
        if not self.model.can("partial runs"):
            return self.circuit_logits(chunk, head_circuit(self.graph, kept).mask), []
        n_nodes = (self.graph.n_layers - layer) * (self.graph.n_heads + self.graph.has_mlp)
        self.cost.node_evaluations += chunk.weight * n_nodes
        return head_logits(self.model.components, self.graph, chunk, kept, self.ablation.target, layer, before)

    # --- edges cut one after the other -------------------------------------------------------------------------------

    def hold(self, examples: Sequence[Example], copies: int = COPIES_OF_SENDERS) -> list[Chunk]:
        """All examples made ready and held in memory, for a search.

        Args:
            copies: of what all senders write, at most at once.

        Raises:
            BadSetting: they do not fit the budget.
        """
        self._check_fits(len(examples), self.hold_bytes(examples, copies))
        return list(self.chunks(examples))

    def hold_share(self, examples: Sequence[Example], copies: int = COPIES_OF_SENDERS) -> list[Chunk]:
        """The same for values that are then gathered, as those of `Removal` are: this rank's share (`ranks.py`).

        Raises:
            BadSetting: the largest share does not fit the budget.
        """
        n = largest_share(len(examples))
        self._check_fits(n, self.hold_bytes(examples, copies) * n // len(examples))
        share, mine = shared(examples)
        chunks = list(self.chunks(mine))
        if share is not None:
            for chunk in chunks:
                chunk.share = share
        return chunks

    def hold_bytes(self, examples: Sequence[Example], copies: int = COPIES_OF_SENDERS) -> int:
        """What holding all examples for a search takes."""
        copies -= self.ablation.method.carries_alike(examples)
        return len(examples) * max(len(example) for example in examples) * bytes_per_token(self.model, copies)

    def _check_fits(self, n: int, needed: int) -> None:
        if needed > self.budget:
            raise BadSetting(
                f"a search on {n} examples needs about {size_words(needed)} for activations, over the budget "
                f"of {size_words(self.budget)}: raise memory=, or take fewer examples (task.n=)"
            )

    def measure(self, chunks: Sequence[Chunk], mask: Bool[np.ndarray, "R S"], metric: Metric) -> float:
        """Mean metric of a circuit over examples held in memory."""
        run = self.removal(chunks, mask, metric, first=self.graph.n_receivers - 1)
        run.close()
        self.cost.candidates += 1
        return run.value

    def ends(self, chunks: Sequence[Chunk], metric: Metric, start: Bool[np.ndarray, "R S"]) -> tuple[float, float, float]:
        """Mean metric of the full model, the empty circuit and a third one, over examples held in memory."""
        full = self.graph.edge_mask
        whole, nothing = (self.measure(chunks, mask, metric) for mask in (full, np.zeros_like(full)))
        return whole, nothing, whole if start is full else self.measure(chunks, start, metric)

    def removal(
        self,
        chunks: Sequence[Chunk],
        mask: Bool[np.ndarray, "R S"],
        metric: Metric,
        first: int,
        *,
        accepts: bool = True,
        beside: Bool[np.ndarray, "R S"] | None = None,
    ) -> "Removal":
        """Start cutting edges from a circuit; see `Removal`."""
        return Removal(self, chunks, mask, metric, first, accepts, beside)


class Removal:
    """Cut edges one after the other and measure the metric, on all examples.

    Args:
        mask: the circuit to start from.
        first: index of the first (lowest) receiver that will be visited. Cuts are accepted from the last receiver backwards,
            so that the senders of a receiver have not changed when it is visited.
        accepts: False if no cut will be accepted: what that would write anew is then not planned for.
        beside: edges outside the circuit, into nodes with a path to `logits`, that are tried, too: each by adding it.
    """

    def __init__(
        self,
        patching: Patching,
        chunks: Sequence[Chunk],
        mask: Bool[np.ndarray, "R S"],
        metric: Metric,
        first: int,
        accepts: bool,
        beside: Bool[np.ndarray, "R S"] | None = None,
    ) -> None:
        self.patching, self.chunks, self.metric = patching, chunks, metric
        self.mask, self.share = mask.copy(), chunks[0].share
        model = patching.model
        self.parts = [runner(model).removal(chunk, mask, first, beside) for chunk in chunks]
        patching.cost.circuit_runs += 1
        outputs = [part.end() for part in self.parts]
        self.value = self._means(outputs)[0]
        self.start_values: Float[np.ndarray, "B"] = self._examples(outputs)[0]
        self._tried: list[float] = []
        self._cuts: tuple[int, list[int]] = (0, [])
        self.held_bytes = sum(part.held_bytes(accepts) for part in self.parts)

    def row_size(self, receiver: int) -> tuple[int, int]:
        """What trying one cut of an edge into `receiver` takes at most: bytes on all examples, and tokens that change."""
        model = self.patching.model
        sizes = [part.row_size(receiver) for part in self.parts]
        logits = COPIES_OF_LOGITS * n_logits(model, self.chunks, self.metric) * max(4, model.dtype.itemsize)
        return logits + sum(size for size, _ in sizes), max(n_changed for _, n_changed in sizes)

    def planned_bytes(self, receiver: int, n_rows: int) -> int:
        """What trying so many cuts of edges into `receiver` takes, with all that is held."""
        return self.held_bytes + n_rows * self.row_size(receiver)[0]

    def most_rows(self, receiver: int) -> int:
        """How many cuts of edges into `receiver` are tried at once beside what is held."""
        model = self.patching.model
        if not model.can("partial runs"):
            return 1
        most = rows_in(model, self.patching.budget - self.held_bytes, *self.row_size(receiver))
        return across(min, most, self.share)

    def try_cuts(self, receiver: int, senders: list[int], spared: Sequence[bool] | None = None) -> list[float]:
        """The metric when edges into `receiver` are cut: entry i with edge i cut, and those before it that are not spared.

        Args:
            spared: False for edges that are cut in the entries behind their own, too; None: all of them are.
        """
        spares = np.zeros(len(senders), dtype=bool) if spared is None else np.array(spared)
        self._tried = self._means([part.try_cuts(receiver, senders, spares) for part in self.parts])
        self._cuts = (receiver, senders)
        self.patching.cost.candidates += len(senders)
        return self._tried

    def accept(self, cuts: list[int]) -> None:
        """Cut some of the candidates just tried for good.

        Args:
            cuts: their places, in order: all that were not spared up to the last one, which may itself have been.
        """
        receiver, senders = self._cuts
        for part in self.parts:
            part.accept(cuts)
        if cuts:
            self.mask[receiver, [senders[index] for index in cuts]] = False
            self.value = self._tried[cuts[-1]]

    def drop(self, receivers: list[int]) -> None:
        """Cut every edge into receivers whose node no longer reaches `logits`."""
        for part in self.parts:
            part.drop(receivers)
        self.mask[receivers] = False

    def close(self) -> None:
        """Add up what it cost."""
        parts = zip(self.chunks, self.parts, strict=True)
        self.patching.cost.node_evaluations += sum(chunk.weight * part.node_evaluations for chunk, part in parts)

    @torch.no_grad()
    def each_without(self, receiver: int, senders: list[int]) -> Float[np.ndarray, "P B"]:
        """Metric values, example by example, with one edge into `receiver` cut, for each of these senders."""
        spared = np.ones(len(senders), dtype=bool)
        self.patching.cost.candidates += len(senders)
        return self._examples([part.try_cuts(receiver, senders, spared) for part in self.parts])

    def _means(self, outputs: list[Float[Tensor, "C N X"]]) -> list[float]:
        """Mean metric over all examples, for every row."""
        sums = gathered(torch.stack([values.sum(-1) for values in self._values(outputs)]), self.share, "sums of rows")
        return (sums.sum(0) / n_examples_of(self.chunks)).tolist()

    def _examples(self, outputs: list[Float[Tensor, "C N X"]]) -> Float[np.ndarray, "C B"]:
        """The metric of every row, example by example."""
        return gathered(torch.cat(self._values(outputs), dim=1), self.share, "rows", axis=1).cpu().numpy()

    @torch.no_grad()
    def _values(self, outputs: list[Float[Tensor, "C N X"]]) -> list[Float[Tensor, "C B"]]:
        """The metric of every row on each chunk, from final residuals (or, hook-based, from logits)."""
        model = self.patching.model
        return [
            of_residual(model, chunk, output, self.metric).double() for output, chunk in zip(outputs, self.chunks, strict=True)
        ]
