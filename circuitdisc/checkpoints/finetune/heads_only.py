"""Training some heads alone: their W_Q, W_K, W_V, W_O and the biases of q, k and v; everything else stays bit for bit.

1. A mask over the model's own parameters is made once: a copy of the model is filled with zeros, cut at its heads as every
   model is (`models/families`), and the chosen heads' views are filled with ones.
2. Parameters without a chosen head are not trained at all. The gradient of the others is multiplied by their mask, before
   it is clipped and before the optimizer sees it.
3. After every step of the optimizer what is not chosen is written back: weight decay moves weights that have no gradient.

The output bias of attention belongs to no head and is not trained. Where queries share keys and values, training a head trains
the W_K and W_V that it reads, and so changes the other heads of its group; `shared_heads` names them.

Source: Zhang et al., ICML 2024 ("Interpreting and Improving Large Language Models in Arithmetic Calculation": Precise SFT).

Shape letters: L layers, H heads, Hkv heads with keys of their own.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import TrainerCallback

from circuitdisc.controls import different_sets
from circuitdisc.errors import BadModel, BadSetting
from circuitdisc.models.families import find_family
from circuitdisc.models.families.reader import read_module
from circuitdisc.models.model import Model

INPUTS, SHARED = ("W_Q", "W_O", "b_Q"), ("W_K", "W_V", "b_K", "b_V")  # of a head alone; of all that share its keys


@torch.no_grad()
def head_parameters(module: Any, heads: Bool[np.ndarray, "L H"]) -> dict[str, Bool[Tensor, "..."]]:
    """Masks over the parameters that hold these heads: True where a weight is theirs. Parameters without any are left out.

    Raises:
        BadModel: there are no fast components for the architecture, or its heads' weights are not views of the parameters.
    """
    family = find_family(module.config.model_type)
    if family is None:
        raise BadModel(f"method=heads needs an architecture with fast components; '{module.config.model_type}' has none")
    ghost = copy.deepcopy(module)
    for parameter in ghost.parameters():
        parameter.requires_grad_(False).zero_()
    spec, weights = read_module(ghost, family)
    shared = spec.n_heads // spec.n_kv_heads
    expected = 0
    for layer, block in enumerate(weights.layers):
        chosen = np.flatnonzero(heads[layer]).tolist()
        groups = sorted({head // shared for head in chosen})
        for names, rows in ((INPUTS, chosen), (SHARED, groups)):
            for values in (getattr(block, name) for name in names):
                if values is None:
                    continue
                for row in rows:
                    values[row].fill_(1)
                    expected += values[row].numel()
    masks = {name: parameter != 0 for name, parameter in ghost.named_parameters()}
    trained = {name: mask for name, mask in masks.items() if mask.any()}
    if sum(int(mask.sum()) for mask in trained.values()) != expected:
        raise BadModel(
            f"the heads of '{module.config.model_type}' are not views of its parameters: method=heads cannot train them"
        )
    return trained


class HeadsOnly(TrainerCallback):
    """Restricts training to some heads; give it to the Trainer as a callback.

    Args:
        module: the Hugging Face model, with the weights that are to be kept.
        heads: which heads to train.
    """

    def __init__(self, module: Any, heads: Bool[np.ndarray, "L H"]) -> None:
        self.masks = head_parameters(module, heads)
        self.parameters = {}
        self.kept = {}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.masks)
            if name in self.masks:
                mask = self.masks[name] = self.masks[name].to(parameter.device)
                parameter.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))
                self.parameters[name], self.kept[name] = parameter, parameter.detach().clone()

    @property
    def n_trained(self) -> int:
        """Weights that are trained."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write back what is not chosen."""
        for name, parameter in self.parameters.items():
            mask, kept = self.masks[name].to(parameter.device), self.kept[name].to(parameter.device)
            parameter.copy_(torch.where(mask, parameter, kept))


def shared_heads(model: Model, heads: Bool[np.ndarray, "L H"]) -> list[str]:
    """The other heads that change with these, since they read the same keys and values."""
    size = model.backend.heads_per_group
    groups = heads.reshape(heads.shape[0], -1, size).any(-1, keepdims=True)
    changed = np.broadcast_to(groups, (heads.shape[0], heads.shape[1] // size, size)).reshape(heads.shape)
    names = list(model.graph.heads)
    return [names[at] for at in np.flatnonzero((changed & ~heads).ravel())]


def other_heads(names: Sequence[str], chosen: Sequence[str], seed: int, n_draws: int) -> list[list[str]]:
    """Controls: as many heads as chosen, drawn without replacement from all others; no draw twice, but draws may overlap.

    Fewer than n_draws where there are no more.

    Raises:
        BadSetting: there are too few others.
    """
    rest = [name for name in names if name not in set(chosen)]
    if len(rest) < len(chosen):
        raise BadSetting(
            f"control needs {len(chosen)} heads outside the {len(chosen)} chosen ones, but the model has {len(rest)}: "
            "choose fewer heads, or leave the control out"
        )
    drawn = different_sets([len(rest)], [len(chosen)], n_draws, np.random.default_rng(seed))
    return [[rest[at] for at in members] for (members,) in drawn]
