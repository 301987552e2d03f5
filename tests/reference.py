"""The slow, obvious truth: the whole model, head by head, every edge masked, straight from the weights.

Shares with the package only the weights' layout and the table of activations (and the scales that are frozen at their clean
values: of norms after attention, and of norms of queries and keys across heads).
"""

import math

import torch

from circuitdisc.metrics import Metric
from circuitdisc.models import Model
from circuitdisc.models.weights import ACTIVATIONS, NormWeights


def norm(spec, x, weights):
    if spec.norm is None or not weights.present:
        return x
    if spec.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + spec.eps).sqrt()
    if weights.scale is not None:
        x = x * weights.scale
    return x if weights.shift is None else x + weights.shift


def unembed(spec, weights, normed):
    """Logits of a final residual after its norm."""
    logits = normed @ weights.W_U if weights.b_U is None else normed @ weights.W_U + weights.b_U
    return logits if not spec.logit_softcap else spec.logit_softcap * (logits / spec.logit_softcap).tanh()


def rotate(x, positions, frequencies, neighbours=False, scale=1.0):
    """Rotate pairs (i, i + half), or neighbours (2 i, 2 i + 1), by position * frequency. x [B, T, K]."""
    out = x.clone()
    half = len(frequencies)
    angle = positions[..., None].float() * frequencies
    cos, sin = angle.cos().to(x.dtype) * scale, angle.sin().to(x.dtype) * scale
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if neighbours else (slice(half), slice(half, 2 * half))
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def turned(cut, layer, kind, head, x, positions, frame, rule=None):
    """One head's queries or keys as its pattern takes them: normed and turned by their positions. x [B, T, K]"""
    spec, block = cut.spec, cut.weights.layers[layer]
    weights, row = (block.norm_q, head) if kind == "q" else (block.norm_k, head // (spec.n_heads // spec.n_kv_heads))
    if weights is not None:
        scale = weights.scale if weights.scale is None or weights.scale.dim() == 1 else weights.scale[row]
        if spec.norm_across_heads:  # by the size of all heads' together in the full run
            x = x * frame.turn_scale[layer, kind] * (1.0 if scale is None else scale)
        else:
            x = (rule.norm if rule else norm)(spec, x, NormWeights(scale, weights.shift))
    which = spec.rotary[layer] if spec.rotary else 0
    frequencies = cut.weights.inverse_frequencies
    if not frequencies or which is None:
        return x
    return rotate(x, positions, frequencies[which], spec.rotary_pairs == "neighbours", spec.rotary_scale)


def masked_run(model: Model, chunk, mask) -> torch.Tensor:
    """Logits at the readings [N, V]: every receiver reads each sender live if its edge is kept, else ablated.

    Args:
        mask: the edges that are kept; or where, token by token. [R, S] or [R, S, B, T]
    """
    cut = model.components
    spec, weights, graph, batch = cut.spec, cut.weights, model.graph, chunk.batch
    mask = mask if isinstance(mask, torch.Tensor) else torch.from_numpy(mask.copy())
    ablated = chunk.ablated.expand_as(chunk.clean)
    live = []
    constant = torch.zeros(spec.d_model, dtype=cut.dtype)

    def read(receiver):
        total = constant + torch.zeros_like(chunk.clean[0])
        for sender in range(int(graph.n_upstream[receiver])):
            total = total + torch.where((mask[receiver, sender] != 0)[..., None], live[sender], ablated[sender])
        return total

    positions = batch.position_ids
    token = norm(spec, weights.W_E[batch.clean] * spec.embed_scale, weights.norm_embedding)
    position = torch.zeros_like(token) if weights.W_pos is None else weights.W_pos[positions]
    live += [token, position] if graph.split_embeddings else [token + position]
    length = batch.clean.shape[1]
    receiver_of = graph.receiver_index
    for layer, block in enumerate(weights.layers):
        outputs = []
        for head in range(spec.n_heads):
            group = head // (spec.n_heads // spec.n_kv_heads)
            q, k, v = (norm(spec, read(receiver_of[f"a{layer}.h{head}<{i}>"]), block.norm_attention) for i in "qkv")
            q, k, v = q @ block.W_Q[head], k @ block.W_K[group], v @ block.W_V[group]
            if block.b_Q is not None and block.b_K is not None and block.b_V is not None:
                q, k, v = q + block.b_Q[head], k + block.b_K[group], v + block.b_V[group]
            q, k = (turned(cut, layer, kind, head, x, positions, chunk.frame) for kind, x in (("q", q), ("k", k)))
            scores = torch.full((batch.n_examples, length, length), -math.inf, dtype=cut.dtype)
            window = spec.window[layer] if spec.window else None
            for i in range(length):
                for j in range(length):
                    in_reach = (j <= i or not spec.causal) and (window is None or i - j < window)
                    if not in_reach:
                        continue
                    score = (q[:, i] * k[:, j]).sum(-1) * spec.attn_scale[layer]
                    if spec.score_softcap:
                        score = spec.score_softcap * (score / spec.score_softcap).tanh()
                    if weights.key_bias is not None:
                        score = score + weights.key_bias[head][positions[:, j]]
                    scores[:, i, j] = torch.where(batch.is_token[:, j] | torch.tensor(i == j), score, -math.inf)
            out = (scores.softmax(-1) @ v) @ block.W_O[head]
            if block.norm_after_attention is not None:
                assert chunk.frame is not None
                assert block.norm_after_attention.scale is not None
                out = out * chunk.frame.head_scale[layer] * block.norm_after_attention.scale
            outputs.append(out)
        before = constant
        constant = constant if block.b_O is None else constant + block.b_O
        if spec.parallel:  # the MLP reads what the heads read
            after, constant = constant, before
            mlp = run_mlp(spec, block, read(receiver_of[f"m{layer}"]))
            constant = after
            live += [*outputs, mlp]
            continue
        live += outputs
        if graph.has_mlp:
            live.append(run_mlp(spec, block, read(receiver_of[f"m{layer}"])))
    final = norm(spec, read(graph.n_receivers - 1), weights.norm_final)
    return unembed(spec, weights, final)[batch.read_example, batch.read_position]


def run_mlp(spec, block, x, rule=None):
    """An MLP's output.

    Args:
        rule: of the backward pass (tests/literal_rules.py); None: autograd's own.
    """
    activation = ACTIVATIONS[spec.activation]
    normed = rule.norm if rule else norm
    x = normed(spec, x, block.norm_mlp)
    if block.experts is not None:
        out = block.experts(x)
        out = out[0] if isinstance(out, tuple) else out
        return out if block.norm_after_mlp is None else normed(spec, out, block.norm_after_mlp)
    hidden = x @ block.W_in
    if block.b_in is not None:
        hidden = hidden + block.b_in
    if rule is None:
        hidden = activation(hidden) if block.W_gate is None else activation(x @ block.W_gate) * hidden
    elif block.W_gate is None:
        hidden = rule.activation(activation, hidden)
    else:
        hidden = rule.product(rule.activation(activation, x @ block.W_gate), hidden)
    out = hidden @ block.W_out
    if block.b_out is not None:
        out = out + block.b_out
    return out if block.norm_after_mlp is None else normed(spec, out, block.norm_after_mlp)


def masked_metric(model: Model, chunks, mask, metric: Metric) -> float:
    """Mean metric over all examples of the masked run."""
    values = [chunk.batch.per_example(metric(masked_run(model, chunk, mask), chunk.labels)) for chunk in chunks]
    return float(torch.cat(values).mean())
