"""Fast components whose norms that couple heads are computed anew in every run (`model.exact_norm=true`).

A norm after attention divides what all heads of a layer write by its size; so do norms of queries and keys across heads.
Elsewhere that size is held at the full model's run, so that heads are senders of their own. Here it follows from what the
heads of the very run write: a head that is changed changes its neighbours, as in a forward pass of the module with hooks.
Whole circuits can be run so, and what holding the size costs can be seen; nothing can be run in part.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.models.backend import Capability
from circuitdisc.models.components import Components
from circuitdisc.models.weights import Weights


class CoupledModel:
    """A backend of its own: `Components` in runs of whole circuits."""

    capabilities: frozenset[Capability] = frozenset()
    how = "recomputes the norms that couple its heads (model.exact_norm=true)"
    causal: bool

    def __init__(self, components: Components) -> None:
        self.components = components
        self.d_model, self.d_head, self.causal = components.d_model, components.d_head, components.causal
        self.heads_per_group, self.n_processes = components.heads_per_group, components.n_processes

    @property
    def weights(self) -> Weights:
        return self.components.weights

    @property
    def dtype(self) -> torch.dtype:
        return self.components.dtype

    @property
    def device(self) -> torch.device:
        return self.components.device

    def constant_before(self, layer: int, mlp: bool = False) -> Float[Tensor, "D"]:
        """As `Components`."""
        return self.components.constant_before(layer, mlp)

    def unembed(self, x: Float[Tensor, "C N D"], columns: Int[Tensor, "N W"] | None = None) -> Float[Tensor, "C N W"]:
        """Logits from the final residual."""
        return self.components.unembed(x, columns)

    def logit_blocks(self, x: Float[Tensor, "C N D"], width: int) -> Iterator[Float[Tensor, "C N W"]]:
        """As `Components`."""
        return self.components.logit_blocks(x, width)

    def configuration(self) -> dict[str, Any]:
        """The model's switches, and that norms are recomputed."""
        return self.components.configuration() | {"exact_norm": True}
