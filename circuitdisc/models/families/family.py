"""What a model family declares of itself: where its weights are, and which switches its architecture sets.

A declaration is data; `reader.py` is the one program that reads models by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class WeightMap:
    """Where a Hugging Face module keeps what. The defaults are Llama's names. An empty name: the family has no such part.

    Args:
        body: the transformer without its unembedding; `embedding`, `positions`, `norm_embedding`, `layers`, `norm_final` and
            `rotary` are names in it, all others names in one of its layers.
        positions_from: the row of the learned positions that the first token has.
        q, k, v: one linear layer each; or `qkv`, all in one.
        qkv_by: how `qkv` is sorted: all queries, all keys, all values (`kind`), or the queries, the key and the value of each
            group of heads in turn (`group`).
        norm_q, norm_k: norms of queries and keys; models of the family may lack them.
        norm_attention, norm_mlp: norms before; the same name where both read one norm.
        norm_after_attention, norm_after_mlp: norms of what is written.
        w_in, w_gate, w_out: the MLP's linear layers; or `gate_up`, the gate and the input matrix in one.
        experts: the module of a mixture of experts that stands in a layer without `w_out`.
    """

    body: str = "model"
    embedding: str = "embed_tokens"
    positions: str = ""
    positions_from: int = 0
    norm_embedding: str = ""
    layers: str = "layers"
    norm_final: str = "norm"
    rotary: str = "rotary_emb"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    qkv_by: Literal["kind", "group"] = "kind"
    o: str = "self_attn.o_proj"
    norm_q: str = "self_attn.q_norm"
    norm_k: str = "self_attn.k_norm"
    norm_attention: str = "input_layernorm"
    norm_mlp: str = "post_attention_layernorm"
    norm_after_attention: str = ""
    norm_after_mlp: str = ""
    w_in: str = "mlp.up_proj"
    w_gate: str = "mlp.gate_proj"
    gate_up: str = ""
    w_out: str = "mlp.down_proj"
    experts: str = "mlp"


@dataclass(frozen=True)
class Scales:
    """Constants that an architecture multiplies with.

    Args:
        embedding: token embeddings.
        residual: everything that heads and MLPs write.
        logits: the logits.
    """

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True)
class Family:
    """Architectures that one declaration describes.

    Args:
        titles: `model_type` of a Hugging Face configuration -> the architecture's name in messages.
        layout: where its weights are; or a function of the configuration.
        norm: kind of its norms.
        norm_offset: what is added to a norm's stored scale.
        parallel: attention and MLP of a block read the same residual; or a function of the configuration.
        rotary_pairs: which numbers turn together, see `ModelSpec`.
        norm_across_heads: see `ModelSpec`.
        activation: of the MLPs, where the configuration does not name it.
        scales: from the configuration.
        turned: (configuration, layer) -> whether a layer's queries and keys are turned by their positions.
        frequencies: (configuration, body) -> the rotary frequencies, for families without a rotary module.
        key_bias: configuration -> what positions add to the scores, or None; see `Weights`.
        refused: configuration -> why a model cannot be read, or nothing.
        not_by_hooks: why the hook fallback does not fit it, as a sentence; empty where it does.
    """

    titles: Mapping[str, str]
    layout: WeightMap | Callable[[Any], WeightMap] = field(default_factory=WeightMap)
    norm: Literal["layer", "rms"] = "rms"
    norm_offset: float = 0.0
    parallel: bool | Callable[[Any], bool] = False
    rotary_pairs: Literal["halves", "neighbours"] = "halves"
    norm_across_heads: bool = False
    activation: str = ""
    scales: Callable[[Any], Scales] = lambda config: Scales()
    turned: Callable[[Any, int], bool] = lambda config, layer: True
    frequencies: Callable[[Any, Any], Float[Tensor, "Krot2"]] | None = None
    key_bias: Callable[[Any], Float[Tensor, "H Tmax"] | None] = lambda config: None
    refused: Callable[[Any], str] = lambda config: ""
    not_by_hooks: str = ""

    def layout_of(self, config: Any) -> WeightMap:
        return self.layout if isinstance(self.layout, WeightMap) else self.layout(config)

    @property
    def gated(self) -> bool:
        """Its MLPs have a gate beside the input matrix."""
        return isinstance(self.layout, WeightMap) and bool(self.layout.w_gate or self.layout.gate_up)


AFTER_NORM_BY_HOOKS = "Its norm after attention couples the heads: leave components=auto, which handles it"
