"""How much memory an attribution takes beside the weights, from shapes alone, and how many examples fit in a budget.

Shape letters: B examples, T positions, C rows, L layers, D residual width, H heads, K head width, M MLP width,
V vocabulary, S senders, R receivers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from circuitdisc.errors import BadSetting
from circuitdisc.files import size_words
from circuitdisc.metrics import Metric
from circuitdisc.models.components import Components
from circuitdisc.models.weights import ModelSpec
from circuitdisc.tasks.base import Example

# Larger batches are not faster on a CPU, and smaller ones leave matrix products thin.
CPU_TOKEN_ROWS = 1024
# On a CPU freed blocks stay in the heap: the resident set was measured at up to 1.75 times what lives at once.
HEAP_HOLES = 1.75
# What one block of tokens may take when scores are formed: on a CPU it should stay in the cache.
BLOCK_BYTES = {"cpu": 2**23, "other": 2**28}
# No fewer, or reading the weights once a block would take longer than the products.
LEAST_BLOCK_TOKENS = 16
# At most so many of what all heads write together are in flight at once for the exact softmax of `atp`.
CPU_PATTERN_ROWS = 2048


@dataclass(frozen=True)
class Gradient:
    """Where an attribution takes its gradients.

    Args:
        rows: at how many points at once.
        at_full: at the clean run, whose own segments serve.
        places: from every place of the residual stream on, in turn.
        patterns: with respect to attention patterns, too.
        copies: of all senders' differences that are kept beside them.
        drops: in as many backward passes as there are layers, one example at a time.
        all_columns: also of logits of the whole vocabulary.
    """

    rows: int = 1
    at_full: bool = False
    places: bool = False
    patterns: bool = False
    copies: int = 0
    drops: bool = False
    all_columns: bool = False


@dataclass(frozen=True)
class Shapes:
    """What the memory of an attribution depends on, beside the examples.

    Args:
        d_mlp: width of the MLPs, 0 without.
        gated: the MLPs are gated.
        rotary: positions are rotary.
        itemsize: bytes of a weight and of an activation.
        all_columns: the metric needs the logits of the whole vocabulary.
    """

    spec: ModelSpec
    d_mlp: int
    gated: bool
    rotary: bool
    itemsize: int
    all_columns: bool
    on_cpu: bool = True

    @property
    def wide(self) -> int:
        """Bytes of a number in float32 at least."""
        return max(4, self.itemsize)

    @classmethod
    def of(cls, components: Components, metric: Metric) -> "Shapes":
        block = max(components.weights.layers, key=lambda block: block.d_mlp)
        return cls(
            spec=components.spec,
            d_mlp=block.d_mlp,
            gated=block.gated,
            rotary=bool(components.weights.inverse_frequencies),
            itemsize=components.dtype.itemsize,
            all_columns=metric.columns == "all",
            on_cpu=components.device.type == "cpu",
        )


def segment_bytes(shapes: Shapes, length: int) -> int:
    """What one layer keeps for the backward pass, for one token of one row."""
    spec, size = shapes.spec, shapes.itemsize
    heads = spec.n_heads * spec.d_head
    stream = spec.d_model * (1 if spec.parallel or not shapes.d_mlp else 2)  # before the heads, before the MLP
    attention = heads * (4 + 2 * shapes.rotary)  # q, k, v, pattern-weighted values; q and k rotated
    mlp = shapes.d_mlp * (3 if shapes.gated else 1) + (spec.d_model if shapes.d_mlp else 0)  # before the activation; output
    pattern = spec.n_heads * length * (shapes.wide + (size if size < shapes.wide else 0) + size * bool(spec.score_softcap))
    norms = spec.d_model * shapes.wide if spec.norm == "rms" and size < shapes.wide and shapes.d_mlp else 0
    return size * (stream + attention + mlp) + pattern + norms


def difference_bytes(shapes: Shapes) -> int:
    """What all senders' differences take, for one token: heads before W_O."""
    spec = shapes.spec
    per_layer = spec.n_heads * spec.d_head + (spec.d_model if shapes.d_mlp else 0)
    return shapes.itemsize * (spec.n_layers * per_layer + spec.d_model)


def gradient_bytes(shapes: Shapes, rows: int) -> int:
    """What one layer's gradients take in compact form, for one token."""
    spec = shapes.spec
    normed = rows * spec.d_model if spec.norm is not None else 0
    wide = normed + (spec.d_model if shapes.d_mlp else 0) + rows * 3 * spec.n_heads
    return 3 * spec.n_heads * spec.d_head * shapes.itemsize + wide * shapes.wide


def step_bytes(shapes: Shapes) -> int:
    """What one step of the backward pass takes in passing, for one token of one row."""
    spec, size, wide = shapes.spec, shapes.itemsize, shapes.wide
    heads = 3 * spec.n_heads * spec.d_head
    mlp = shapes.d_mlp * (4 if shapes.gated else 2) * size + 2 * spec.d_model * wide
    attention = heads * (size + 3 * wide) + 4 * spec.d_model * wide
    return max(mlp, attention)


def peak_bytes(shapes: Shapes, n_examples: int, length: int, gradient: Gradient, *, n_readings: int = 1, means: int = 0) -> int:
    """The largest sum of activations that live at once in one chunk, in bytes.

    Args:
        n_examples, length: of the chunk: B and T.
        n_readings: readings an example.
        means: bytes of the averages that `mean` ablation holds.
    """
    spec = shapes.spec
    tokens, rows = n_examples * length, gradient.rows
    kept = spec.n_layers * rows * tokens * segment_bytes(shapes, length)
    differences = (1 + gradient.copies) * tokens * difference_bytes(shapes)
    residuals = tokens * spec.d_model * shapes.itemsize * (2 * spec.n_layers if gradient.places else 1)
    columns = spec.d_vocab_out if shapes.all_columns or gradient.all_columns else 8
    # logits, the same in float32, their softmax, and the gradients of the last two
    logits = rows * n_examples * n_readings * columns * (shapes.itemsize + 4 * shapes.wide)
    stream = 3 * rows * tokens * spec.d_model * shapes.itemsize  # the running gradient, and what is added to it
    step = stream + rows * tokens * step_bytes(shapes)
    compact = spec.n_layers * tokens * gradient_bytes(shapes, rows)
    at_end_of_forward = kept + max(logits, step)
    scoring = compact + block_bytes(shapes)
    patterns = pattern_bytes(shapes, n_examples, length) if gradient.patterns else 0
    if gradient.drops:  # of each pass what comes to the heads of each layer, and to the patterns of one
        heads = spec.n_layers * spec.n_heads * spec.d_head * shapes.itemsize
        patterns += spec.n_layers * tokens * (heads + spec.n_heads * length * shapes.wide)
    return means + differences + residuals + max(at_end_of_forward, scoring) + patterns


def block_bytes(shapes: Shapes) -> int:
    """What forming scores holds of a few tokens: differences of all senders, gradients of one layer's receivers."""
    spec = shapes.spec
    n_senders = 1 + spec.n_layers * (spec.n_heads + bool(shapes.d_mlp))
    token = spec.d_model * shapes.wide
    differences = tokens_a_block(n_senders * token, shapes.on_cpu) * n_senders * token
    return differences + differences * (3 * spec.n_heads + 1) // n_senders


def tokens_a_block(token_bytes: int, on_cpu: bool) -> int:
    """How many tokens' scores are formed at once.

    Args:
        token_bytes: what the differences of all senders take at one token.
    """
    return max(LEAST_BLOCK_TOKENS, BLOCK_BYTES["cpu" if on_cpu else "other"] // token_bytes)


def pattern_bytes(shapes: Shapes, n_examples: int, length: int) -> int:
    """What the exact softmax of `atp` holds for as many senders as it takes at once."""
    spec, tokens = shapes.spec, n_examples * length
    heads = spec.n_heads * spec.d_head
    token = (4 * spec.d_model + 4 * heads) * shapes.itemsize + 4 * spec.n_heads * length * shapes.wide
    return max(tokens, CPU_PATTERN_ROWS) * token


def buffer_bytes(shapes: Shapes, n_examples: int, length: int, n_senders: int) -> int:
    """What the buffer of differences [B, T, S, D] of a direct implementation takes, which is never made here."""
    return n_examples * length * n_senders * shapes.spec.d_model * shapes.itemsize


def means_bytes(shapes: Shapes, examples: Sequence[Example], scope: str) -> int:
    """What averages in float64 take, for each group and position, with one place's in passing."""
    groups = len({example.group for example in examples}) if scope == "group" else 1
    length = 1 if scope == "dataset" else max(len(example) for example in examples)
    per_token = difference_bytes(shapes) // shapes.itemsize
    return 8 * (groups + 1) * length * (per_token + 3 * shapes.spec.d_model)


def chunk_bytes(shapes: Shapes, n: int, examples: Sequence[Example], gradient: Gradient, mean_scope: str | None) -> int:
    """What a chunk of n of these examples takes at its peak."""
    length = max(len(example) for example in examples)
    n_readings = max(len(example.positions) for example in examples)
    means = 0 if mean_scope is None else means_bytes(shapes, examples, mean_scope)
    holes = HEAP_HOLES if shapes.on_cpu else 1.0
    return int(holes * peak_bytes(shapes, n, length, gradient, n_readings=n_readings, means=means))


def examples_in_budget(
    shapes: Shapes, budget: int, examples: Sequence[Example], gradient: Gradient, mean_scope: str | None
) -> int:
    """How many examples make a chunk: as many as fit in the budget, and on a CPU no more than keep it busy.

    Raises:
        BadSetting: not even one fits.
    """
    length = max(len(example) for example in examples)

    def peak(n: int) -> int:
        return chunk_bytes(shapes, n, examples, gradient, mean_scope)

    if peak(1) > budget:
        raise BadSetting(
            f"attributing one example of {length} tokens needs about {size_words(peak(1))} for activations, over the "
            f"budget of {size_words(budget)}: raise memory=, or take shorter prompts or fewer steps"
        )
    most = 1 if gradient.drops else len(examples)
    if shapes.on_cpu:
        most = min(most, max(1, CPU_TOKEN_ROWS // (gradient.rows * length)))
    while most > 1 and peak(most) > budget:
        most = max(1, int(most * 0.9))
    return most
