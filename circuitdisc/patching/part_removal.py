"""Parts of a circuit taken out, one set after the other: the metric example by example, on examples held in memory.

Three ways, all equal to a run of the smaller circuit: heads are taken out of a head circuit in one residual stream, and only
the layers from a removed head on run again; edges are cut incrementally, many as rows of one batch; anything else is a run of
its own.

Shape letters: B examples, P parts, R receivers, S senders, L layers, H heads, N readings, D residual width, T positions.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.circuit import kept_heads, live_receivers
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.models.components import Components
from circuitdisc.patching.engine import Patching, Removal
from circuitdisc.patching.head_run import head_circuit, head_logits
from circuitdisc.patching.incremental import IncrementalRemoval
from circuitdisc.patching.parts import PartKind, without
from circuitdisc.patching.prepared import Chunk
from circuitdisc.tasks.base import Example

Mask = Bool[np.ndarray, "R S"]
Values = Float[np.ndarray, "B"]


class PartRemoval:
    """A model's circuits, with parts taken out, on one split.

    Args:
        examples: held in memory, all of them.
        by: what the parts are.

    Raises:
        BadSetting: the examples do not fit the memory, or attention patterns are to be cut edge by edge.
    """

    def __init__(self, patching: Patching, examples: Sequence[Example], metric: Metric, by: PartKind) -> None:
        if by == "edge" and patching.ablation.target == "pattern":
            raise BadSetting("ablation.target=pattern replaces the patterns of whole heads: use by=head, or target=output")
        self.patching, self.metric, self.by = patching, metric, by
        self.graph = patching.graph
        self.chunks = patching.hold(examples)
        self._known: dict[bytes, Values] = {}

    def values(self, mask: Mask) -> Values:
        """Metric values of one circuit; a circuit that was asked for before is not run again."""
        key = np.packbits(mask).tobytes()
        if key not in self._known:
            by_heads = self._runs_by_heads(mask)
            found = []
            for chunk in self.chunks:
                kept = kept_heads(self.graph, mask)
                logits = self._head_run(chunk, kept)[0] if by_heads else self.patching.circuit_logits(chunk, mask)
                found.append(self._per_example(logits, chunk))
            self._known[key] = np.concatenate(found)
        return self._known[key]

    def each_removed(self, mask: Mask, names: Sequence[str]) -> Float[np.ndarray, "P B"]:
        """Metric values of a circuit with each of these parts taken out besides, one part at a time."""
        if not names:
            return np.zeros((0, len(self.values(mask))))
        if self._runs_by_heads(mask):
            return self._heads_removed(mask, names)
        if self.by == "edge" and isinstance(self.patching.model.cut, Components):
            return self._edges_removed(mask, names)
        self.patching.cost.candidates += len(names)
        return np.stack([self.values(without(self.graph, mask, [name])) for name in names])

    def _runs_by_heads(self, mask: Mask) -> bool:
        """Whether a circuit, and whatever is left of it, can run as a head circuit."""
        if self.by != "head" or not isinstance(self.patching.model.cut, Components):
            return False
        return bool((head_circuit(self.graph, kept_heads(self.graph, mask)).mask == mask).all())

    # --- heads: from the layer of the removed head on ----------------------------------------------------------------

    def _heads_removed(self, mask: Mask, names: Sequence[str]) -> Float[np.ndarray, "P B"]:
        kept = kept_heads(self.graph, mask)
        rows: list[list[Values]] = [[] for _ in names]
        for chunk in self.chunks:
            _, before = self._head_run(chunk, kept)
            for name, row in zip(names, rows, strict=True):
                node = self.graph.senders[self.graph.sender_index[name]]
                fewer = kept.copy()
                fewer[node.layer, node.head] = False
                logits, _ = self._head_run(chunk, fewer, node.layer, before[node.layer])
                row.append(self._per_example(logits, chunk))
        self.patching.cost.candidates += len(names)
        return np.stack([np.concatenate(row) for row in rows])

    def _head_run(
        self, chunk: Chunk, kept: Bool[np.ndarray, "L H"], layer: int = 0, before: Float[Tensor, "B T D"] | None = None
    ) -> tuple[Float[Tensor, "N V"], list[Float[Tensor, "B T D"]]]:
        cut, cost = self.patching.model.cut, self.patching.cost
        assert isinstance(cut, Components), "only components resume at a layer"
        cost.node_evaluations += (self.graph.n_layers - layer) * (self.graph.n_heads + self.graph.has_mlp)
        return head_logits(cut, self.graph, chunk, kept, self.patching.ablation.target, layer, before)

    # --- edges: as rows of one batch ---------------------------------------------------------------------------------

    def _edges_removed(self, mask: Mask, names: Sequence[str]) -> Float[np.ndarray, "P B"]:
        live = live_receivers(self.graph, mask)
        by_receiver: dict[int, list[tuple[int, int]]] = defaultdict(list)
        found = np.tile(self.values(mask), (len(names), 1))  # cutting what leads nowhere, or is cut, changes nothing
        for place, name in enumerate(names):
            receiver, sender = self.graph.parse_edge(name)
            if mask[receiver, sender] and live[receiver]:
                by_receiver[receiver].append((place, sender))
        if by_receiver:
            first = min(group[0] for group in self.graph.groups if group[-1] >= min(by_receiver))  # with its q, k and v
            removal = ExampleRemoval(self.patching, self.chunks, mask, self.metric, first)
            for receiver, edges in by_receiver.items():
                for start in range(0, len(edges), removal.most_rows):
                    some = edges[start : start + removal.most_rows]
                    found[[place for place, _ in some]] = removal.values(receiver, [sender for _, sender in some])
            removal.close()
        return found

    def _per_example(self, logits: Float[Tensor, "N V"], chunk: Chunk) -> Values:
        values = chunk.batch.per_example(self.metric(logits, chunk.labels)).double().cpu().numpy()
        return check_finite(values, self.metric)


class ExampleRemoval(Removal):
    """A `Removal` that is asked for single edges and answers example by example. It accepts no cut."""

    @torch.no_grad()
    def values(self, receiver: int, senders: list[int]) -> Float[np.ndarray, "P B"]:
        """Metric values with one edge into `receiver` cut, for each of these senders."""
        spared, found = np.ones(len(senders), dtype=bool), []
        for part, chunk in zip(self.parts, self.chunks, strict=True):
            assert isinstance(part, IncrementalRemoval), "only components are cut incrementally"
            logits = self._logits(part.try_cuts(receiver, senders, spared), chunk)
            readings = self.metric(logits, chunk.metric_labels(self.metric))
            found.append(chunk.batch.per_example(readings).double().cpu().numpy())
        self.patching.cost.candidates += len(senders)
        return check_finite(np.concatenate(found, axis=1), self.metric)


def check_finite(values: Float[np.ndarray, "*X B"], metric: Metric) -> Float[np.ndarray, "*X B"]:
    """The values, if all are finite.

    Raises:
        BadSetting: one is not.
    """
    if not np.isfinite(values).all():
        raise BadSetting(
            f"metric '{metric.name}' is not finite on some example when a circuit runs, so that it has no mean: "
            "use metric=logit_diff, or another ablation"
        )
    return values
