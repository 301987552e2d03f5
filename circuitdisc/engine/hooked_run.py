"""The run of a circuit by hooks: the whole model, every receiver corrected for its cut edges.

    input of receiver r = what it would read - sum over cut edges s -> r of (live_s - ablated_s)

The slow way that works on any bridged architecture, and that the fast way is compared with in the tests.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.memory import storage_bytes
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.hooked import HookedModel


def hooked_run(
    hooked: HookedModel, graph: ComputationGraph, chunk: Chunk, mask: Bool[np.ndarray, "R S"]
) -> Float[Tensor, "N V"]:
    """Logits at the readings when the circuit `mask` runs. N readings, V vocabulary."""
    batch = chunk.batch
    removed = torch.from_numpy(graph.edge_mask & ~mask).to(chunk.clean)

    def receive(receivers: list[int], read: Tensor, senders: Tensor) -> Tensor:
        return read - torch.einsum("ns,sbtd->nbtd", removed[receivers], senders - chunk.ablated)

    _, _, logits = hooked.run(batch.clean, batch.is_token.long(), batch.position_ids, receive)
    return logits[batch.read_example, batch.read_position]


Run = Callable[[Chunk, Bool[np.ndarray, "R S"]], Float[Tensor, "N X"]]


class WholeRemoval:
    """Edges cut one after the other, by a whole-model run for every candidate: `IncrementalRemoval` for any backend.

    Args:
        run: (chunk, circuit) -> what runs of the backend end in, at the readings.
    """

    def __init__(self, run: Run, graph: ComputationGraph, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> None:
        self.run, self.graph, self.chunk = run, graph, chunk
        self.mask = mask.copy()
        self.node_evaluations = 0.0
        self._trial: tuple[int, list[int]] | None = None

    def end(self) -> Float[Tensor, "1 N V"]:
        """Logits at the readings, with all accepted cuts."""
        return self._run(self.mask)[None]

    def try_cuts(self, receiver: int, senders: list[int], spared: Bool[np.ndarray, "C"]) -> Float[Tensor, "C N V"]:
        """Logits at the readings: row i has edge i cut (or, where it is not there, added), and those before it not spared."""
        self._trial = (receiver, senders)
        mask, rows = self.mask.copy(), []
        for sender, spare in zip(senders, spared, strict=True):
            mask[receiver, sender] ^= True
            rows.append(self._run(mask))
            mask[receiver, sender] ^= spare
        return torch.stack(rows)

    def row_size(self, receiver: int) -> tuple[int, int]:
        """Rows run one after the other: they take no more than the chunk's own run."""
        return 0, 0

    def held_bytes(self, accepts: bool) -> int:
        """What is held between tries: the chunk."""
        return storage_bytes(self.chunk.tensors())

    def accept(self, cuts: list[int]) -> None:
        """Cut some of the candidates just tried for good."""
        assert self._trial is not None, "nothing was tried"
        receiver, senders = self._trial
        self.mask[receiver, [senders[index] for index in cuts]] = False

    def drop(self, receivers: list[int]) -> None:
        """Cut every edge into these receivers."""
        self.mask[receivers] = False

    def _run(self, mask: Bool[np.ndarray, "R S"]) -> Float[Tensor, "N V"]:
        self.node_evaluations += self.graph.n_senders
        return self.run(self.chunk, mask)
