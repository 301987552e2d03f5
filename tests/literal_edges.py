"""What cutting an edge does to a Hugging Face model, literally: its own forward pass with hooks, prompt by prompt, in float64.

Families whose blocks are called as Llama's: pre-norms, `self_attn` with q, k, v and o projections, `mlp`; Gemma's norms after
attention and MLP, too. A head has a k and a v of its own, also where several share one: the attention itself is given the
changed row. A norm after attention, which couples the heads of a layer, divides by its size in the full model's run on the
clean prompt, as in the engine.

Shape letters: T positions, D residual width, K head width.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


@contextmanager
def in_float64(module: Any) -> Iterator[dict[str, Any]]:
    """Norms and softmaxes of a model's family in its own precision; the table holds `change`, of queries, keys and values,
    and `sizes`, by which norms divide that are frozen."""
    import sys

    code: Any = sys.modules[type(module).__module__]
    table: dict[str, Any] = {"change": lambda layer, states: states, "sizes": {}}

    def norm(self: Any, x: Tensor) -> Tensor:
        epsilon = getattr(self, "variance_epsilon", None) or self.eps
        scale = self.weight + 1 if "Gemma" in type(self).__name__ else self.weight
        size = table["sizes"].get(self)
        return x * (torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) if size is None else size) * scale

    def attention(
        part: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
    ) -> Any:
        key, value = (code.repeat_kv(x, part.num_key_value_groups) for x in (key, value))
        query, key, value = table["change"](part.layer_idx, (query, key, value))
        pattern = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in vars(code) if name.endswith("RMSNorm")]:
            patch.setattr(getattr(code, name), "forward", norm)
        patch.setattr(code, "eager_attention_forward", attention)
        yield table


class Literal:
    """One model, run with hooks.

    Args:
        module: in float64, its attention eager.
        table: of `in_float64`.
    """

    def __init__(self, module: Any, table: dict[str, Any]) -> None:
        self.module, self.table, self.layers = module, table, module.model.layers
        self.n_heads = module.config.num_attention_heads

    def _before_mlp(self, layer: Any) -> Any:
        return getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)

    @torch.no_grad()
    def senders(self, tokens: tuple[int, ...], freeze: bool = False) -> Callable[[str], Tensor]:
        """What each sender writes in a run: `input`, `a3.h5`, `m2`. [T, D]

        Args:
            freeze: norms after attention divide by their sizes in this run from here on.
        """
        self.table["sizes"] = {}
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda part, inputs, output: kept.__setitem__(name, output[0].clone())

        def keep_z(number: int) -> Any:
            return lambda part, inputs: kept.__setitem__(f"z{number}", inputs[0][0].clone())

        with ExitStack() as hooks:
            hooks.enter_context(_hook(self.module.model.embed_tokens, keep("input")))
            for number, layer in enumerate(self.layers):
                hooks.enter_context(_hook_before(layer.self_attn.o_proj, keep_z(number)))
                after = layer.post_feedforward_layernorm if hasattr(layer, "post_feedforward_layernorm") else layer.mlp
                hooks.enter_context(_hook(after, keep(f"m{number}")))
            self.module(torch.tensor([tokens]))

        if hasattr(self.layers[0], "pre_feedforward_layernorm"):
            sizes = {layer.post_attention_layernorm: self._size(n, kept[f"z{n}"]) for n, layer in enumerate(self.layers)}
            self.table["sizes"] = sizes if freeze else {}

        def written(sender: str) -> Tensor:
            if not sender.startswith("a"):
                return kept[sender]
            number, head = (int(part[1:]) for part in sender.split("."))
            attention = self.layers[number].self_attn
            z, width = kept[f"z{number}"], attention.head_dim
            own = slice(head * width, (head + 1) * width)
            result = z[:, own] @ attention.o_proj.weight[:, own].T
            if not hasattr(self.layers[number], "pre_feedforward_layernorm"):
                return result
            return result * self._size(number, z) * (1 + self.layers[number].post_attention_layernorm.weight)

        return written

    def _size(self, number: int, z: Tensor) -> Tensor:
        """By which the norm after attention divides, from what the heads have read. [T, 1]"""
        whole = self.layers[number].self_attn.o_proj(z)
        return torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self.layers[number].post_attention_layernorm.eps)

    @torch.no_grad()
    def without(self, edge: str, clean: tuple[int, ...], corrupted: tuple[int, ...]) -> Tensor:
        """Logits of the clean prompt where one edge carries its sender's value on the corrupted prompt. [T, V]"""
        sender, _, receiver = edge.partition("->")
        change = self.senders(corrupted)(sender) - self.senders(clean, freeze=True)(sender)
        if receiver == "logits":
            return self._run(clean, self.module.model.norm, change)
        if receiver.startswith("m"):
            layer = self.layers[int(receiver[1:])]
            return self._run(clean, self._before_mlp(layer), change)
        number, head = (int(part[1:]) for part in receiver.partition("<")[0].split("."))
        place = "qkv".index(receiver[-2])
        seen: dict[str, Tensor] = {}

        def keep(layer: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if layer == number:
                seen["row"] = states[place][:, head].clone()
            return states

        def put(layer: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if layer == number:
                states = tuple(state.clone() for state in states)
                states[place][:, head] = seen["row"]
            return states

        self.table["change"] = keep  # all that the attention reads is changed: of it, one head's one input is kept
        self._run(clean, self.layers[number].input_layernorm, change)
        self.table["change"] = put
        logits = self._run(clean)
        self.table["change"] = lambda layer, states: states
        return logits

    def _run(self, tokens: tuple[int, ...], norm: Any = None, change: Tensor | None = None) -> Tensor:
        with ExitStack() as hooks:
            if norm is not None:
                hooks.enter_context(_hook_before(norm, lambda part, inputs: (inputs[0] + change,)))
            return self.module(torch.tensor([tokens])).logits[0]


@contextmanager
def _hook(part: Any, function: Any) -> Iterator[None]:
    handle = part.register_forward_hook(function)
    yield
    handle.remove()


@contextmanager
def _hook_before(part: Any, function: Any) -> Iterator[None]:
    handle = part.register_forward_pre_hook(function)
    yield
    handle.remove()


def effects(model: Any, module: Any, examples: Any, edges: list[str]) -> SimpleNamespace:
    """Logit differences without each edge, by the engine and literally. Two arrays [edges, examples].

    Args:
        examples: with one answer position, one right and one wrong answer.
    """
    from circuitdisc.ablation import Ablation
    from circuitdisc.engine.patching import Patching
    from circuitdisc.metrics import METRICS

    graph, masks = model.graph, {}
    for edge in edges:
        sender, _, receiver = edge.partition("->")
        mask = graph.edge_mask.copy()
        at = graph.receiver_index[receiver], graph.sender_index[sender]
        assert mask[at]
        mask[at] = False
        masks[edge] = mask
    values = Patching(model, Ablation("resample"), examples).evaluate(examples, masks, [METRICS["logit_diff"]])
    engine = torch.stack([values[edge]["logit_diff"].double().cpu() for edge in edges])
    with in_float64(module) as table:
        literal, rows = Literal(module, table), []
        for edge in edges:
            logits = [literal.without(edge, example.clean, example.corrupted)[example.positions[0]] for example in examples]
            pairs = zip(logits, examples, strict=True)
            rows.append(torch.stack([row[example.answers[0][0]] - row[example.wrong[0][0]] for row, example in pairs]))
    return SimpleNamespace(engine=engine, literal=torch.stack(rows))
