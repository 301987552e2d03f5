"""What the engine asks of a model that it runs as a graph, whichever way the model runs.

Three backends are here: `Components` (every node a function of its own inputs, from the weights) and `HookedModel` (the
whole model with hooks, for any other architecture), and `CoupledModel` (components whose norms that couple heads are
computed anew). How each is run is in `engine/backends.py`, the one place that tells them apart; everybody else asks what a
backend can do.

Shape letters: C rows, N readings, D residual width, W columns of the unembedding, X what a run ends in.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

Capability = Literal["partial runs", "patterns", "interventions", "gradients"]
"""`partial runs`: what a change does not reach is not run again. `patterns`: attention patterns can be seen and replaced.
`interventions`: heads and neurons can be changed. `gradients`: metrics have gradients at every place of the graph."""


class Backend(Protocol):
    """A model that can be run as a graph.

    Args:
        capabilities: what it can do beside running whole circuits.
        how: it runs, for messages: "runs through hooks".
        d_model, d_head: width of the residual stream and of a head.
        causal: no token sees a later one, as far as the backend knows.
        heads_per_group: query heads that share keys and values.
    """

    capabilities: frozenset[Capability]
    how: str
    d_model: int
    d_head: int
    causal: bool
    heads_per_group: int

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def constant_before(self, layer: int, mlp: bool = False) -> Float[Tensor, "D"] | None:
        """Sum of the always-kept biases before a layer's attention, or its MLP; None where the backend does not know them."""
        ...

    def unembed(self, x: Float[Tensor, "C N X"], columns: Int[Tensor, "N W"] | None = None) -> Float[Tensor, "C N W"]:
        """Logits from what runs of this backend end in: the final residual, or the logits themselves.

        Args:
            columns: of the vocabulary, for each reading; None: all of it.
        """
        ...

    def logit_blocks(self, x: Float[Tensor, "C N X"], width: int) -> Iterator[Float[Tensor, "C N W"]]:
        """The logits of the whole vocabulary as `unembed` has them, `width` columns at a time. They are only read."""
        ...

    def configuration(self) -> dict[str, Any]:
        """What the model computes with its weights, as plain values: the same for two models that differ in weights alone."""
        ...
