"""The true edges of a compiled model, from its weights and a plain run of it in float64.

1. An edge u -> v is structural if v reads a direction that u writes (the product of u's write matrix and v's read matrix is
   not zero), and v leads on to `logits` over such edges.
2. Under an ablation it differs if v reads another value from u once u is ablated, on some example.
3. It shows if cutting it alone changes a logit at an answer, on some example. What differs and does not show is either not
   used (values at positions that nobody attends to) or saturated.

The run is written the plain way, receiver after receiver, and shares nothing with `patching`, which is tested against it.

Shape letters: S senders, B examples, T positions, D residual width, X width of a read, Y rows of a write.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.circuit import Circuit
from circuitdisc.errors import UnknownName
from circuitdisc.graph import ComputationGraph, Node, Receiver
from circuitdisc.models.toy import ToyTransformer
from circuitdisc.tasks.base import Example

ABLATIONS = ("zero", "mean", "resample")
LEAST_WEIGHT = 1e-9  # of a product of weights; rotations leave rounding errors of 1e-14
LEAST_CHANGE = 1e-6  # of a value read, or of a logit


@dataclass(frozen=True)
class CompiledTruth:
    """True edges by name.

    Args:
        structural: edges over which the weights carry something to `logits`.
        differing: ablation -> those over which something else is read under it.
        showing: ablation -> those that change a logit when cut alone under it.
    """

    structural: frozenset[str]
    differing: Mapping[str, frozenset[str]]
    showing: Mapping[str, frozenset[str]]

    def edges(self, ablation: str) -> frozenset[str]:
        """The true edges under `zero`, `mean` or `resample`: those that show.

        Raises:
            UnknownName: it is none of the three.
        """
        if ablation not in self.showing:
            raise UnknownName("ablation", ablation, self.showing)
        return self.showing[ablation]

    def hidden(self, ablation: str) -> frozenset[str]:
        """Structural edges that cannot be seen under an ablation."""
        return self.structural - self.edges(ablation)


def true_edges(toy: ToyTransformer, graph: ComputationGraph, examples: Sequence[Example]) -> CompiledTruth:
    """The true edges of a toy without norms on examples of one length.

    Args:
        toy: the model, in float64.
        graph: its graph.
        examples: clean and corrupted prompts; `mean` is over all the clean ones, position by position.
    """
    plain = PlainRun(toy, graph)
    clean = torch.tensor([example.clean for example in examples])
    corrupted = torch.tensor([example.corrupted for example in examples])
    sent, logits = plain.run(clean)
    ablated = {
        "zero": torch.zeros_like(sent),
        "mean": sent.mean(1, keepdim=True).expand_as(sent),
        "resample": plain.run(corrupted)[0],
    }
    is_read = torch.zeros(clean.shape, dtype=torch.bool)
    for index, example in enumerate(examples):
        is_read[index, list(example.positions)] = True

    structural = structural_edges(plain)
    differing: dict[str, frozenset[str]] = {}
    showing: dict[str, frozenset[str]] = {}
    for name in ABLATIONS:
        edges = {"differs": set(), "shows": set()}
        for edge in structural:
            receiver, sender = graph.parse_edge(edge)
            change = ablated[name][sender] - sent[sender]
            if (change @ plain.read_matrix(graph.receivers[receiver])).abs().max() > LEAST_CHANGE:
                edges["differs"].add(edge)
            moved = plain.run(clean, removed=(receiver, change))[1] - logits
            if moved[is_read].abs().max() > LEAST_CHANGE:
                edges["shows"].add(edge)
        differing[name], showing[name] = frozenset(edges["differs"]), frozenset(edges["shows"])
    return CompiledTruth(structural, differing, showing)


def structural_edges(plain: "PlainRun") -> frozenset[str]:
    """Edges over which something is written and read, without those that lead nowhere."""
    graph = plain.graph
    names = []
    for row, receiver in enumerate(graph.receivers):
        reads = plain.read_matrix(receiver)
        for column in range(int(graph.n_upstream[row])):
            if (plain.write_matrix(graph.senders[column]) @ reads).abs().max() > LEAST_WEIGHT:
                names.append(graph.edge_name(row, column))
    return frozenset(Circuit.from_edges(graph, names).prune().edge_names())


class PlainRun:
    """A toy without norms, node by node."""

    def __init__(self, toy: ToyTransformer, graph: ComputationGraph) -> None:
        self.toy, self.graph = toy, graph
        self.weights = {name: weight.detach() for name, weight in toy.named_parameters()}

    def write_matrix(self, sender: Node) -> Float[Tensor, "Y D"]:
        """All that a sender can write is a combination of these rows."""
        weights, layer = self.weights, f"blocks.{sender.layer}"
        if sender.kind == "head":
            return weights[f"{layer}.attn.W_O"][sender.head]
        if sender.kind == "mlp":
            return torch.cat([weights[f"{layer}.mlp.W_out"], weights[f"{layer}.mlp.b_out"][None]])
        tables = {"tok_embed": ["embed.W_E"], "pos_embed": ["pos_embed.W_pos"], "input": ["embed.W_E", "pos_embed.W_pos"]}
        return torch.cat([weights[name] for name in tables[sender.kind]])

    def read_matrix(self, receiver: Receiver) -> Float[Tensor, "D X"]:
        """A receiver depends on the residual stream through this product alone."""
        layer, kind = f"blocks.{receiver.node.layer}", receiver.kind
        if kind == "logits":
            return self.weights["unembed.W_U"]
        if kind == "mlp":
            return self.weights[f"{layer}.mlp.W_in"]
        return self.weights[f"{layer}.attn.W_{kind.upper()}"][receiver.node.head]

    def run(
        self, tokens: Int[Tensor, "B T"], removed: tuple[int, Float[Tensor, "B T D"]] | None = None
    ) -> tuple[Float[Tensor, "S B T D"], Float[Tensor, "B T Vout"]]:
        """What every sender writes, and the logits.

        Args:
            removed: a receiver, and what is added to its input: the ablated minus the clean value of one sender.
        """
        sent = self._embed(tokens)

        def read(receiver: Receiver) -> Tensor:
            row = self.graph.receiver_index[receiver.name]
            residual = torch.stack(sent[: int(self.graph.n_upstream[row])]).sum(0)
            residual = residual + removed[1] if removed is not None and removed[0] == row else residual
            return residual @ self.read_matrix(receiver)

        for node in self.graph.senders[len(sent) :]:
            sent.append(self._head(node, read) if node.kind == "head" else self._mlp(node, read))
        return torch.stack(sent), read(self.graph.receivers[-1]) + self.weights["unembed.b_U"]

    def _embed(self, tokens: Int[Tensor, "B T"]) -> list[Float[Tensor, "B T D"]]:
        token = self.weights["embed.W_E"][tokens]
        position = self.weights["pos_embed.W_pos"][: tokens.shape[1]].expand_as(token)
        return [token, position] if self.graph.split_embeddings else [token + position]

    def _head(self, node: Node, read: Callable[[Receiver], Tensor]) -> Float[Tensor, "B T D"]:
        prefix = f"blocks.{node.layer}.attn"
        q, k, v = (
            read(Receiver(node, letter)) + self.weights[f"{prefix}.b_{letter.upper()}"][node.head] for letter in ("q", "k", "v")
        )
        scores = q @ k.transpose(-1, -2) / self.toy.config.score_divisor
        if self.toy.config.attention_dir == "causal":
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1) @ v @ self.weights[f"{prefix}.W_O"][node.head]

    def _mlp(self, node: Node, read: Callable[[Receiver], Tensor]) -> Float[Tensor, "B T D"]:
        prefix = f"blocks.{node.layer}.mlp"
        hidden = (read(Receiver(node)) + self.weights[f"{prefix}.b_in"]).relu()
        return hidden @ self.weights[f"{prefix}.W_out"] + self.weights[f"{prefix}.b_out"]
