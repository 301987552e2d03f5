"""What a neuron says: the tokens that its output direction raises most, and those that it lowers most.

The row of W_out is taken through the final norm's linear part (centring and weights) and the unembedding. The norm's scale is
one positive number a token, so it changes no order. Values are logits for an activation of 1 at a norm scale of 1, less their
mean over the vocabulary, which a softmax does not see.

Source: Geva et al. 2022, "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary Space"
(EMNLP).

Shape letters: D residual width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuitdisc.checks import Whole, bounded
from circuitdisc.engine.neuron_run import n_neurons
from circuitdisc.engine.readout import Readout
from circuitdisc.engine.requirements import components_of
from circuitdisc.heads.base import neuron_index
from circuitdisc.heads.neurons.importance import output_directions
from circuitdisc.models.model import Model
from circuitdisc.results import Row


@dataclass(frozen=True)
class NeuronTokens:
    """Tokens that one neuron raises and lowers when it is active (and the other way round when its activation is negative).

    Args:
        neuron: its name.
        raised, lowered: tokens as text, or as ids in a model without a tokenizer; the strongest first.
        raised_by, lowered_by: how much, for an activation of 1.
    """

    neuron: str
    raised: tuple[str, ...]
    raised_by: tuple[float, ...]
    lowered: tuple[str, ...]
    lowered_by: tuple[float, ...]

    def row(self) -> Row:
        return {"neuron": self.neuron, "raises": " ".join(self.raised), "lowers": " ".join(self.lowered)}


@torch.no_grad()
@bounded(k=Whole(1, 1_000_000))
def neuron_tokens(model: Model, names: Sequence[str], *, k: int = 10) -> list[NeuronTokens]:
    """The tokens that neurons raise and lower most.

    Args:
        names: neurons, as in `m3.n17`.
        k: how many tokens of each.

    Raises:
        GraphMismatch: the model has no such neuron.
        BadSetting: `k` is no whole number from 1, or the model has no fast components.
    """
    components = components_of(model, "looking at neurons", whole=True)
    k, width = min(k, model.d_vocab_out), n_neurons(model)
    wide = torch.promote_types(components.dtype, torch.float32)
    readout = Readout(components, torch.ones(1, components.spec.d_model, dtype=wide, device=model.device))
    W_U = components.weights.W_U.to(wide)
    directions, rows = {}, []
    for name in names:
        layer, index = neuron_index(name, model.graph.n_layers, width)
        if layer not in directions:
            directions[layer] = output_directions(components, readout, layer)
        logits = directions[layer][index] @ W_U
        logits = logits - logits.mean()
        up, down = logits.topk(k), (-logits).topk(k)
        rows.append(
            NeuronTokens(
                neuron=name,
                raised=tuple(token_text(model, token) for token in up.indices.tolist()),
                raised_by=tuple(up.values.tolist()),
                lowered=tuple(token_text(model, token) for token in down.indices.tolist()),
                lowered_by=tuple((-down.values).tolist()),
            )
        )
    return rows


def token_text(model: Model, token: int) -> str:
    """A token as text, its spaces shown; its id in a model without a tokenizer."""
    if model.tokenizer is None:
        return str(token)
    return str(model.tokenizer.decode([token])).replace(" ", "_").replace("\n", "\\n") or str(token)
