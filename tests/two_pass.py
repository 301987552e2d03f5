"""Path patching as the paper words it: two runs of the whole model for each sender, head by head, straight from the weights.

Shares with the package only the weights' layout, the table of activations and (for Gemma 2) the norm scale held at its
clean value.
"""

import math

import torch
from reference import turned, unembed

from circuitdisc.models.weights import ACTIVATIONS


def size_of(spec, x):
    """What a norm divides x by."""
    if spec.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return (x.pow(2).mean(-1, keepdim=True) + spec.eps).sqrt()


def norm(spec, x, weights, size=None):
    if spec.norm is None:
        return x
    size = size_of(spec, x) if size is None else size
    x = (x - x.mean(-1, keepdim=True) if spec.norm == "layer" else x) / size
    x = x if weights.scale is None else x * weights.scale
    return x if weights.shift is None else x + weights.shift


class PlainRun:
    """One run of the whole model on the clean prompts.

    Args:
        outputs: sender -> (where, value): its output is replaced there.
        frozen: sender -> value: its output, whatever it reads.
        inputs: receiver -> (where, value): what it reads is replaced there.
        sizes: receiver -> (where, size): what its norm divides by there.
    """

    def __init__(self, model, chunk, outputs=None, frozen=None, inputs=None, sizes=None):
        cut = model.components
        self.model, self.chunk, self.spec, self.weights = model, chunk, cut.spec, cut.weights
        self.outputs, self.frozen, self.inputs, self.sizes = outputs or {}, frozen or {}, inputs or {}, sizes or {}
        self.read, self.written = {}, {}
        self.logits = self.run()

    def normed(self, receiver, x, weights):
        """The receiver's normed input, from the residual stream."""
        if receiver in self.inputs:
            where, value = self.inputs[receiver]
            x = torch.where(where[..., None], value, x)
        self.read[receiver] = x
        size = None
        if receiver in self.sizes and self.spec.norm is not None:
            where, old = self.sizes[receiver]
            size = torch.where(where[..., None], size_of(self.spec, old), size_of(self.spec, x))
        return norm(self.spec, x, weights, size)

    def write(self, sender, value):
        value = self.frozen.get(sender, value)
        if sender in self.outputs:
            where, new = self.outputs[sender]
            value = torch.where(where[..., None], new, value)
        self.written[sender] = value
        return value

    def run(self):
        spec, weights, batch = self.spec, self.weights, self.chunk.batch
        positions = batch.position_ids
        x = weights.W_E[batch.clean] * spec.embed_scale
        if weights.W_pos is not None:
            x = x + weights.W_pos[positions]
        for layer, block in enumerate(weights.layers):
            after = x
            for head in range(spec.n_heads):
                after = after + self.write(f"a{layer}.h{head}", self.head(layer, head, x))
            if block.b_O is not None:
                after = after + block.b_O
            if self.model.graph.has_mlp:
                seen = x if spec.parallel else after
                normed = self.normed(f"m{layer}", seen, block.norm_mlp)
                after = after + self.write(f"m{layer}", self.mlp(block, normed))
            x = after
        return unembed(spec, weights, self.normed("logits", x, weights.norm_final))[batch.read_example, batch.read_position]

    def mlp(self, block, x):
        activation = ACTIVATIONS[self.spec.activation or ""]
        hidden = x @ block.W_in + (0 if block.b_in is None else block.b_in)
        hidden = activation(hidden) if block.W_gate is None else activation(x @ block.W_gate) * hidden
        out = hidden @ block.W_out + (0 if block.b_out is None else block.b_out)
        return out if block.norm_after_mlp is None else norm(self.spec, out, block.norm_after_mlp)

    def head(self, layer, head, x):
        spec, batch, block = self.spec, self.chunk.batch, self.weights.layers[layer]
        group = head // (spec.n_heads // spec.n_kv_heads)
        q, k, v = (self.normed(f"a{layer}.h{head}<{i}>", x, block.norm_attention) for i in "qkv")
        q, k, v = q @ block.W_Q[head], k @ block.W_K[group], v @ block.W_V[group]
        if block.b_Q is not None:
            q, k, v = q + block.b_Q[head], k + block.b_K[group], v + block.b_V[group]
        q, k = (
            turned(self.model.components, layer, kind, head, x, batch.position_ids, self.chunk.frame)
            for kind, x in (("q", q), ("k", k))
        )
        scores = q @ k.transpose(1, 2) * spec.attn_scale[layer]
        if spec.score_softcap:
            scores = spec.score_softcap * (scores / spec.score_softcap).tanh()
        length = batch.clean.shape[1]
        window = (spec.window[layer] if spec.window else None) or length
        back = torch.arange(length)[:, None] - torch.arange(length)
        seen = (back < window) & (back >= (0 if spec.causal else -length)) & batch.is_token[:, None, :] | (back == 0)
        scores = torch.where(seen, scores, -math.inf)
        out = (scores.softmax(-1) @ v) @ block.W_O[head]
        if block.norm_after_attention is not None:
            out = out * self.chunk.frame.head_scale[layer] * block.norm_after_attention.scale
        return out


def two_pass_logits(model, chunk, sender, receivers, replaced, held, mlps="recompute", norms="recompute"):
    """Logits at the readings with the paths from `sender` into `receivers` patched.

    Args:
        replaced, held: where the sender's output is replaced and where the receivers' inputs are set. [B, T]
    """
    clean = PlainRun(model, chunk)
    corrupted = chunk.ablated.expand_as(chunk.clean)[model.graph.sender_index[sender]]
    kept = ("a",) if mlps == "recompute" else ("a", "m")
    frozen = {name: value for name, value in clean.written.items() if name.startswith(kept) and name != sender}
    frozen |= {sender: clean.written[sender]}
    everywhere = torch.ones_like(held)
    old_mlps = {name: (everywhere, x) for name, x in clean.read.items() if name.startswith("m")}
    sizes = old_mlps if norms == "freeze" else {}
    first = PlainRun(model, chunk, {sender: (replaced, corrupted)}, frozen, sizes=sizes)
    inputs = {receiver: (held, first.read[receiver]) for receiver in receivers}
    sizes = {receiver: (held, clean.read[receiver]) for receiver in receivers} if norms == "freeze" else {}
    return PlainRun(model, chunk, inputs=inputs, sizes=sizes).logits
