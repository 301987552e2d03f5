"""What cross-model patching will take, from shapes alone: memory, bytes on disk, passes. No weights are read.

Passes are counted in plain forwards: one is the products with the weight matrices of all layers, for every token of the prompts
that a split has. What grows with the length squared (patterns) and the readout at the answer positions are left out.

Shape letters: L layers, H heads, G groups of heads that share keys and values, K head width, D residual width, M MLP width.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitdisc.engine.cross.patch import Patch
from circuitdisc.engine.cross.run import CrossWork
from circuitdisc.engine.memory import CPU_BYTES_PER_SENDER
from circuitdisc.errors import BadModel, BadSetting
from circuitdisc.files import size_words
from circuitdisc.models.families import find_family
from circuitdisc.models.model import Model

DISK, MEMORY = "disk", "memory"
MOST_TOKENS_ON_CPU = 1024  # of a chunk: more is slower there, once a layer's activations leave the cache
FLOAT = 4  # bytes of what is computed in float32 at least: norms, softmaxes


@dataclass(frozen=True)
class CrossShapes:
    """The sizes of one architecture.

    Args:
        gated: the MLP has a gate.
        tied: the unembedding is the embedding.
        itemsize: bytes of a weight and of an activation.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    gated: bool
    tied: bool
    itemsize: int

    @property
    def read(self) -> int:
        """Numbers in W_Q, W_K and W_V of a layer."""
        return self.d_model * self.d_head * (self.n_heads + 2 * self.n_kv_heads)

    @property
    def write(self) -> int:
        """Numbers in W_O."""
        return self.n_heads * self.d_head * self.d_model

    @property
    def mlp(self) -> int:
        """Numbers in the MLP's matrices."""
        return (3 if self.gated else 2) * self.d_model * self.d_mlp

    @property
    def weights(self) -> int:
        """Bytes of all matrices, embedding and unembedding among them."""
        embeddings = (1 if self.tied else 2) * self.d_vocab * self.d_model
        return self.itemsize * (embeddings + self.n_layers * (self.read + self.write + self.mlp))

    def forwards(self, reads: float, writes: float, mlps: float) -> float:
        """Parts of layers as a number of plain forwards."""
        return (reads * self.read + writes * self.write + mlps * self.mlp) / self._forward

    @property
    def _forward(self) -> int:
        return self.n_layers * (self.read + self.write + self.mlp)


MLP_WIDTHS = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_mlp")


def shapes_of(model: Model) -> CrossShapes:
    """The sizes of a loaded model."""
    spec, weights = model.components.spec, model.components.weights
    block = weights.layers[0]
    return CrossShapes(
        spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_model, spec.d_head,
        block.d_mlp, spec.d_vocab, block.gated,
        weights.W_U.data_ptr() == weights.W_E.data_ptr(), model.dtype.itemsize,
    )  # fmt: skip


def shapes_from_config(config: Mapping[str, Any], itemsize: int) -> CrossShapes:
    """The sizes from a `config.json`, in Hugging Face's or TransformerLens's names.

    Raises:
        BadModel: a size is missing.
    """

    def size(*names: str, default: int | None = None) -> int:
        number = next((config[name] for name in names if config.get(name) is not None), default)
        if number is None:
            raise BadModel(f"the configuration has no {names[0]}: memory cannot be planned without it")
        return int(number)

    heads, width = size("num_attention_heads", "n_head", "n_heads"), size("hidden_size", "n_embd", "d_model")
    family = find_family(config.get("model_type"))
    one_key = config.get("multi_query") and not config.get("new_decoder_architecture")  # Falcon's names
    gated = bool(config.get("gated_mlp")) if family is None else family.gated
    tied = bool(config.get("tie_word_embeddings", "model_type" in config))
    return CrossShapes(
        n_layers=size("num_hidden_layers", "n_layer", "n_layers"),
        n_heads=heads,
        n_kv_heads=1 if one_key else size("num_key_value_heads", "n_key_value_heads", "num_kv_heads", default=heads),
        d_model=width,
        d_head=size("head_dim", "d_head", default=width // heads),
        d_mlp=size(*MLP_WIDTHS, default=0 if config.get("attn_only") else 4 * width) * (config.get("num_experts_per_tok") or 1),
        d_vocab=size("vocab_size", "d_vocab"),
        gated=gated,
        tied=tied,
        itemsize=itemsize,
    )


@dataclass(frozen=True)
class CrossPlan:
    """What a call of cross-model patching will take. Sizes in bytes.

    Args:
        weights: of one model; the two are never in memory together.
        chunks: first and last example of each chunk.
        activations: the most that a chunk's runs hold at once.
        store: where the other model's activations are kept: `memory` or `disk`.
        cache: all of them, by kind.
        cache_held: what of them is in memory at once.
        given_weights: W_O and, if asked for, the readout of the other model, kept with its activations.
        passes: plain forwards by what is patched, each as if it were asked for alone.
        total_passes: of all together, which share the unpatched run and the layers at which runs begin.
    """

    weights: int
    chunks: tuple[tuple[int, int], ...]
    activations: int
    store: str
    cache: dict[str, int]
    cache_held: int
    given_weights: int
    passes: dict[str, float] = field(default_factory=dict)
    total_passes: float = 0.0

    @property
    def peak(self) -> int:
        """The most memory at once, beside Python and its libraries."""
        return self.weights + self.activations + self.cache_held

    @property
    def cache_bytes(self) -> int:
        """All that is kept of the other model."""
        return sum(self.cache.values()) + self.given_weights

    def to_dict(self) -> dict[str, Any]:
        record = dict(vars(self)) | {"chunks": len(self.chunks)}
        return record | {"peak": self.peak, "cache_bytes": self.cache_bytes}


def plan_cross(
    shapes: CrossShapes,
    lengths: Sequence[int],
    kinds: Sequence[str],
    budget: int,
    *,
    splits: Sequence[int] = (),
    patched_per_prompt: int | None = None,
    readout: bool = True,
    on_cpu: bool = True,
    cache: str = "auto",
) -> CrossPlan:
    """Chunks, cache and memory; passes are left for the caller to fill in.

    Args:
        lengths: tokens of each prompt.
        kinds: activations that are kept.
        budget: bytes for activations.
        splits: examples at which a new chunk must begin.
        patched_per_prompt: tokens of a prompt that are patched; None for all.
        readout: the other model's unembedding is kept, too.
        cache: `memory`, `disk`, or `auto`: memory if half of the budget holds it.

    Raises:
        BadSetting: one prompt does not fit the budget.
    """
    longest = max(lengths)
    per_token = activation_bytes(shapes, longest)
    most = budget // 2 // per_token
    if on_cpu:
        most = min(most, max(MOST_TOKENS_ON_CPU, CPU_BYTES_PER_SENDER // (shapes.d_model * shapes.itemsize)))
    if budget // 2 < per_token * longest:
        raise BadSetting(
            f"one prompt of {longest} tokens needs about {size_words(per_token * longest)} for its activations, over half "
            f"of the budget of {size_words(budget)}: raise memory="
        )
    chunks = _chunks(lengths, most, splits)
    n_tokens = sum(lengths) if patched_per_prompt is None else patched_per_prompt * len(lengths)
    kept = {kind: _kept_bytes(shapes, kind, longest) * n_tokens for kind in kinds}
    unembedding = shapes.itemsize * shapes.d_vocab * shapes.d_model if readout else 0
    W_O = shapes.itemsize * shapes.write
    given_weights = unembedding + (W_O * shapes.n_layers if "output" in kinds else 0)
    total = sum(kept.values()) + given_weights
    in_memory = cache == MEMORY or (cache != DISK and total <= budget // 2)
    widest = max(sum(lengths[first:last]) for first, last in chunks)
    patched = widest if patched_per_prompt is None else patched_per_prompt * max(last - first for first, last in chunks)
    one_layer = patched * sum(_kept_bytes(shapes, kind, longest) // _layers(shapes, kind) for kind in kinds) + W_O
    # in memory, W_O and the unembedding are the other model's own tensors; on disk, one layer is read at a time, or the readout
    weights = total if in_memory else max(one_layer, 2 * unembedding)
    padded = max((last - first) * max(lengths[first:last]) for first, last in chunks)
    store = MEMORY if in_memory else DISK
    return CrossPlan(shapes.weights, chunks, per_token * padded, store, kept, weights, given_weights)


def activation_bytes(shapes: CrossShapes, length: int) -> int:
    """What the runs of a chunk hold at once, for one token: the residual before every layer, and one layer at work.

    Attention at work: queries, keys and values before and behind their turning, for heads and once more for groups, scores with
    their softmax in float32, and the weighted values of the layer that runs share. MLP at work: hidden activations three times.
    """
    heads, groups = shapes.n_heads * shapes.d_head, shapes.n_kv_heads * shapes.d_head
    wide = max(FLOAT, shapes.itemsize)
    kept = (shapes.n_layers + 1) * shapes.d_model
    shared = 2 * heads + 2 * groups + shapes.n_heads * length  # z, q, k, v and patterns of the layer at which runs begin
    attention = 3 * heads + 2 * groups
    scores = shapes.n_heads * length * (2 * shapes.itemsize + 2 * wide)
    mlp = (3 if shapes.gated else 2) * shapes.d_mlp
    at_work = max(
        attention * shapes.itemsize + scores, (mlp + 3 * shapes.d_model) * shapes.itemsize + 2 * wide * shapes.d_model
    )
    return (kept + shared + 4 * shapes.d_model) * shapes.itemsize + at_work


def _layers(shapes: CrossShapes, kind: str) -> int:
    return shapes.n_layers + 1 if kind == "residual" else shapes.n_layers


def _kept_bytes(shapes: CrossShapes, kind: str, length: int) -> int:
    """Bytes of one kind for one token, all layers."""
    width = {
        "output": shapes.n_heads * shapes.d_head,
        "query": shapes.n_heads * shapes.d_head,
        "value": shapes.n_kv_heads * shapes.d_head,
        "key": shapes.n_kv_heads * shapes.d_head,
        "pattern": shapes.n_heads * length,
        "mlp": shapes.d_model,
        "residual": shapes.d_model,
    }[kind]
    return _layers(shapes, kind) * width * shapes.itemsize


def _chunks(lengths: Sequence[int], most: int, splits: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """As many examples a chunk as keep its padded tokens below `most`, and at least one."""
    chunks, first, longest = [], 0, 0
    for example, length in enumerate(lengths):
        longest = max(longest, length)
        if example > first and (longest * (example - first + 1) > most or example in splits):
            chunks.append((first, example))
            first, longest = example, length
    return (*chunks, (first, len(lengths)))


# --- passes ---------------------------------------------------------------------------------------------------------------


def work_of(shapes: CrossShapes, patches: Iterable[Patch], everywhere: bool = True) -> CrossWork:
    """What `CrossRun.values` computes for these patches, the unpatched run among it. The same steps, counted and not made.

    Args:
        everywhere: they are made at all tokens.
    """
    n_layers, n_heads, has_mlp = shapes.n_layers, shapes.n_heads, int(shapes.d_mlp > 0)
    work, begun = CrossWork(n_layers, n_layers, n_layers * has_mlp), set[int]()
    for patch in dict.fromkeys(patches):
        first = patch.first(n_layers)
        taken = Counter(layer for kind, layer, _ in patch.heads if kind == "output")
        touched = {layer for kind, layer, _ in patch.heads if kind != "output"}
        for layer in range(first, n_layers):
            shared = layer == first and layer not in patch.residual
            if not (taken[layer] == n_heads and everywhere):
                if shared and layer not in begun:
                    begun.add(layer)
                    work.reads, work.writes = work.reads + 1, work.writes + 1
                work.reads += not shared
                work.writes += not shared or bool(taken[layer]) or layer in touched
            work.writes += taken[layer] / n_heads
            work.mlps += has_mlp and not (layer in patch.mlps and everywhere)
    return work


def forwards_of(shapes: CrossShapes, patches: Iterable[Patch], everywhere: bool = True) -> float:
    """Plain forwards for these patches on the examples of one split."""
    work = work_of(shapes, patches, everywhere)
    return shapes.forwards(work.reads, work.writes, work.mlps)
