"""How much one neuron's output alone raises the log-probability of the right answer, for every neuron of a layer.

    added     log p(right | x + v) - log p(right | x)    x: the residual that the layer's MLP adds to, without that MLP
    removed   log p(right | x) - log p(right | x - v)    x: the final residual

v is what the neuron writes at the reading: its activation times its row of W_out. p is read off x by the final norm, the
unembedding and a softmax over the whole vocabulary, with the norm's scale frozen at its value in the run's final residual (and,
in models with a norm after the MLP, that norm's scale, too). Exact for each neuron: no gradient, no choice of candidates.

With the scale frozen, v adds u to the logits, and the rise is log sum q exp(u) over the right answers minus log sum p exp(u)
over the vocabulary, p and q being the probabilities before: no difference of two large numbers, so that small rises keep their
digits.

Shape letters: N readings, M neurons of a layer, m neurons of a block, D residual width, V vocabulary, A right answers.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdisc.engine.neuron_run import NeuronTrace
from circuitdisc.engine.readout import Readout
from circuitdisc.metrics import Labels
from circuitdisc.models.components import Components

Method = Literal["added", "removed"]
COPIES_OF_LOGITS = 3  # the neurons' logits, their exponentials, and room for a second try
CPU_LOGITS = 2**22  # as many at once as stay in a CPU's cache, about
LEAST_LEFT = 0.1
"""Of a probability, in units of what it was before: where less is left digits are lost, and the logits are taken."""


class _Moves(NamedTuple):
    """What a layer's neurons can do in one run.

    Args:
        base: logits that the neurons' are added to. [N, V]
        amount: how much of its direction each neuron adds. [N, M]
    """

    base: Float[Tensor, "N V"]
    amount: Float[Tensor, "N M"]


@torch.no_grad()
def neuron_importance(
    components: Components, labels: Labels, traces: Sequence[NeuronTrace], layer: int, method: Method, budget: int
) -> list[Float[Tensor, "N M"]]:
    """Importance of a layer's neurons at every reading, in each of several runs.

    Args:
        labels: of all readings.
        traces: of each run, at the same readings.
        budget: bytes for logits.
    """
    wide = torch.promote_types(components.dtype, torch.float32)
    readouts = [Readout(components, trace.final.to(wide)) for trace in traces]
    runs = [_moves(readout, trace, layer, method) for readout, trace in zip(readouts, traces, strict=True)]
    directions, W_U = output_directions(components, readouts[0], layer), components.weights.W_U.to(wide)
    scores = [torch.empty_like(run.amount) for run in runs]
    for neurons in _blocks(directions.shape[0], W_U, budget):
        logits = directions[neurons] @ W_U  # [m, V]
        for run, importance in zip(runs, scores, strict=True):
            for reading in range(len(run.base)):
                answers = labels.answers[reading][labels.answers_mask[reading]]
                by = rise(components.spec.logit_softcap, run.base[reading], run.amount[reading, neurons], logits, answers)
                importance[reading, neurons] = by if method == "added" else -by
    return scores


def _moves(readout: Readout, trace: NeuronTrace, layer: int, method: Method) -> _Moves:
    amount = trace.hidden[layer].to(readout.dtype) * readout.reciprocal
    if layer in trace.after_scale:
        amount = amount * trace.after_scale[layer].to(readout.dtype)
    x = trace.before[layer] if method == "added" else trace.final
    return _Moves(readout.logits(x.to(readout.dtype)), amount if method == "added" else -amount)


def output_directions(components: Components, readout: Readout, layer: int) -> Float[Tensor, "M D"]:
    """What each neuron writes for an activation of 1, as it stands after the final norm but for the frozen scales."""
    block = components.weights.layers[layer]
    assert block.W_out is not None, f"layer {layer} has no MLP"
    rows = block.W_out
    if block.norm_after_mlp is not None and block.norm_after_mlp.scale is not None:
        rows = rows * block.norm_after_mlp.scale
    return readout.turned(rows)


def _blocks(n_neurons: int, W_U: Float[Tensor, "D V"], budget: int) -> Iterator[slice]:
    """Blocks of neurons whose logits fit."""
    most = budget // (COPIES_OF_LOGITS * W_U.itemsize)
    if W_U.device.type == "cpu":
        most = min(most, CPU_LOGITS)
    size = max(1, most // W_U.shape[1])
    for first in range(0, n_neurons, size):
        yield slice(first, first + size)


def rise(
    cap: float | None,
    base: Float[Tensor, "V"],
    amount: Float[Tensor, "m"],
    logits: Float[Tensor, "m V"],
    answers: Tensor,
) -> Float[Tensor, "m"]:
    """How much each neuron raises the log-probability of the right answers at one reading."""
    if cap is not None:
        return _rise_from_logits(cap, base, amount, logits, answers)
    p = base.softmax(-1)
    added = amount[:, None] * logits
    right = torch.expm1(added[:, answers]) @ base[answers].softmax(-1)
    whole = added.expm1_() @ p
    change = right.log1p() - whole.log1p()
    lost = ~torch.isfinite(change) | (torch.minimum(right, whole) < LEAST_LEFT - 1)
    if lost.any():
        change[lost] = _rise_from_logits(None, base, amount[lost], logits[lost], answers)
    return change


def _rise_from_logits(
    cap: float | None,
    base: Float[Tensor, "V"],
    amount: Float[Tensor, "m"],
    logits: Float[Tensor, "m V"],
    answers: Tensor,
) -> Float[Tensor, "m"]:
    """The same as a difference of log-probabilities: for capped logits, and where exponentials would overflow."""

    def log_right(x: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
        x = x if cap is None else (x / cap).tanh() * cap
        return x[..., answers].logsumexp(-1) - x.logsumexp(-1)

    return log_right(base + amount[:, None] * logits) - log_right(base)
