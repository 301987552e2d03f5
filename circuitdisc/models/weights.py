"""What a model is made of: the switches of its architecture and its weights, in the TransformerLens layout.

Shape letters: T positions, D residual width, H heads, Hkv groups of heads that share keys and values, K head width, M width of
the MLP, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from circuitdisc.errors import BadModel
from circuitdisc.graph import ComputationGraph

ACTIVATIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "swish": functional.silu,
    "relu2": lambda x: functional.relu(x).square(),
}


@dataclass(frozen=True)
class ModelSpec:
    """The switches of one architecture.

    Args:
        d_vocab, d_vocab_out: input and output vocabulary; they differ in some toys.
        n_ctx: longest prompt, in tokens.
        norm: kind of the norms before attention, MLP and unembedding; None for models without.
        eps: the norms' epsilon.
        activation: of the MLP, a key of `ACTIVATIONS`; None for attention-only models.
        attn_scale: what attention scores are multiplied with, per layer.
        parallel: attention and MLP of a block read the same residual.
        causal: False for bidirectional attention.
        window: longest distance that attention reaches back plus one, per layer; None without a limit.
        score_softcap, logit_softcap: cap c of c * tanh(x / c) on attention scores and on logits.
        embed_scale: what token embeddings are multiplied with.
        rotary_scale: what cos and sin are multiplied with (YaRN).
        rotary: for each layer, which of the model's rotary frequencies turn its queries and keys; None where none do. Empty:
            the first ones in all layers, where there are any.
        rotary_pairs: which two numbers of a head turn together: the first of each half, or neighbours.
        norm_across_heads: the norms of queries and of keys divide by the size of all heads' together.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    norm: Literal["layer", "rms"] | None
    eps: float
    activation: str | None
    attn_scale: tuple[float, ...]
    parallel: bool = False
    causal: bool = True
    window: tuple[int | None, ...] | None = None
    score_softcap: float | None = None
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    rotary_scale: float = 1.0
    rotary: tuple[int | None, ...] = ()
    rotary_pairs: Literal["halves", "neighbours"] = "halves"
    norm_across_heads: bool = False

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise BadModel(
                f"activation '{self.activation}' is not one that the fast components know ({', '.join(ACTIVATIONS)})"
            )

    def graph(self, split_embeddings: bool = False) -> ComputationGraph:
        """The computation graph of this architecture."""
        has_mlp = self.activation is not None
        parallel = self.parallel and has_mlp
        return ComputationGraph(self.n_layers, self.n_heads, has_mlp, parallel, split_embeddings, self.d_model)


@dataclass(frozen=True)
class NormWeights:
    """Scale and shift of one norm; None where the norm has none. Without `present` there is no norm at this place."""

    scale: Float[Tensor, "D"] | None = None
    shift: Float[Tensor, "D"] | None = None
    present: bool = True


NO_NORM = NormWeights(present=False)


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one block. What most families do not have is None.

    Args:
        norm_q, norm_k: norms of queries and keys before they are turned; scales are [K], or [H, K] where heads differ.
        experts: a mixture of experts in place of the matrices of an MLP: the model's own module, from normed inputs [1, n, D].
            As a function of its own input it is a sender like any other MLP; its neurons are not told apart.
        d_experts: neurons of the experts that a token is sent to.
    """

    W_Q: Float[Tensor, "H D K"]
    W_K: Float[Tensor, "Hkv D K"]
    W_V: Float[Tensor, "Hkv D K"]
    W_O: Float[Tensor, "H K D"]
    b_Q: Float[Tensor, "H K"] | None = None
    b_K: Float[Tensor, "Hkv K"] | None = None
    b_V: Float[Tensor, "Hkv K"] | None = None
    b_O: Float[Tensor, "D"] | None = None
    norm_attention: NormWeights = field(default_factory=NormWeights)
    norm_mlp: NormWeights = field(default_factory=NormWeights)
    norm_after_attention: NormWeights | None = None
    norm_after_mlp: NormWeights | None = None
    norm_q: NormWeights | None = None
    norm_k: NormWeights | None = None
    experts: nn.Module | None = None
    d_experts: int = 0
    W_in: Float[Tensor, "D M"] | None = None
    W_gate: Float[Tensor, "D M"] | None = None
    W_out: Float[Tensor, "M D"] | None = None
    b_in: Float[Tensor, "M"] | None = None
    b_gate: Float[Tensor, "M"] | None = None
    b_out: Float[Tensor, "D"] | None = None

    @property
    def d_mlp(self) -> int:
        """Width of the MLP, 0 without."""
        return self.d_experts if self.W_in is None else self.W_in.shape[1]

    @property
    def gated(self) -> bool:
        """Whether the MLP, or its experts, have a gate beside the input matrix."""
        return self.W_gate is not None or self.experts is not None


@dataclass(frozen=True)
class Weights:
    """All weights. `W_pos` is None in models without learned positions, `inverse_frequencies` empty in those that turn nothing.

    Args:
        norm_embedding: the embedding's sender is behind this norm.
        key_bias: what is added to a head's score of a key at each position (ALiBi, but for a constant of each query, which the
            softmax does not see).
    """

    W_E: Float[Tensor, "V D"]
    layers: tuple[LayerWeights, ...]
    W_U: Float[Tensor, "D Vout"]
    b_U: Float[Tensor, "Vout"] | None = None
    W_pos: Float[Tensor, "Tmax D"] | None = None
    norm_final: NormWeights = field(default_factory=NormWeights)
    norm_embedding: NormWeights = NO_NORM
    inverse_frequencies: tuple[Float[Tensor, "Krot2"], ...] = ()
    key_bias: Float[Tensor, "H Tmax"] | None = None
