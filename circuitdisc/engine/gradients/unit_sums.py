"""What each unit of the examples adds to the scores, kept in the pass that forms them.

A unit is what is drawn again as a whole: an example, or a group of them. The tokens of an example lie side by side, so that
each block of tokens falls into few spans of one unit. Their products are formed beside that of the whole block, which stays as
it is: the scores do not move by a bit.

Shape letters: G units, B examples, T positions, R receivers, S senders.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.engine.ranks import Share, summed
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.components import Components


class UnitSums:
    """Sums of scores, a table of receivers x senders for each unit.

    Args:
        of: the unit of each example. [B]
        shape: of the scores.
    """

    def __init__(self, of: Int[np.ndarray, "B"], shape: tuple[int, int], device: torch.device) -> None:
        self._of = of
        self.sums = torch.zeros((int(of.max()) + 1, *shape), dtype=torch.float64, device=device)
        self._spans: list[tuple[int, int, int]] = []

    @staticmethod
    def bytes_of(n_units: int, graph: ComputationGraph) -> int:
        """What the tables take, with the array of edges that is made from them."""
        return 8 * n_units * (graph.n_receivers * graph.n_senders + graph.n_edges)

    def begin(self, examples: range, tokens: Int[Tensor, "n"], length: int) -> None:
        """Turn to a chunk.

        Args:
            examples: which examples it has.
            tokens: which tokens count, as indices into the flattened batch.
            length: T of the batch.
        """
        units = self._of[examples.start : examples.stop][(tokens // length).cpu().numpy()]
        ends = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(units)]
        self._spans = [(start, stop, int(units[start])) for start, stop in pairwise(ends) if stop > start]

    def within(self, block: slice) -> Sequence[tuple[slice | Tensor, Float[Tensor, "R S"]]]:
        """The spans of one unit in a block of tokens, counted from its start, each with the unit's table."""
        return [
            (slice(max(start, block.start) - block.start, min(stop, block.stop) - block.start), self.sums[unit])
            for start, stop, unit in self._spans
            if start < block.stop and stop > block.start
        ]

    def gather(self, components: Components, share: Share | None) -> None:
        """Add up what the processes have, where there are several."""
        for sums in self.sums:
            sums.copy_(components.agreed(summed(components.summed(sums), share, "sums of units")))

    def edges(self, graph: ComputationGraph, n_rows: int) -> Float[np.ndarray, "G E"]:
        """The sum over each unit's examples of the score of every edge, and the end of the tables.

        Args:
            n_rows: what scores are the mean over beside the examples.
        """
        mask = torch.from_numpy(graph.edge_mask.copy())
        values = np.empty((len(self.sums), graph.n_edges))
        for row, sums in zip(values, self.sums, strict=True):
            row[:] = sums.cpu()[mask].numpy() / n_rows
        del self.sums
        return values


class SpanSums(UnitSums):
    """The same for units of tokens: those of a span of a prompt, in all examples.

    Args:
        of_tokens: the span of each token of each example. [B] [T]
        n_spans: P.
    """

    def __init__(
        self, of_tokens: Sequence[Int[np.ndarray, "T"]], n_spans: int, shape: tuple[int, int], device: torch.device
    ) -> None:
        super().__init__(np.array([n_spans - 1]), shape, device)
        self._of_tokens = of_tokens
        self._span_of: Int[np.ndarray, "n"] = np.zeros(0, dtype=int)

    def begin(self, examples: range, tokens: Int[Tensor, "n"], length: int) -> None:
        padded = np.full((len(examples), length), -1)
        for row, place in zip(padded, examples, strict=True):
            row[: len(self._of_tokens[place])] = self._of_tokens[place]
        self._span_of = padded.reshape(-1)[tokens.cpu().numpy()]

    def within(self, block: slice) -> Sequence[tuple[slice | Tensor, Float[Tensor, "R S"]]]:
        spans = self._span_of[block]
        return [
            (torch.from_numpy(np.flatnonzero(spans == each)).to(self.sums.device), self.sums[each]) for each in np.unique(spans)
        ]
