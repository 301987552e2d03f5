"""The effect of a single edge by a literal forward pass: Hugging Face's own module, with hooks at one receiver.

Nothing here computes a layer: the module does. Sender values are read off it (what a head writes is its slice of the output
matrix's input times that matrix), and the receiver's linear layers are given another input. Used of the package: a family's
declaration, for the names of modules. Norms that couple heads are held at the clean run's size, as circuitdisc holds them.
"""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from circuitdisc.ablation import Ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.selfcheck import is_the_module
from circuitdisc.graph import ComputationGraph
from circuitdisc.models import cut_hugging_face
from circuitdisc.models.families import find_family
from circuitdisc.models.families.guess import guesses
from circuitdisc.models.families.reader import part, read_module
from circuitdisc.models.hooked import ungroup_queries
from circuitdisc.tasks.base import Example


class Literal:
    """One module and its clean and corrupted prompts [B, T].

    Args:
        module: with as many keys and values as heads, or with edges into q, MLPs and logits alone.
        family: its declaration.
    """

    def __init__(self, module, family, clean, corrupted):
        self.module, self.config = module, module.config.get_text_config()
        self.family, self.names = family, family.layout_of(self.config)
        self.body = part(module, self.names.body)
        self.layers = part(self.body, self.names.layers)
        self.n_heads = self.config.num_attention_heads
        self.clean = clean
        self.scales = {}
        self.corrupted_senders = self._senders(corrupted)
        self.scales = {}
        self.clean_senders = self._senders(clean)

    def _run(self, tokens, hooks=()):
        with ExitStack() as stack, torch.no_grad():
            for module, kind, hook in hooks:
                handle = module.register_forward_pre_hook(hook) if kind == "before" else module.register_forward_hook(hook)
                stack.callback(handle.remove)
            return self.module(input_ids=tokens).logits

    def _where(self, layer, name):
        return part(self.layers[layer], getattr(self.names, name), missing=None) if getattr(self.names, name) else None

    def _senders(self, tokens):
        """What each sender writes, and the size of what norms after attention and across heads divide by."""
        kept, hooks = {}, []

        def keep(key, of_input):
            def hook(module, args, output=()):
                value = args[0] if of_input else output
                kept[key] = (value[0] if isinstance(value, tuple) else value).clone()

            return hook

        hooks.append((self.layers[0], "before", keep("input", True)))
        for layer in range(len(self.layers)):
            hooks.append((self._where(layer, "o"), "before", keep((layer, "z"), True)))
            hooks.append((self._where(layer, "o"), "after", keep((layer, "attention"), False)))
            mlp = self._where(layer, "w_out") or self._where(layer, "experts")
            hooks.append((self._where(layer, "norm_after_mlp") or mlp, "after", keep((layer, "mlp"), False)))
            for name in ("norm_q", "norm_k"):
                if self.family.norm_across_heads:
                    hooks.append((self._where(layer, name), "before", keep((layer, name), True)))
        self._run(tokens, hooks)
        times = getattr(self.config, "residual_multiplier", 1.0)
        senders = {"input": kept["input"]}
        for layer in range(len(self.layers)):
            o: Any = self._where(layer, "o")
            norm = self._where(layer, "norm_after_attention")
            weight = o.weight.t() if type(o).__name__ == "Conv1D" else o.weight
            total = kept[layer, "attention"]
            size = torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + self._eps())
            self.scales[layer] = size
            for name in ("norm_q", "norm_k"):
                if self.family.norm_across_heads:
                    x = kept[layer, name]
                    self.scales[layer, name] = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._eps())
            width = weight.shape[1] // self.n_heads
            for head in range(self.n_heads):
                rows = slice(head * width, (head + 1) * width)
                written = kept[layer, "z"][..., rows] @ weight[:, rows].t()
                if norm is not None:
                    written = written * size * (norm.weight + self.family.norm_offset)
                senders[f"a{layer}.h{head}"] = written * times
            senders[f"m{layer}"] = kept[layer, "mlp"].reshape(total.shape) * times
        return senders

    def _eps(self):
        return getattr(self.config, "rms_norm_eps", 0.0)

    def _held(self):
        """Hooks that hold the norms that couple heads at the clean run's size."""
        hooks = []

        def hold(size, offset):
            return lambda module, args, output: args[0] * size * (module.weight + offset)

        for layer in range(len(self.layers)):
            norm = self._where(layer, "norm_after_attention")
            if norm is not None:
                hooks.append((norm, "after", hold(self.scales[layer], self.family.norm_offset)))
            for name in ("norm_q", "norm_k"):
                if self.family.norm_across_heads:
                    hooks.append((self._where(layer, name), "after", hold(self.scales[layer, name], self.family.norm_offset)))
        return hooks

    def logits(self, sender=None, receiver=None):
        """Logits [B, T, V] with one edge ablated to the corrupted value, or with none."""
        hooks = self._held()
        if sender is not None and receiver is not None:
            delta = self.corrupted_senders[sender] - self.clean_senders[sender]
            hooks += self._at(receiver, delta)
        return self._run(self.clean, hooks)

    def _at(self, receiver, delta):
        if receiver.kind == "logits":
            return [(part(self.body, self.names.norm_final), "before", lambda module, args: (args[0] + delta, *args[1:]))]
        layer = receiver.node.layer
        residual = {}

        def note(module, args):
            residual["x"] = args[0]

        if receiver.kind == "mlp":
            norm = self._where(layer, "norm_mlp")
            linears = [self._where(layer, name) for name in ("w_in", "w_gate", "gate_up") if getattr(self.names, name)]
            linears = [linear for linear in linears if linear is not None] or [self._where(layer, "experts")]
            if norm is None:
                return [(linear, "before", lambda module, args: (args[0] + delta, *args[1:])) for linear in linears]

            def replaced(module, args):
                with torch.no_grad():
                    x = residual["x"]  # OPT's MLPs see all tokens in one row
                    return (norm.forward(x + delta.reshape(x.shape)).reshape(args[0].shape), *args[1:])

            return [(norm, "before", note), *((linear, "before", replaced) for linear in linears)]
        norm = self._where(layer, "norm_attention")
        linear = self._where(layer, "qkv") or self._where(layer, receiver.qkv)
        width = self.config.head_dim if getattr(self.config, "head_dim", None) else self.config.hidden_size // self.n_heads
        first = self._first_column(receiver, linear, width)

        def other(module, args, output):
            x = residual["x"] + delta
            changed = output.clone()
            changed[..., first : first + width] = module.forward(x if norm is None else norm.forward(x))[
                ..., first : first + width
            ]
            return changed

        return [(norm or self.layers[layer], "before", note), (linear, "after", other)]

    def _first_column(self, receiver, linear, width):
        if not self.names.qkv:
            return receiver.node.head * width
        rows = (linear.weight.shape[1] if type(linear).__name__ == "Conv1D" else linear.weight.shape[0]) // width
        groups = (rows - self.n_heads) // 2
        if self.names.qkv_by == "kind":
            assert receiver.qkv is not None
            start = {"q": 0, "k": self.n_heads, "v": self.n_heads + groups}[receiver.qkv]
            return (start + (receiver.node.head if receiver.qkv == "q" or groups == self.n_heads else 0)) * width
        size = rows // groups
        group, inside = divmod(receiver.node.head, size - 2)
        return (group * size + {"q": inside, "k": size - 2, "v": size - 1}[receiver.qkv]) * width


def ungrouped(module):
    """The same function, every head with keys and values of its own, where q, k and v are layers of their own."""
    for attention in module.modules():
        norm, groups = getattr(attention, "k_norm", None), getattr(attention, "num_key_value_groups", 1)
        width = getattr(attention, "head_dim", 0)
        if norm is not None and groups > 1 and norm.weight.numel() > width:
            rows = norm.weight.detach().reshape(-1, width).repeat_interleave(groups, 0)
            norm.weight = torch.nn.Parameter(rows.reshape(-1 if norm.weight.dim() == 1 else rows.shape), requires_grad=False)
    ungroup_queries(module)
    return module


def own_keys(module, family):
    """Whether every head has keys and values of its own, so that an edge into them belongs to one head."""
    names = family.layout_of(module.config.get_text_config())
    if not names.qkv:
        layer = part(part(module, names.body), names.layers)[0]
        return part(layer, names.k).weight.shape[0] == part(layer, names.q).weight.shape[0]
    linear = part(part(part(module, names.body), names.layers)[0], names.qkv)
    config = module.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return max(linear.weight.shape) // width >= 3 * config.num_attention_heads or type(linear).__name__ == "Conv1D"


def compared(module, n_edges=20, seed=0):
    """Largest differences of logits, relative to the largest logit: of the full model, and of edges cut one at a time.

    Args:
        module: of a Hugging Face family, in float64, with keys and values of every head's own.
    """
    model = cut_hugging_face(module, accepts=is_the_module)
    kind = module.config.get_text_config().model_type
    W_Q = model.components.weights.layers[0].W_Q
    family = find_family(kind) or next(
        guess for guess in guesses(module) if torch.equal(read_module(module, guess)[1].layers[0].W_Q, W_Q)
    )
    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(3):
        clean, corrupted = (tuple(generator.integers(0, model.d_vocab, 9).tolist()) for _ in range(2))
        examples.append(Example(clean, corrupted, tuple(range(9)), ((0,),) * 9, ((),) * 9))
    clean, corrupted = (torch.tensor([getattr(example, side) for example in examples]) for side in ("clean", "corrupted"))
    literal = Literal(module, family, clean, corrupted)
    patching = Patching(model, Ablation("resample"), examples)
    (chunk,) = patching.hold(examples)
    full = literal.logits()
    size = float(full.abs().max())
    whole = patching.circuit_logits(chunk, model.graph.edge_mask).reshape(full.shape)
    worst, effect = 0.0, 0.0
    for sender, receiver in random_edges(model.graph, n_edges, generator, own_keys(module, family)):
        mask = model.graph.edge_mask.copy()
        mask[model.graph.receiver_index[receiver.name], model.graph.sender_index[sender]] = False
        expected = literal.logits(sender, receiver)
        found = patching.circuit_logits(chunk, mask).reshape(full.shape)
        worst = max(worst, float((found - expected).abs().max()) / size)
        effect = max(effect, float((expected - full).abs().max()) / size)
    return {"full": float((whole - full).abs().max()) / size, "edges": worst, "effect": effect}


def random_edges(graph: ComputationGraph, n, generator, with_keys=True):
    """Pairs of a sender's name and a receiver."""
    receivers = [node for node in graph.receivers if with_keys or node.qkv in (None, "q")]
    edges = []
    while len(edges) < n:
        receiver = receivers[int(generator.integers(len(receivers)))]
        row = graph.receiver_index[receiver.name]
        sender = graph.senders[int(generator.integers(int(graph.n_upstream[row])))]
        edges.append((sender.name, receiver))
    return edges
