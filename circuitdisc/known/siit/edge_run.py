"""The run of a toy whose edges carry what other prompts' runs wrote, with gradients to the weights.

    input of receiver r = constants + sum over senders s of what the edge s -> r carries

An edge carries its sender's live value, or what the sender wrote on another prompt: edge by edge, with q, k and v apart. In
`circuitdisc.engine` the weights are held still; this is the plain way for training, and small models.

Shape letters: S senders, R receivers, n receivers read at once, B prompts, T positions, D residual width, H heads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from circuitdisc.graph import ComputationGraph
from circuitdisc.models.toy import ToyTransformer
from circuitdisc.models.weights import ACTIVATIONS


@dataclass(frozen=True)
class Carried:
    """What edges carry instead of live values.

    Args:
        other: what senders write on another prompt (or on average); carried by the edges that are cut. [S B T D]
        removed: which edges, for each prompt, at all positions. [B R S]
        source: what senders write on the source prompt. [S B T D]
        swapped: (receiver, sender) -> where that edge carries the source's value; such an edge is not cut. Each [B T]
    """

    other: Float[Tensor, "S B T D"]
    removed: Bool[Tensor, "B R S"]
    source: Float[Tensor, "S B T D"]
    swapped: Mapping[tuple[int, int], Bool[Tensor, "B T"]] = field(default_factory=dict)


class EdgeRun:
    """One run.

    Args:
        toy: with layer norm or without, learned positions, one MLP a layer.
        graph: of the toy, with one sender for the embedding.
        carried: None: everything is live, and the run is the toy's own.
    """

    def __init__(
        self, toy: ToyTransformer, graph: ComputationGraph, tokens: Int[Tensor, "B T"], carried: Carried | None = None
    ) -> None:
        self.config, self.graph, self.carried = toy.config, graph, carried
        self.weights = dict(toy.named_parameters())
        embedded = self.weights["embed.W_E"][tokens] + self.weights["pos_embed.W_pos"][: tokens.shape[1]]
        self.sent: list[Float[Tensor, "B T D"]] = [embedded]
        self.total, self.n_read = embedded, 0
        self._allowed = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
        if self.config.attention_dir == "causal":
            self._allowed = self._allowed.tril()
        for layer in range(self.config.n_layers):
            self._heads(layer)
            self._mlp(layer)
        final = self._norm(self._read(1), "ln_final")[0]
        self.logits: Float[Tensor, "B T V"] = final @ self.weights["unembed.W_U"] + self.weights["unembed.b_U"]

    @property
    def senders(self) -> Float[Tensor, "S B T D"]:
        """What every sender wrote."""
        return torch.stack(self.sent)

    def _read(self, n: int) -> Float[Tensor, "n B T D"]:
        """What the next n receivers read, all at the same place; one for all of them if every edge is live."""
        first, self.n_read = self.n_read, self.n_read + n
        if self.carried is None:
            return self.total[None]
        here, removed = len(self.sent), self.carried.removed[:, first : first + n, : len(self.sent)]
        difference = self.carried.other[:here].transpose(0, 1) - torch.stack(self.sent, dim=1)  # [B S T D]
        moved = (removed.to(difference.dtype) @ difference.flatten(2)).unflatten(2, difference.shape[2:])
        read = list((self.total[:, None] + moved).unbind(1))
        for (receiver, sender), where in self.carried.swapped.items():
            if first <= receiver < first + n:
                change = self.carried.source[sender] - self.sent[sender]
                read[receiver - first] = read[receiver - first] + where[..., None] * change
        return torch.stack(read)

    def _heads(self, layer: int) -> None:
        prefix, H = f"blocks.{layer}.attn", self.config.n_heads
        x = self._norm(self._read(3 * H), f"blocks.{layer}.ln1")
        inputs = x.split(H) if len(x) > 1 else (x, x, x)
        q, k, v = (
            torch.matmul(read, self.weights[f"{prefix}.W_{letter}"][:, None])
            + self.weights[f"{prefix}.b_{letter}"][:, None, None]
            for letter, read in zip("QKV", inputs, strict=True)
        )
        scores = (q @ k.transpose(-1, -2) / self.config.score_divisor).masked_fill(~self._allowed, -torch.inf)
        written = (scores.softmax(-1) @ v) @ self.weights[f"{prefix}.W_O"][:, None]
        self.sent += written.unbind(0)
        self.total = self.total + written.sum(0) + self.weights[f"{prefix}.b_O"]

    def _mlp(self, layer: int) -> None:
        prefix = f"blocks.{layer}.mlp"
        activation: Callable[[Tensor], Tensor] = ACTIVATIONS[self.config.act_fn or ""]
        x = self._norm(self._read(1), f"blocks.{layer}.ln2")[0]
        hidden = activation(x @ self.weights[f"{prefix}.W_in"] + self.weights[f"{prefix}.b_in"])
        written = hidden @ self.weights[f"{prefix}.W_out"] + self.weights[f"{prefix}.b_out"]
        self.sent.append(written)
        self.total = self.total + written

    def _norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.normalization_type is None:
            return x
        return functional.layer_norm(x, x.shape[-1:], self.weights[f"{name}.w"], self.weights[f"{name}.b"], self.config.eps)
