"""From a program's variables to the weights of a transformer.

Every variable has directions of its own in the residual stream. The embedding, heads and MLPs write named variables and read
named variables, each through a small matrix; the rest of every weight is zero. Hence what feeds what is known by construction.

Attention is hard: scores of keys that match exceed the others by `HARDNESS`, so that the others get a share of e^-100.

Shape letters: D residual width, K head width, M MLP width, V vocabulary, w width of a variable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.models.toy import ToyConfig, ToyTransformer

HARDNESS = 100.0  # by how much the score of a key that matches exceeds that of one that does not
JUNK = 4  # width of what distractor heads write
JUNK_SIZE = 3.0  # of a distractor's weights: what it writes is about as large as what is read

Reads = Mapping[str, Float[Tensor, "w K"]]


@dataclass(frozen=True)
class Head:
    """An attention head: variables to matrices for its query, key and value; it writes its value into `writes`."""

    query: Reads
    key: Reads
    value: Reads
    writes: str
    query_bias: Float[Tensor, "K"] | None = None


@dataclass(frozen=True)
class Neurons:
    """ReLU neurons: what they read, their bias, and the variable and matrix that they write with."""

    reads: Mapping[str, Float[Tensor, "w M"]]
    bias: Float[Tensor, "M"]
    writes: str
    out: Float[Tensor, "M w"]


@dataclass
class ProgramPlan:
    """The parts of a program, by layer; `compile` turns them into weights.

    Args:
        causal: whether attention looks back only.
        tokens: variable -> what each token writes into it. [V, w]
        positions: variable -> what each position writes into it. [Tmax, w]
        heads, neurons: what each layer does.
        output: the variable that the logits are read from.
        unembed: from it to logits. [w, Vout]
        unembed_bias: zero where there is none. [Vout]
    """

    causal: bool
    tokens: dict[str, Float[Tensor, "V w"]]
    positions: dict[str, Float[Tensor, "Tmax w"]]
    heads: dict[int, list[Head]]
    output: str
    unembed: Float[Tensor, "w Vout"]
    unembed_bias: Float[Tensor, "Vout"] | None = None
    neurons: dict[int, list[Neurons]] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return 1 + max((*self.heads, *self.neurons))

    def directions(self) -> dict[str, slice]:
        """Where each variable lies in the residual stream before it is turned."""
        widths = {name: table.shape[1] for name, table in (*self.tokens.items(), *self.positions.items())}
        for layer in range(self.n_layers):
            widths |= {head.writes: _width(head.value) for head in self.heads.get(layer, [])}
            widths |= {part.writes: part.out.shape[1] for part in self.neurons.get(layer, [])}
        ends = torch.tensor(list(widths.values())).cumsum(0).tolist()
        return {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}

    def compile(self, rotate: int | None = None, distractors: int = 0, seed: int = 0) -> ToyTransformer:
        """The transformer that runs the program, in float64.

        Args:
            rotate: seed of a random rotation of the residual stream; None leaves each variable on axes of its own.
            distractors: heads added to every layer that read everything and write where only other distractors read.
            seed: of the distractors' weights.
        """
        where = self.directions()
        junk = JUNK if distractors else 0
        width = max(part.stop for part in where.values()) + junk
        used = max(len(heads) for heads in self.heads.values())
        d_mlp = max((sum(len(part.bias) for part in parts) for parts in self.neurons.values()), default=None)
        config = ToyConfig(
            n_layers=self.n_layers,
            n_heads=used + distractors,
            d_model=width,
            d_head=max(JUNK, *(_head_width(head) for heads in self.heads.values() for head in heads)),
            d_vocab=len(next(iter(self.tokens.values()))),
            n_ctx=len(next(iter(self.positions.values()))),
            d_mlp=d_mlp,
            act_fn="relu" if d_mlp else None,
            attn_only=d_mlp is None,
            d_vocab_out=self.unembed.shape[1],
            attention_dir="causal" if self.causal else "bidirectional",
            use_attn_scale=False,
        )
        weights = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in config.weight_shapes().items()}
        self._write_ends(weights, where)
        for layer in range(self.n_layers):
            block = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
            for index, head in enumerate(self.heads.get(layer, [])):
                _write_head(block, index, head, where)
            _write_neurons(block, self.neurons.get(layer, []), where)
        _write_distractors(weights, config, used, seed)
        if rotate is not None:
            _turn(weights, _rotation(width, rotate))
        toy = ToyTransformer(config).double()
        toy.load_state_dict(weights)
        return toy

    def _write_ends(self, weights: dict[str, Tensor], where: Mapping[str, slice]) -> None:
        for name, table in self.tokens.items():
            weights["embed.W_E"][:, where[name]] = table
        for name, table in self.positions.items():
            weights["pos_embed.W_pos"][:, where[name]] = table
        weights["unembed.W_U"][where[self.output]] = self.unembed
        if self.unembed_bias is not None:
            weights["unembed.b_U"][:] = self.unembed_bias


def _width(reads: Reads) -> int:
    return next(iter(reads.values())).shape[1]


def _head_width(head: Head) -> int:
    return max(_width(reads) for reads in (head.query, head.key, head.value) if reads)


def _write_head(block: dict[str, Tensor], index: int, head: Head, where: Mapping[str, slice]) -> None:
    for letter, reads, size in (("Q", head.query, HARDNESS), ("K", head.key, 1.0), ("V", head.value, 1.0)):
        for name, matrix in reads.items():
            block[f"attn.W_{letter}"][index, where[name], : matrix.shape[1]] = size * matrix
    if head.query_bias is not None:
        block["attn.b_Q"][index, : len(head.query_bias)] = HARDNESS * head.query_bias
    n_values = _width(head.value)
    block["attn.W_O"][index, :n_values, where[head.writes]] = torch.eye(n_values, dtype=torch.float64)


def _write_neurons(block: dict[str, Tensor], parts: list[Neurons], where: Mapping[str, slice]) -> None:
    first = 0
    for part in parts:
        own = slice(first, first + len(part.bias))
        for name, matrix in part.reads.items():
            block["mlp.W_in"][where[name], own] = matrix
        block["mlp.b_in"][own] = part.bias
        block["mlp.W_out"][own, where[part.writes]] = part.out
        first = own.stop


def _write_distractors(weights: dict[str, Tensor], config: ToyConfig, used: int, seed: int) -> None:
    """Heads from `used` on: random queries, keys and values of the whole residual stream, written into the last directions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for layer in range(config.n_layers):
        for head in range(used, config.n_heads):
            for letter in "QKV":
                weights[f"blocks.{layer}.attn.W_{letter}"][head] = JUNK_SIZE * normal(config.d_model, config.d_head) / 2
            out = JUNK_SIZE * normal(config.d_head, JUNK) / config.d_head**0.5
            weights[f"blocks.{layer}.attn.W_O"][head, :, -JUNK:] = out


def _rotation(width: int, seed: int) -> Float[Tensor, "D D"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q


def _turn(weights: dict[str, Tensor], rotation: Float[Tensor, "D D"]) -> None:
    """Turn the residual stream: what is written is turned, and so is what is read from."""
    for name in weights:
        leaf = name.split(".")[-1]
        if leaf in ("W_E", "W_pos", "W_O", "W_out", "b_O", "b_out"):
            weights[name] = weights[name] @ rotation
        elif leaf in ("W_Q", "W_K", "W_V", "W_in", "W_U"):
            weights[name] = rotation.T @ weights[name]
