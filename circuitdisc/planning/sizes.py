"""What a run takes in memory and arithmetic, from the shapes of a model alone; its weights may be on torch's meta device.

Shape letters: B examples, T positions, N tokens (B * T), L layers, D residual width, H heads, K head width, R receivers,
S senders.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.engine.gradients.memory import CPU_TOKEN_ROWS, HEAP_HOLES, Gradient, Shapes, means_bytes, peak_bytes
from circuitdisc.engine.masked_run import piece_bytes
from circuitdisc.engine.memory import (
    COPIES_OF_LOGITS,
    COPIES_OF_SENDERS,
    COPIES_TO_PREPARE,
    CPU_BYTES_PER_SENDER,
    MOST_ROWS,
)
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example

MOST_LAYERS, MOST_TOKENS, MOST_EXAMPLES = 4096, 2**22, 1_000_000


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model, with any number of layers.

    Args:
        shapes: of the architecture.
        layer_weights, other_weights: numbers in a layer, and in all else (embedding, unembedding, norms).
        matrices: numbers that a token is multiplied with in a layer: of a mixture of experts those that it is sent to.
        split_embeddings: as the graph has them.
    """

    shapes: Shapes
    layer_weights: int
    other_weights: int
    matrices: int
    split_embeddings: bool

    @classmethod
    def of(cls, model: Model, metric: Metric, on_cpu: bool) -> "Sizes":
        """Those of a model with fast components."""
        shapes = replace(Shapes.of(model.components, metric), on_cpu=on_cpu)
        total = sum(weight.numel() for weight in model.module.parameters())
        spec = shapes.spec
        attention = spec.d_model * spec.d_head * 2 * (spec.n_heads + spec.n_kv_heads)
        mlp = (3 if shapes.gated else 2) * spec.d_model * shapes.d_mlp
        vocabulary = model.components.weights.W_E.numel()
        if not getattr(getattr(model.module, "config", None), "tie_word_embeddings", False):
            vocabulary += model.components.weights.W_U.numel()
        positions = model.components.weights.W_pos
        vocabulary += 0 if positions is None else positions.numel()
        a_layer = (total - vocabulary) // spec.n_layers
        return cls(shapes, a_layer, total - spec.n_layers * a_layer, attention + mlp, model.graph.split_embeddings)

    @property
    def n_layers(self) -> int:
        return self.shapes.spec.n_layers

    @property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return self.other_weights + self.n_layers * self.layer_weights

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.shapes.itemsize

    @property
    def graph(self) -> ComputationGraph:
        return self.shapes.spec.graph(self.split_embeddings)

    def with_layers(self, n: int) -> "Sizes":
        """The same width with another number of layers."""
        return replace(self, shapes=replace(self.shapes, spec=replace(self.shapes.spec, n_layers=n)))

    def split(self, n: int) -> "Sizes | None":
        """What each of n ranks has of the model when heads and MLP columns are split; None where heads do not divide."""
        spec = self.shapes.spec
        if spec.n_heads % n:
            return None
        own = replace(
            spec, n_heads=spec.n_heads // n, n_kv_heads=max(1, spec.n_kv_heads // n), d_vocab_out=-(-spec.d_vocab_out // n)
        )
        shapes = replace(self.shapes, spec=own, d_mlp=-(-self.shapes.d_mlp // n))
        return replace(
            self, shapes=shapes, layer_weights=-(-self.layer_weights // n), other_weights=-(-self.other_weights // n)
        )

    def operations(self, lengths: Sequence[int], n_readings: int) -> float:
        """Floating-point operations of a plain forward on prompts of these lengths: two a weight a token, scores and
        weighted values of attention, and the unembedding at the readings."""
        spec, tokens = self.shapes.spec, sum(lengths)
        attention = 4.0 * spec.n_heads * spec.d_head * sum(length * length for length in lengths)
        readout = 2.0 * n_readings * spec.d_model * spec.d_vocab_out
        return spec.n_layers * (2.0 * self.matrices * tokens + attention) + readout


@dataclass(frozen=True)
class Prompts:
    """What memory depends on of the examples: those of the search, and of both splits together.

    Args:
        n: search examples.
        length: the longest prompt, in tokens.
        n_readings: the most readings of an example.
        examples: of the search, for averages by group.
    """

    n: int
    length: int
    n_readings: int
    examples: tuple[Example, ...]

    def of_length(self, length: int) -> "Prompts":
        """As many prompts of another length."""
        return replace(self, length=length)

    def of_number(self, n: int) -> "Prompts":
        """Another number of such prompts."""
        return replace(self, n=n)

    @property
    def n_tokens(self) -> int:
        return self.n * self.length


Peak = Callable[[Sizes, Prompts, int], int]
"""(sizes, prompts, budget for activations) -> the most bytes beside the weights; with budget 0 the least it can do with."""


def sender_bytes(sizes: Sizes, n_tokens: int, copies: int) -> int:
    """Copies of what all senders write."""
    n_senders = 1 + sizes.split_embeddings + sizes.n_layers * (sizes.shapes.spec.n_heads + bool(sizes.shapes.d_mlp))
    return copies * n_senders * n_tokens * sizes.shapes.spec.d_model * sizes.shapes.itemsize


def chunk_size(sizes: Sizes, length: int, budget: int) -> int:
    """How many prompts are made ready at once (`examples_that_fit`, in half of the budget)."""
    n_tokens = budget // 2 // sender_bytes(sizes, 1, COPIES_OF_SENDERS)
    if sizes.shapes.on_cpu:
        n_tokens = min(n_tokens, CPU_BYTES_PER_SENDER // (sizes.shapes.spec.d_model * sizes.shapes.itemsize))
    return max(1, n_tokens // length)


def evaluation_peak(sizes: Sizes, prompts: Prompts, budget: int) -> int:
    """Runs of circuits, a chunk at a time (`Patching.chunk_bytes`), and logits of the whole vocabulary."""
    one = sender_bytes(sizes, prompts.length, COPIES_OF_SENDERS)
    n = min(prompts.n, chunk_size(sizes, prompts.length, budget))
    return n * (one + COPIES_OF_LOGITS * prompts.n_readings * sizes.shapes.spec.d_vocab_out * sizes.shapes.wide)


def attribution_chunk(sizes: Sizes, prompts: Prompts, budget: int, gradient: Gradient, means: int = 0) -> int:
    """How many examples an attribution takes at once (`examples_in_budget`); one where not even one fits."""
    shapes, n = sizes.shapes, prompts.n
    holes = HEAP_HOLES if shapes.on_cpu else 1.0
    if gradient.drops:
        n = 1
    if shapes.on_cpu:
        n = min(n, max(1, CPU_TOKEN_ROWS // (gradient.rows * prompts.length)))
    while n > 1 and holes * _gradient_bytes(sizes, prompts, n, gradient, means) > budget:
        n = max(1, int(n * 0.9))
    return n


def _gradient_bytes(sizes: Sizes, prompts: Prompts, n: int, gradient: Gradient, means: int) -> int:
    return peak_bytes(sizes.shapes, n, prompts.length, gradient, n_readings=prompts.n_readings, means=means)


def attribution_peak(gradient: Gradient, ablation: Ablation) -> Peak:
    """A forward and a backward pass of as many examples as fit."""

    def peak(sizes: Sizes, prompts: Prompts, budget: int) -> int:
        scope, means = ablation.method.averages, 0
        if scope is not None:
            means = means_bytes(sizes.shapes, prompts.examples, scope) * prompts.length // max(map(len, prompts.examples))
        n = attribution_chunk(sizes, prompts, budget, gradient, means)
        return _gradient_bytes(sizes, prompts, n, gradient, means)

    return peak


def removal_peak(sizes: Sizes, prompts: Prompts, budget: int) -> int:
    """All search examples made ready, a circuit's run that is kept, and as many candidates as fit (`Removal`). At most: that
    every receiver of a layer reads another input."""
    shapes, spec, tokens = sizes.shapes, sizes.shapes.spec, prompts.n_tokens
    D, K, H, L = spec.d_model, spec.d_head, spec.n_heads, spec.n_layers
    senders = sender_bytes(sizes, 1, 1) // shapes.itemsize  # numbers a token
    inputs = (2 * L + 1) * D + (L * (3 * H + bool(shapes.d_mlp)) + 1) * D  # as first read, and written anew
    kept = 5 * senders + (2 * L + 2) * D + inputs + 2 * 3 * L * H * K + 2 * L * H * prompts.length
    held = kept * tokens * shapes.itemsize + prompts.n * prompts.n_readings * spec.d_vocab_out * shapes.wide
    held = max(held, sender_bytes(sizes, tokens, COPIES_OF_SENDERS))
    row = removal_row(sizes, prompts)
    most = min(MOST_ROWS, max(0, budget - held) // row)
    if shapes.on_cpu:
        most = min(most, CPU_BYTES_PER_SENDER // (tokens * D * shapes.itemsize))
    return held + max(1, most) * row


def removal_row(sizes: Sizes, prompts: Prompts) -> int:
    """What trying one cut into the first layer takes at most: everything behind it runs again, at all tokens."""
    shapes, spec, N = sizes.shapes, sizes.shapes.spec, prompts.n_tokens
    D, K, H, L, M = spec.d_model, spec.d_head, spec.n_heads, spec.n_layers, shapes.d_mlp
    wide = 3 if shapes.itemsize >= 4 else 6
    mlp = 3 * D if M else 0
    heads = 3 * H * (D + K) + H * prompts.length + 2 * H * D
    passing = max(3 * M, M + wide * D, wide * H * D + 3 * H * K, 5 * H * K + 2 * H * prompts.length, 2 * H * D + D)
    logits = COPIES_OF_LOGITS * prompts.n * prompts.n_readings * spec.d_vocab_out * shapes.wide
    return shapes.itemsize * N * (6 * D + L * (mlp + heads) + passing) + logits


def heads_peak(sizes: Sizes, prompts: Prompts, budget: int) -> int:
    """All search examples made ready, the residual before every layer, and a run's own."""
    spec = sizes.shapes.spec
    residuals = 2 * (spec.n_layers + 1) * prompts.n_tokens * spec.d_model * sizes.shapes.itemsize
    return sender_bytes(sizes, prompts.n_tokens, COPIES_TO_PREPARE) + residuals


def masks_peak(batch: int, ablation: Ablation) -> Peak:
    """What is held of all examples, and a forward and a backward pass of a mini-batch (`examples_in_piece`)."""

    def peak(sizes: Sizes, prompts: Prompts, budget: int) -> int:
        shapes, graph = sizes.shapes, sizes.graph
        values = 0 if ablation.method.constant else graph.n_senders
        held = prompts.n_tokens * shapes.spec.d_model * shapes.itemsize * (values + 2 * shapes.spec.n_layers + 2)
        held += prompts.n * prompts.n_readings * shapes.spec.d_vocab_out * shapes.wide
        piece = piece_bytes(shapes, graph, 1, prompts.length, prompts.n_readings)
        n = max(1, min(batch, prompts.n, (budget - held) // piece))
        return held + piece_bytes(shapes, graph, n, prompts.length, prompts.n_readings)

    return peak


HOLDING = dict.fromkeys(("acdc", "exact", "bisect", "refine"), COPIES_OF_SENDERS)
HOLDING |= {"path_patching": COPIES_OF_SENDERS, "head_ablation": COPIES_TO_PREPARE}
"""Searches that hold all examples at once, and how many copies of what all senders write (`Patching.hold`)."""
RUNS_NOTHING = ("random", "from_file")
REMOVES = ("acdc", "exact", "bisect", "refine", "path_patching")
MASKS = ("edge_pruning", "subnetwork_probing", "soft_topk")
GRADIENTS: dict[str, Callable[[Mapping[str, Any]], Gradient]] = {
    "eap": lambda settings: Gradient(at_full=True),
    "hisp": lambda settings: Gradient(at_full=True),
    "atp": lambda settings: Gradient(at_full=True, patterns=True, drops=settings.get("grad_drop", False)),
    "eap_ig": lambda settings: Gradient(rows=settings["steps"]),
    "clean_corrupted": lambda settings: Gradient(rows=2),
    "eap_ig_activations": lambda settings: Gradient(rows=settings["steps"], places=True),
    "ceap": lambda settings: Gradient(copies=2),
    "eap_gp": lambda settings: Gradient(all_columns=True),
}


def most_of(peaks: Sequence[Peak | None]) -> Peak | None:
    """What several take one after the other; None if it is not known of one of them."""
    known = [peak for peak in peaks if peak is not None]
    if len(known) < len(peaks):
        return None
    return lambda sizes, prompts, budget: max(peak(sizes, prompts, budget) for peak in known)


def training_peak(sizes: Sizes, prompts: Prompts, budget: int) -> int:
    """What `optimal` takes while it learns: a backward pass of a chunk, and of all examples what a layer reads and writes and
    the full model's distribution."""
    shapes, spec = replace(sizes.shapes, all_columns=True), sizes.shapes.spec
    n = min(prompts.n, chunk_size(sizes, prompts.length, budget))
    layer = prompts.n_tokens * (4 * spec.d_model + 2 * spec.n_heads * spec.d_head) * shapes.itemsize
    distribution = prompts.n * prompts.n_readings * spec.d_vocab_out * shapes.wide
    backward = peak_bytes(shapes, n, prompts.length, Gradient(at_full=True), n_readings=prompts.n_readings)
    return layer + distribution + int((HEAP_HOLES if shapes.on_cpu else 1.0) * backward)


def nothing(sizes: Sizes, prompts: Prompts, budget: int) -> int:
    """No model is run."""
    return 0


def peak_of(algorithm: str, settings: Mapping[str, Any], ablation: Ablation) -> Peak | None:
    """How much memory a search takes beside the weights; None for an algorithm that nobody planned."""
    if algorithm in RUNS_NOTHING:
        return nothing
    if algorithm == "ensemble":
        members = [settings["members"]] if isinstance(settings["members"], str) else settings["members"]
        return most_of([peak_of(name, get_algorithm(name).settings, ablation) for name in members])
    if algorithm in GRADIENTS:
        return attribution_peak(GRADIENTS[algorithm](settings), ablation)
    if algorithm in REMOVES:
        return removal_peak
    if algorithm == "head_ablation":
        return heads_peak
    return masks_peak(settings["batch"], ablation) if algorithm in MASKS else None


# --- what fits ------------------------------------------------------------------------------------------------------------


def most_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` for which `fits` is true, which it is up to somewhere; 0 if there is none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def machine_memory(device: torch.device | str) -> int:
    """Bytes of this machine's memory, or of what this process may take of it (a container, a Slurm job); or of its GPU's."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *memory_limits()])


def memory_limits(process: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes to which the control groups of this process, of either version, limit its memory.

    Args:
        process: names its groups.
        groups: the folder of all.
    """
    lines = process.read_text().splitlines() if process.is_file() else []
    limits = []
    for _, controllers, name in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        own = top / name.strip("/")
        for folder in (own, *own.parents):
            with suppress(OSError, ValueError):  # no such group (in a container the name may be that outside), or `max`
                limits += [int((folder / file).read_text())] if folder.is_relative_to(top) else []
    return limits
