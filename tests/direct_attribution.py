"""The direct way to attribute edges: autograd through a head-by-head run in which every receiver's input has a leaf of its own,
and one big buffer of differences [S, B, T, D]. Slow and obvious; shares with the package what tests/reference.py does.
"""

from dataclasses import replace

import numpy as np
import torch
from literal_rules import RULES
from reference import norm, run_mlp, turned, unembed

from circuitdisc.ablation import Ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.metrics import Metric
from circuitdisc.models import Model


def leaf_run(
    model: Model, chunk, overrides, leaves, leaf_patterns=None, rule="plain", written=None, own_scales=False, dropped=None
) -> torch.Tensor:
    """Logits at the readings [N, V].

    Args:
        overrides: sender index -> what it writes instead.
        leaves: receiver index -> what is added to its input.
        leaf_patterns: (layer, head) -> what is added to its attention pattern.
        rule: of the backward pass (tests/literal_rules.py).
        written: a list that takes what every sender writes.
        dropped: a layer through whose writes no gradient passes.
        own_scales: scales of norms that couple the heads of a layer are this run's, and not the clean run's; held, either way.
    """
    how, frame = RULES[rule], chunk.frame
    frame = replace(frame, head_scale=dict(frame.head_scale), turn_scale=dict(frame.turn_scale))
    cut = model.components
    spec, weights, graph, batch = cut.spec, cut.weights, model.graph, chunk.batch
    live: list[torch.Tensor] = []
    constant = torch.zeros(spec.d_model, dtype=cut.dtype)

    def write(value):
        node = graph.senders[len(live)]
        value = value.detach() if dropped is not None and node.layer == dropped else value
        live.append(overrides.get(len(live), value))

    def read(receiver, constant):
        upstream = live[: int(graph.n_upstream[receiver])]
        return torch.stack(upstream).sum(0) + constant + leaves.get(receiver, 0.0)

    positions = batch.position_ids
    token = norm(spec, weights.W_E[batch.clean] * spec.embed_scale, weights.norm_embedding)
    position = torch.zeros_like(token) if weights.W_pos is None else weights.W_pos[positions]
    for value in (token, position) if graph.split_embeddings else (token + position,):
        write(value)
    length = batch.clean.shape[1]
    index = graph.receiver_index
    for layer, block in enumerate(weights.layers):
        before = constant
        outputs, projected = [], []
        for head in range(spec.n_heads):
            group = head // (spec.n_heads // spec.n_kv_heads)
            q, k, v = (how.norm(spec, read(index[f"a{layer}.h{head}<{i}>"], constant), block.norm_attention) for i in "qkv")
            q, k, v = q @ block.W_Q[head], k @ block.W_K[group], v @ block.W_V[group]
            if block.b_Q is not None and block.b_K is not None and block.b_V is not None:
                q, k, v = q + block.b_Q[head], k + block.b_K[group], v + block.b_V[group]
            projected.append((q, k, v))
        if own_scales and spec.norm_across_heads:  # all heads' queries together, and every group's keys
            frame.turn_scale[layer, "q"] = reciprocal_rms(torch.cat([q for q, _, _ in projected], -1), spec.eps)
            keys = [k for _, k, _ in projected[:: spec.n_heads // spec.n_kv_heads]]
            frame.turn_scale[layer, "k"] = reciprocal_rms(torch.cat(keys, -1), spec.eps)
        for head, (q, k, v) in enumerate(projected):
            q, k, v = (how.share(kind, x) for kind, x in (("q", q), ("k", k), ("v", v)))
            q, k = (turned(cut, layer, kind, head, x, positions, frame, how) for kind, x in (("q", q), ("k", k)))
            pattern = attention(cut, layer, head, q, k, batch, length, how)
            if leaf_patterns is not None:
                leaf_patterns[layer, head] = torch.zeros_like(pattern, requires_grad=True)
                pattern = pattern + leaf_patterns[layer, head]
            outputs.append((pattern @ v) @ block.W_O[head])
        if block.norm_after_attention is not None:
            if own_scales:
                total = torch.stack(outputs).sum(0)
                frame.head_scale[layer] = reciprocal_rms(total, spec.eps)
            outputs = [out * frame.head_scale[layer] * block.norm_after_attention.scale for out in outputs]
        if block.b_O is not None:
            constant = constant + block.b_O
        mlp = None
        if spec.parallel and graph.has_mlp:
            mlp = run_mlp(spec, block, read(index[f"m{layer}"], before), how)
        for out in outputs:
            write(out)
        if graph.has_mlp:
            write(mlp if mlp is not None else run_mlp(spec, block, read(index[f"m{layer}"], constant), how))
    if written is not None:
        written.extend(live)
    final = how.norm(spec, read(graph.n_receivers - 1, constant), weights.norm_final)
    return unembed(spec, weights, final)[batch.read_example, batch.read_position]


def reciprocal_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / root mean square of the last axis, as a constant. [B, T, 1]"""
    return 1 / (x.detach().pow(2).mean(-1, keepdim=True) + eps).sqrt()


def attention(cut, layer, head, q, k, batch, length, rule=RULES["plain"]):
    """One head's pattern [B, T, T2]."""
    spec, bias = cut.spec, cut.weights.key_bias
    scores = q @ k.transpose(-1, -2) * spec.attn_scale[layer]
    if spec.score_softcap:
        scores = spec.score_softcap * (scores / spec.score_softcap).tanh()
    if bias is not None:
        scores = scores + bias[head][batch.position_ids][:, None, :]
    window = spec.window[layer] if spec.window else None
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    reach = (j <= i) if spec.causal else torch.ones(length, length, dtype=torch.bool)
    if window is not None:
        reach = reach & (i - j < window)
    allowed = (reach & batch.is_token[:, None, :]) | (i == j)
    return rule.softmax(scores.masked_fill(~allowed, -torch.inf))


def metric_of(metric: Metric, chunk, logits):
    return chunk.batch.per_example(metric(logits, chunk.labels)).mean()


def big_buffer(model: Model, ablation: Ablation, examples):
    """All examples as one chunk, and the differences of all senders. [S, B, T, D]"""
    patching = Patching(model, ablation, examples, memory="64GiB")
    (chunk,) = patching.hold(examples)
    return chunk, chunk.ablated.expand_as(chunk.clean) - chunk.clean


def gradients(model: Model, chunk, metric: Metric, overrides=None, rule="plain", own_scales=False) -> torch.Tensor:
    """d metric / d input of every receiver. [R, B, T, D]"""
    leaves = {r: torch.zeros_like(chunk.clean[0], requires_grad=True) for r in range(model.graph.n_receivers)}
    value = metric_of(metric, chunk, leaf_run(model, chunk, overrides or {}, leaves, rule=rule, own_scales=own_scales))
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return torch.stack(found)


def scores_of(model: Model, delta, g) -> np.ndarray:
    """Every edge's score from both big buffers."""
    scores = torch.einsum("sbtd,rbtd->rs", delta, g).numpy()
    return np.where(model.graph.edge_mask, scores, np.nan)


def direct_eap(model, ablation, examples, metric, rule="plain"):
    chunk, delta = big_buffer(model, ablation, examples)
    return scores_of(model, delta, gradients(model, chunk, metric, rule=rule))


def interpolated(model, chunk, delta, metric, senders, points, rule="plain"):
    """Gradients averaged over points between ablated and clean output of some senders."""
    found = 0.0
    for share, weight in zip(points.shares, points.weights, strict=True):
        overrides = {s: chunk.clean[s] + (1 - share) * delta[s] for s in senders}
        found = found + weight * gradients(model, chunk, metric, overrides, rule)
    return found


def embedding_senders(model):
    return [s for s, node in enumerate(model.graph.senders) if node.kind not in ("head", "mlp")]


def direct_between_embeddings(model, ablation, examples, metric, points, rule="plain"):
    chunk, delta = big_buffer(model, ablation, examples)
    return scores_of(model, delta, interpolated(model, chunk, delta, metric, embedding_senders(model), points, rule))


def direct_between_activations(model, ablation, examples, metric, points, of_embedding=None, rule="plain"):
    chunk, delta = big_buffer(model, ablation, examples)
    groups: dict = {}
    for s, node in enumerate(model.graph.senders):
        kind = node.kind if node.kind in ("head", "mlp") else "embedding"
        groups.setdefault((kind, node.layer), []).append(s)
    scores = np.full(model.graph.edge_mask.shape, np.nan)
    for (kind, _), senders in groups.items():
        taken = of_embedding if of_embedding is not None and kind == "embedding" else points
        some = scores_of(model, delta, interpolated(model, chunk, delta, metric, senders, taken, rule))
        scores[:, senders] = some[:, senders]
    return scores


def direct_conductance(model, ablation, examples, metric, steps):
    """Stretch by stretch from clean to ablated embeddings: how each sender moves, times the gradient at its middle.

    The model is run as it is at every point, with its own scales of norms that couple heads.
    """
    chunk, delta = big_buffer(model, ablation, examples)
    senders = embedding_senders(model)

    def at(way):
        return {s: chunk.clean[s] + way * delta[s] for s in senders}

    def written(way):
        values: list = []
        leaf_run(model, chunk, at(way), {}, written=values, own_scales=True)
        return torch.stack(values)

    scores = 0.0
    for step in range(steps):
        moved = written((step + 1) / steps) - written(step / steps)
        middle = gradients(model, chunk, metric, at((step + 0.5) / steps), own_scales=True)
        scores = scores + scores_of(model, moved, middle)
    return scores


def direct_grad_path(model, ablation, examples, metric, steps):
    """Example by example: down the gradient of the squared distance to the corrupted output, a step of length 1 at a time."""
    chunk, delta = big_buffer(model, ablation, examples)
    senders = embedding_senders(model)
    first, rest = senders[0], sum((chunk.clean[s] for s in senders[1:]), torch.zeros(()))
    owner = chunk.batch.read_example

    def logits(x):
        return leaf_run(model, chunk, {**{s: chunk.clean[s] for s in senders}, first: x - rest}, {})

    x = sum((chunk.clean[s] for s in senders), torch.zeros(()))
    goal = logits(x + sum(delta[s] for s in senders)).detach()
    g = 0.0
    for _ in range(steps):
        moved = []
        for example in range(len(examples)):
            at = x.clone().requires_grad_()
            distance = ((logits(at) - goal)[owner == example] ** 2).sum()
            (way,) = torch.autograd.grad(distance, at)
            assert not way[torch.arange(len(examples)) != example].any(), "examples have nothing to do with each other"
            moved.append(x[example] - way[example] / (way[example] ** 2).sum().sqrt())
        x = torch.stack(moved)
        overrides = {**{s: chunk.clean[s] for s in senders}, first: x - rest}
        g = g + gradients(model, chunk, metric, overrides) / steps
    return scores_of(model, delta, g)


def direct_atp(model, ablation, examples, metric):
    return atp_by_example(model, ablation, examples, metric).mean(0)


def direct_grad_drop(model, ablation, examples, metric):
    """Every layer's writes detached in turn: the size of each example's scores, edges into logits over as many passes."""
    L = model.graph.n_layers
    sizes = np.mean(sum((np.abs(atp_by_example(model, ablation, examples, metric, layer)) for layer in range(L)), 0.0), 0)
    return np.concatenate([sizes[:-1] / (L - 1), sizes[-1:] / L])


def atp_by_example(model, ablation, examples, metric, dropped=None):
    """Edge by edge [B, R, S]: the changed q or k input passes through exactly, and from the pattern on the effect is linear."""
    chunk, delta = big_buffer(model, ablation, examples)
    cut, graph, batch = model.components, model.graph, chunk.batch
    spec, weights = cut.spec, cut.weights
    patterns: dict = {}
    leaves = {r: torch.zeros_like(chunk.clean[0], requires_grad=True) for r in range(graph.n_receivers)}
    value = len(examples) * metric_of(metric, chunk, leaf_run(model, chunk, {}, leaves, patterns, dropped=dropped))
    unused: dict = {"allow_unused": True, "materialize_grads": True}
    g = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, **unused)
    scores = torch.einsum("sbtd,rbtd->brs", delta, torch.stack(g)).numpy()
    scores = np.where(graph.edge_mask, scores, np.nan)
    into_pattern = dict(zip(patterns, torch.autograd.grad(value, list(patterns.values()), **unused), strict=True))
    constant = torch.zeros(spec.d_model, dtype=cut.dtype)
    length = batch.clean.shape[1]
    for layer, block in enumerate(weights.layers):
        for head in range(spec.n_heads):
            group = head // (spec.n_heads // spec.n_kv_heads)

            def project(x, kind, layer=layer, block=block, head=head, group=group):
                x = norm(spec, x, block.norm_attention)
                weight, bias, row = (block.W_Q, block.b_Q, head) if kind == "q" else (block.W_K, block.b_K, group)
                x = x @ weight[row]
                x = x if bias is None else x + bias[row]
                return turned(cut, layer, kind, head, x, batch.position_ids, chunk.frame)

            for kind in "qk":
                r = graph.receiver_index[f"a{layer}.h{head}<{kind}>"]
                clean = chunk.clean[: graph.n_upstream[r]].sum(0) + constant
                pattern = attention(cut, layer, head, project(clean, "q"), project(clean, "k"), batch, length)
                for s in range(int(graph.n_upstream[r])):
                    q = project(clean + delta[s] if kind == "q" else clean, "q")
                    k = project(clean + delta[s] if kind == "k" else clean, "k")
                    changed = attention(cut, layer, head, q, k, batch, length)
                    scores[:, r, s] = ((changed - pattern) * into_pattern[layer, head]).sum((1, 2)).numpy()
        if block.b_O is not None:
            constant = constant + block.b_O
    return scores
