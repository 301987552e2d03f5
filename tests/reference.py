"""The slow, obvious truth: the whole model, head by head, every edge masked, straight from the weights.

Shares with the package only the weights' layout and the table of activations (and, for Gemma 2, the
norm scale that is held at its clean value).
"""

import math

import torch

from circuitdisc.metrics import Metric
from circuitdisc.models import Model
from circuitdisc.models.components import ACTIVATIONS, Components


def norm(spec, x, weights):
    if spec.norm is None:
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


def rotate(x, positions, frequencies):
    """Rotate pairs (i, i + half) by position * frequency. x [B, T, K]."""
    out = x.clone()
    half = len(frequencies)
    angle = positions[..., None].float() * frequencies
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    out[..., :half] = x[..., :half] * cos - x[..., half : 2 * half] * sin
    out[..., half : 2 * half] = x[..., half : 2 * half] * cos + x[..., :half] * sin
    return out


def masked_run(model: Model, chunk, mask) -> torch.Tensor:
    """Logits at the readings [N, V]: every receiver reads each sender live if its edge is kept, else ablated."""
    cut = model.cut
    assert isinstance(cut, Components)
    spec, weights, graph, batch = cut.spec, cut.weights, model.graph, chunk.batch
    mask = torch.tensor(mask)
    ablated = chunk.ablated.expand_as(chunk.clean)
    live = []
    constant = torch.zeros(spec.d_model, dtype=cut.dtype)

    def read(receiver):
        total = constant + torch.zeros_like(chunk.clean[0])
        for sender in range(int(graph.n_upstream[receiver])):
            total = total + (live[sender] if mask[receiver, sender] else ablated[sender])
        return total

    positions = batch.position_ids
    token = weights.W_E[batch.clean] * spec.embed_scale
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
            if weights.inverse_frequencies is not None:
                q, k = (rotate(x, positions, weights.inverse_frequencies) for x in (q, k))
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


def run_mlp(spec, block, x):
    activation = ACTIVATIONS[spec.activation]
    x = norm(spec, x, block.norm_mlp)
    hidden = x @ block.W_in
    if block.b_in is not None:
        hidden = hidden + block.b_in
    hidden = activation(hidden) if block.W_gate is None else activation(x @ block.W_gate) * hidden
    out = hidden @ block.W_out
    if block.b_out is not None:
        out = out + block.b_out
    return out if block.norm_after_mlp is None else norm(spec, out, block.norm_after_mlp)


def masked_metric(model: Model, chunks, mask, metric: Metric) -> float:
    """Mean metric over all examples of the masked run."""
    values = [chunk.batch.per_example(metric(masked_run(model, chunk, mask), chunk.labels)) for chunk in chunks]
    return float(torch.cat(values).mean())
