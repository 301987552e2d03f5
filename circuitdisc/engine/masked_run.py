"""The run of a soft mask: every edge carries a share of its sender's live value, with gradients to the mask.

    input of receiver r = constants + sum of ablated senders before r + sum over s of m[r, s] * (live_s - ablated_s)

With a mask of zeros and ones this is the run of a circuit. The weights stay as they are; what each sender writes is computed
from what its receivers read under the same mask, so that the gradient to m[r, s] goes through all that follows r.

What the senders write (live minus ablated) is kept once, in one buffer [S, tokens, D] that the run fills from the embedding
on; what a layer's receivers read is one matrix product of the mask with the buffer's first rows, and its backward pass two.

Shape letters: S senders, R receivers, n receivers read at once, B examples, T positions, X = B T D, D residual width,
H heads, K head width, N readings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.chunk import Chunk, n_examples_of
from circuitdisc.engine.evaluate import of_columns
from circuitdisc.engine.gradients.memory import HEAP_HOLES, Shapes, segment_bytes
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.prepared import prepare
from circuitdisc.engine.ranks import shared, summed
from circuitdisc.engine.requirements import gradients_of
from circuitdisc.errors import BadSetting
from circuitdisc.files import size_words
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric, wide
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example


class _Mix(torch.autograd.Function):
    """Rows of the mask times what the first senders write. The buffer is shared by all reads and never copied."""

    @staticmethod
    def forward(ctx: Any, rows: Float[Tensor, "n s"], buffer: Float[Tensor, "S X"], *written: Tensor) -> Float[Tensor, "n X"]:
        """`written` holds the senders' values again, group by group: the buffer's rows as autograd knows them."""
        ctx.save_for_backward(rows)
        ctx.buffer, ctx.sizes = buffer[: rows.shape[1]], [len(group) for group in written]  # later rows alone change
        return rows @ ctx.buffer

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "n X"]) -> tuple[Tensor | None, ...]:
        (rows,), (gradient,) = ctx.saved_tensors, gradients
        return gradient @ ctx.buffer.T, None, *(rows.T @ gradient).split(ctx.sizes)


class MaskedRun:
    """One run of one soft mask on one chunk.

    Args:
        chunk: of its clean values only those of the embedding's senders are read.
        mask: the share of each edge; a single row serves all receivers (a mask on senders). [R, S] or [1, S]
    """

    def __init__(self, components: Components, graph: ComputationGraph, chunk: Chunk, mask: Float[Tensor, "R S"]) -> None:
        assert chunk.frame is not None, "components need a frame"
        self.components, self.graph, self.chunk, self.frame = components, graph, chunk, chunk.frame
        self.mask = mask.to(components.dtype)
        self.shape = chunk.clean.shape[1:]
        self.buffer = chunk.clean.new_empty(graph.n_senders, self.shape.numel())
        self.written: list[Float[Tensor, "s X"]] = []
        self.n_written = 0
        self.residual = self._run()

    def _run(self) -> Float[Tensor, "B T D"]:
        components, graph = self.components, self.graph
        self._write(self.chunk.clean[: int(graph.n_upstream[0])])
        for layer in range(graph.n_layers):
            heads = self._heads(layer)
            if graph.has_mlp and graph.parallel:  # the MLP reads what the heads read
                mlp = self._mlp(layer)
                self._write(heads)
                self._write(mlp)
                continue
            self._write(heads)
            if graph.has_mlp:
                self._write(self._mlp(layer))
        return self._read([graph.n_receivers - 1], components.constant_before(graph.n_layers))[0]

    def _write(self, live: Float[Tensor, "s B T D"]) -> None:
        stop = self.n_written + len(live)
        difference = (live - self.chunk.ablated[self.n_written : stop]).flatten(1)
        self.buffer[self.n_written : stop] = difference.detach()
        self.written.append(difference)
        self.n_written = stop

    def _read(self, receivers: list[int], constant: Float[Tensor, "D"]) -> Float[Tensor, "n B T D"]:
        """What receivers at the same place in the residual stream read."""
        rows = self.mask[receivers[0] : receivers[-1] + 1] if self.mask.shape[0] > 1 else self.mask
        live: Any = _Mix.apply(rows[:, : self.n_written], self.buffer, *self.written)
        return live.unflatten(1, self.shape) + (constant + self.chunk.ablated_before(self.n_written))

    def _heads(self, layer: int) -> Float[Tensor, "H B T D"]:
        components, graph = self.components, self.graph
        H, heads = graph.n_heads, range(graph.n_heads)
        first = graph.receiver_index[f"a{layer}.h0<q>"]  # all q, then all k, then all v
        x = self._read(list(range(first, first + 3 * H)), components.constant_before(layer))
        inputs = x.split(H) if len(x) > 1 else (x, x, x)
        q, k, v = (
            components.read(layer, qkv, heads, read[:, None], self.frame)
            for qkv, read in zip(("q", "k", "v"), inputs, strict=True)
        )
        pattern = components.pattern(layer, heads, q, k, self.frame)
        return components.head_output(layer, heads, pattern @ v, self.frame)[:, 0]

    def _mlp(self, layer: int) -> Float[Tensor, "1 B T D"]:
        receiver = self.graph.receiver_index[f"m{layer}"]
        return self.components.mlp(layer, self._read([receiver], self.components.constant_before(layer, mlp=True)))


def masked_values(
    components: Components, graph: ComputationGraph, chunk: Chunk, mask: Float[Tensor, "R S"], metric: Metric
) -> Float[Tensor, "B"]:
    """The metric of a soft mask's run, example by example, with gradients to the mask."""
    residual = MaskedRun(components, graph, chunk, mask).residual[chunk.batch.reads]
    return of_columns(chunk.batch, chunk.labels, lambda columns: wide(components.unembed(residual[None], columns)[0]), metric)


@dataclass
class Measured:
    """The mean metric of a mask on one mini-batch, and its gradient with respect to the mask."""

    value: float
    gradient: Float[Tensor, "R S"]


class MaskedRuns:
    """Examples made ready for runs of soft masks, in mini-batches that are held in memory.

    Args:
        metric: what is measured.
        batch: examples in a mini-batch. It is run in as few pieces as fit the budget; the pieces' gradients are added up.
        memory: budget for activations, as `8GiB`.
        name: of the algorithm, for messages.

    Raises:
        BadSetting: the model has no fast components, the ablation replaces patterns, the metric has no gradient, or the
            examples do not fit the budget.
    """

    def __init__(
        self,
        model: Model,
        ablation: Ablation,
        examples: Sequence[Example],
        metric: Metric,
        *,
        batch: int,
        memory: str | int = "4GiB",
        name: str = "masked run",
    ) -> None:
        self.components = gradients_of(model, ablation, metric, name)
        self.graph, self.metric, self.n_examples = model.graph, metric, len(examples)
        piece = examples_in_piece(
            Shapes.of(self.components, metric), self.graph, ablation, examples, batch, parse_memory(memory)
        )
        patching = Patching(model, ablation, examples, memory=memory)
        self.cost = patching.cost
        self.cost.model_runs += 1 + ablation.method.runs_per_example
        self.batches: list[list[Chunk]] = []
        n_embed = int(self.graph.n_upstream[0])
        for first in range(0, len(examples), batch):
            share, mine = shared(examples[first : first + batch])
            chunks = prepare(model, ablation, mine, patching.fitted, piece)
            # no other clean value is needed: let go of them
            self.batches.append([replace(chunk, clean=chunk.clean[:n_embed].clone(), share=share) for chunk in chunks])

    def measure(self, batch: int, mask: Float[Tensor, "R S"]) -> Measured:
        """One forward and one backward pass of a mask on one mini-batch.

        Args:
            batch: its number, from 0 to `len(self.batches) - 1`.
            mask: the share of each edge, or of each sender. [R, S] or [1, S]
        """
        leaf, total = mask.detach().requires_grad_(), 0.0
        chunks = self.batches[batch]
        share, n = chunks[0].share, n_examples_of(chunks)
        gradient = torch.zeros_like(mask)
        for chunk in chunks:
            mean = masked_values(self.components, self.graph, chunk, leaf, self.metric).sum() / n
            (of_piece,) = torch.autograd.grad(mean, leaf)
            gradient += of_piece
            total += float(mean.detach())
        part = n / self.n_examples
        self.cost.circuit_runs += 1
        self.cost.node_evaluations += part * (self.graph.n_senders - int(self.graph.n_upstream[0]))
        self.cost.backward_runs += part
        whole = summed(torch.tensor(total, dtype=torch.float64), share, "means of a mask")
        return Measured(float(whole), self.components.agreed(summed(gradient, share, "gradients of a mask")))


def piece_bytes(shapes: Shapes, graph: ComputationGraph, n_examples: int, length: int, n_readings: int) -> int:
    """What one forward and backward pass of a mask takes, in bytes.

    Args:
        n_examples, length: B and T.
        n_readings: readings an example.
    """
    spec, tokens = shapes.spec, n_examples * length
    # before its norm, behind it, and (root mean square alone) once more in float32 on the way
    copies = 2 if spec.norm != "rms" else 4
    inputs = graph.n_receivers * spec.d_model * shapes.itemsize * copies
    # live values, the buffer, and the gradients with respect to it, with one layer's in passing
    senders = 4 * graph.n_senders * spec.d_model * shapes.itemsize
    step = 3 * spec.n_heads * spec.d_model * shapes.wide * 3
    columns = spec.d_vocab_out if shapes.all_columns else 8
    logits = n_examples * n_readings * columns * (shapes.itemsize + 4 * shapes.wide)
    return tokens * (spec.n_layers * segment_bytes(shapes, length) + inputs + senders + step) + logits


def examples_in_piece(
    shapes: Shapes, graph: ComputationGraph, ablation: Ablation, examples: Sequence[Example], batch: int, budget: int
) -> int:
    """How many examples of a mini-batch are run at once: as many as fit beside what is held of all examples.

    Raises:
        BadSetting: not even one fits.
    """
    spec, length = shapes.spec, max(len(example) for example in examples)
    n_readings = max(len(example.positions) for example in examples)
    values = 0 if ablation.method.constant else graph.n_senders
    sums = 2 * spec.n_layers + 2  # of the ablated values before each place, and the embedding
    held = len(examples) * length * spec.d_model * shapes.itemsize * (values + sums)
    held += len(examples) * n_readings * spec.d_vocab_out * shapes.wide  # the full model's log-probabilities
    holes = HEAP_HOLES if shapes.on_cpu else 1.0

    def needed(n: int) -> int:
        return held + int(holes * piece_bytes(shapes, graph, n, length, n_readings))

    if needed(1) > budget:
        raise BadSetting(
            f"masks on {len(examples)} examples of up to {length} tokens need about {size_words(needed(1))} for "
            f"activations, over the budget of {size_words(budget)}: raise memory=, or take fewer examples (task.n=)"
        )
    return max(n for n in range(1, batch + 1) if n == 1 or needed(n) <= budget)
