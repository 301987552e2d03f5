"""Two models of an architecture, and patching between them by a literal loop with hooks on the modules."""

import copy
from functools import cache

import torch
from examples import examples_with_role
from models import TOYS, hugging_face, toy

from circuitdisc.checkpoints.cmap.cmap import cmap
from circuitdisc.engine.cross.patch import HEAD_KINDS
from circuitdisc.engine.requirements import components_of
from circuitdisc.metrics.logit_diff import logit_diff
from circuitdisc.models import cut_hugging_face, cut_toy
from circuitdisc.tasks.base import Task, collate
from circuitdisc.tasks.roles import position_of

FAMILIES = ("gpt2", "llama")
GROUPS = {"A": ("a1.h0", "a1.h3"), "B": ("a0.h2", "a1.h1")}
N = 4  # examples that judge


@cache
def module_of(family, which):
    """The module; `tuned` is a copy with other weights nearby."""
    module = hugging_face(family).double()
    if which == "tuned":
        module = copy.deepcopy(module)
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


@cache
def model(family, which):
    if family not in TOYS:
        return cut_hugging_face(module_of(family, which), name=which)
    return cut_toy(toy(family, seed=int(which == "tuned")).double(), name=which)


def spec_of(family):
    return components_of(model(family, "base"), "the test").spec


@cache
def task_of(family):
    examples = examples_with_role(model(family, "base"), 2 * N)
    return Task("random", examples[:N], examples[N:])


@cache
def mapped(family, positions=None):
    """Everything that cmap has, of both directions."""
    return cmap(
        model(family, "base"), model(family, "tuned"), task_of(family), what=HEAD_KINDS, groups=GROUPS, direction="both",
        positions=positions, n_random=3, top=3, steps=[0, 2, 5],
    )  # fmt: skip


# --- the truth: the modules, with hooks ----------------------------------------------------------------------------------


def parts_of(module, family, layer):
    """The block, its projections (as slices of outputs of submodules), its output projection and its MLP."""
    if family == "gpt2":
        block, D = module.transformer.h[layer], module.config.n_embd
        reads = {kind: (block.attn.c_attn, at * D) for at, kind in enumerate(("query", "key", "value"))}
        return block, reads, block.attn.c_proj, block.mlp
    block = module.model.layers[layer]
    names = {"query": block.self_attn.q_proj, "key": block.self_attn.k_proj, "value": block.self_attn.v_proj}
    return block, {kind: (one, 0) for kind, one in names.items()}, block.self_attn.o_proj, block.mlp


def sizes(module):
    heads = module.config.num_attention_heads
    return heads, module.config.hidden_size // heads, heads // getattr(module.config, "num_key_value_heads", heads)


def weight_and_bias(out):
    """W_O as [H K, D], and its bias."""
    weight = out.weight if type(out).__name__ == "Conv1D" else out.weight.T
    return weight, 0.0 if out.bias is None else out.bias


def with_hooks(module, example, hooks):
    handles = [getattr(one, register)(hook) for one, register, hook in hooks]
    with torch.no_grad():
        found = module(torch.tensor([example.clean]), output_attentions=True)
    for handle in handles:
        handle.remove()
    return found.logits[0], [pattern[0] for pattern in found.attentions]


@cache
def recorded(family, which, index):
    """A module's activations on one example, layer by layer, and its logits."""
    module, example = module_of(family, which), task_of(family).heldout[index]
    layers, hooks = [], []
    for layer in range(module.config.num_hidden_layers):
        held = {}
        layers.append(held)
        block, reads, out, mlp = parts_of(module, family, layer)
        hooks.append((block, "register_forward_pre_hook", lambda _, args, held=held: held.update(residual=args[0][0])))
        hooks.append((mlp, "register_forward_hook", lambda _, args, y, held=held: held.update(mlp=y[0])))
        hooks.append((out, "register_forward_pre_hook", lambda _, args, held=held: held.update(z=args[0][0])))
        for kind, (one, start) in reads.items():

            def keep(_, args, y, held=held, kind=kind, start=start):
                stop = start + module.config.hidden_size if family == "gpt2" else y.shape[-1]
                held[kind] = y[0, :, start:stop].clone()

            hooks.append((one, "register_forward_hook", keep))
    logits, patterns = with_hooks(module, example, hooks)
    for held, pattern in zip(layers, patterns, strict=True):
        held["pattern"] = pattern
    return layers, logits[list(example.positions)]


def by_hooks(family, taker, giver, index, patch, positions=None):
    """Metric of one example when a patch is made by hooks."""
    module, other = module_of(family, taker), module_of(family, giver)
    example, given = task_of(family).heldout[index], recorded(family, giver, index)[0]
    at = list(range(len(example))) if positions is None else sorted({position_of(example, one) for one in positions})
    _, width, shared = sizes(module)
    hooks = []
    for layer in range(module.config.num_hidden_layers):
        block, reads, out, mlp = parts_of(module, family, layer)
        held, live = given[layer], {}
        if layer in patch.residual:

            def residual(_, args, held=held):
                x = args[0].clone()
                x[0, at] = held["residual"][at]
                return (x, *args[1:])

            hooks.append((block, "register_forward_pre_hook", residual))
        for kind, (one, start) in reads.items():

            def read(_, args, y, kind=kind, start=start, held=held, live=live, layer=layer):
                y = y.clone()
                for number in patch.numbers(kind, layer):
                    columns = slice(start + number * width, start + (number + 1) * width)
                    y[0, at, columns] = held[kind][at, number * width : (number + 1) * width]
                live[kind] = y[0, :, start:]
                return y

            hooks.append((one, "register_forward_hook", read))

        def weighted(_, args, held=held, live=live, layer=layer):
            z = args[0].clone()
            for head in patch.numbers("pattern", layer):
                values = live["value"][:, head // shared * width :][:, :width]
                z[0, at, head * width : (head + 1) * width] = held["pattern"][head, at] @ values
            live["z"] = z[0]
            return (z,)

        def written(_, args, y, held=held, live=live, layer=layer, out=out):
            y = y.clone()
            mine, my_bias = weight_and_bias(out)
            theirs, their_bias = weight_and_bias(parts_of(other, family, layer)[2])
            for head in patch.numbers("output", layer):
                rows = slice(head * width, (head + 1) * width)
                y[0, at] += held["z"][at, rows] @ theirs[rows] - live["z"][at, rows] @ mine[rows]
            if patch.biases:
                y[0, at] += their_bias - my_bias
            return y

        hooks += [(out, "register_forward_pre_hook", weighted), (out, "register_forward_hook", written)]
        if layer in patch.mlps:

            def replaced(_, args, y, held=held):
                y = y.clone()
                y[0, at] = held["mlp"][at]
                return y

            hooks.append((mlp, "register_forward_hook", replaced))
    return metric_of(example, with_hooks(module, example, hooks)[0][list(example.positions)])


def metric_of(example, logits):
    return float(logit_diff(logits, collate([example]).labels).mean())


def loop(family, taker, giver, patch, positions=None):
    return [by_hooks(family, taker, giver, index, patch, positions) for index in range(N)]


def own(family, which):
    task = task_of(family)
    return [metric_of(task.heldout[index], recorded(family, which, index)[1]) for index in range(N)]
