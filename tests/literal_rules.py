"""Rules of the backward pass written out: values as they are, and gradients bent by what is detached."""

import torch
from reference import norm


class Plain:
    """Autograd's own."""

    def norm(self, spec, x, weights):
        return norm(spec, x, weights)

    def softmax(self, scores):
        return scores.softmax(-1)

    def activation(self, function, x):
        return function(x)

    def product(self, gate, x):
        return gate * x

    def share(self, kind, x):
        return x


def held_norm(spec, x, weights):
    if spec.norm is None or not weights.present:
        return x
    if spec.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + spec.eps).sqrt().detach()
    if weights.scale is not None:
        x = x * weights.scale
    return x if weights.shift is None else x + weights.shift


def scaled(x, share):
    """x, with `share` of its gradient."""
    return share * x + (1 - share) * x.detach()


class RelP(Plain):
    def norm(self, spec, x, weights):
        return held_norm(spec, x, weights)

    def activation(self, function, x):
        return x * (function(x) / x).detach()

    def product(self, gate, x):
        return 0.5 * (gate * x) + 0.5 * (gate * x).detach()


class Gim(Plain):
    def norm(self, spec, x, weights):
        return held_norm(spec, x, weights)

    def softmax(self, scores):
        """Row by row: sum over j of dp_i / ds_j (s_j - value of s_j), with the Jacobian at half the scores."""
        p, softer = scores.softmax(-1).detach(), (scores.detach() / 2).softmax(-1)
        jacobian = torch.diag_embed(softer) - softer[..., :, None] * softer[..., None, :]
        moved = torch.where(torch.isinf(scores), torch.zeros_like(scores), scores)
        return p + (jacobian @ (moved - moved.detach())[..., None])[..., 0]

    def product(self, gate, x):
        return scaled(gate, 0.5) * scaled(x, 0.5)

    def share(self, kind, x):
        return scaled(x, {"q": 0.25, "k": 0.25, "v": 0.5}[kind])


RULES = {"plain": Plain(), "relp": RelP(), "gim": Gim()}
