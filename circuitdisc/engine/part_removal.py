"""Parts of a circuit taken out, one set after the other: the metric example by example, on examples held in memory.

All ways are equal to a run of the smaller circuit. Nodes are taken out incrementally: the circuit runs once, and each set of
nodes computes only what it reaches; edges are cut so, too, many as rows of one batch. Where attention patterns are cut, heads
are taken out of a head circuit in one residual stream, from the layer of the head on. Anything else (models that run by hooks)
is a run of its own.

Shape letters: B examples, P parts or sets, R receivers, S senders, L layers, H heads, N readings, D residual width,
T positions, W columns.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.circuit import kept_heads, live_receivers
from circuitdisc.engine.chunk import Chunk, n_examples_of
from circuitdisc.engine.evaluate import n_logits, of_logits, of_residual
from circuitdisc.engine.head_run import head_circuit
from circuitdisc.engine.memory import bytes_per_token, rows_that_fit
from circuitdisc.engine.node_removal import IncrementalNodeRemoval, bytes_of_run
from circuitdisc.engine.parts import PartKind, without
from circuitdisc.engine.patching import Patching, Removal
from circuitdisc.engine.ranks import across, gathered
from circuitdisc.errors import BadSetting
from circuitdisc.metrics import Metric
from circuitdisc.tasks.base import Example

Mask = Bool[np.ndarray, "R S"]
Values = Float[np.ndarray, "B"]
HELD = 2  # runs of circuits that nodes are taken out of: mostly one circuit and the full model


class PartRemoval:
    """A model's circuits, with parts taken out, on one split.

    Args:
        examples: held in memory, all of them; or chunks of them that are ready already.
        by: what the parts are.

    Raises:
        BadSetting: the examples do not fit the memory, or attention patterns are to be cut edge by edge.
    """

    def __init__(self, patching: Patching, examples: Sequence[Example] | list[Chunk], metric: Metric, by: PartKind) -> None:
        if by == "edge" and patching.ablation.target == "pattern":
            raise BadSetting("ablation.target=pattern replaces the patterns of whole heads: use by=head, or target=output")
        self.patching, self.metric, self.by = patching, metric, by
        self.graph = patching.graph
        ready = [one for one in examples if isinstance(one, Chunk)]
        self.chunks = ready or patching.hold_share([one for one in examples if isinstance(one, Example)])
        self.share, self.n_examples = self.chunks[0].share, n_examples_of(self.chunks)
        self._known: dict[bytes, Values] = {}
        self._bases: OrderedDict[bytes, list[IncrementalNodeRemoval]] = OrderedDict()
        self._bytes: dict[bytes, int] = {}
        self._most_rows = self._rows_that_fit()

    def values(self, mask: Mask) -> Values:
        """Metric values of one circuit; a circuit that was asked for before is not run again."""
        key = np.packbits(mask).tobytes()
        if key not in self._known and key in self._bases:
            self._known[key] = self._measured([one.residual() for one in self._bases[key]])[0]
        if key not in self._known:
            by_heads = self._runs_by_heads(mask)
            found = []
            for chunk in self.chunks:
                kept = kept_heads(self.graph, mask)
                logits = self.patching.head_logits(chunk, kept)[0] if by_heads else self.patching.circuit_logits(chunk, mask)
                found.append(self._per_example(logits, chunk))
            self._known[key] = check_finite(gathered(np.concatenate(found), self.share), self.metric)
        return self._known[key]

    def each_removed(self, mask: Mask, names: Sequence[str]) -> Float[np.ndarray, "P B"]:
        """Metric values of a circuit with each of these parts taken out besides, one part at a time."""
        if not names:
            return np.zeros((0, len(self.values(mask))))
        if self.cuts_edges:
            return self._edges_removed(mask, names)
        if self._runs_by_heads(mask):
            return self._heads_removed(mask, names)
        return self.sets_removed(mask, [(name,) for name in names])

    def sets_removed(self, mask: Mask, sets: Sequence[Sequence[str]]) -> Float[np.ndarray, "P B"]:
        """Metric values of a circuit with each of these sets of parts taken out, one set at a time."""
        self.patching.cost.candidates += len(sets)
        if self.by == "edge" or not self._incremental:
            return np.stack([self.values(without(self.graph, mask, names)) for names in sets])
        return self._nodes_removed(mask, [{self.graph.sender_index[name] for name in names} for names in sets])

    def added_removed(self, mask: Mask, taken: Sequence[str], names: Sequence[str]) -> Float[np.ndarray, "P B"]:
        """Metric values of a circuit without the parts `taken` and without one part more, for each of these.

        Nodes start from the circuit's own run, whatever was taken: a run without `taken` would cost more than it saves.
        """
        if self.by == "edge" or not self._incremental:
            return self.each_removed(without(self.graph, mask, taken), names)
        if not names:
            return np.zeros((0, self.n_examples))
        return self.sets_removed(mask, [(*taken, name) for name in names])

    @property
    def cuts_edges(self) -> bool:
        """Whether the parts are edges, and are cut incrementally."""
        return self.by == "edge" and self.patching.model.can("partial runs")

    @property
    def _incremental(self) -> bool:
        return self.patching.model.can("partial runs") and self.patching.ablation.target == "output"

    def _runs_by_heads(self, mask: Mask) -> bool:
        """Whether a circuit, and whatever is left of it, can run as a head circuit."""
        if self.by != "head" or self.patching.ablation.target != "pattern":
            return False
        return bool((head_circuit(self.graph, kept_heads(self.graph, mask)).mask == mask).all())

    # --- nodes: what each set reaches --------------------------------------------------------------------------------

    def _nodes_removed(self, mask: Mask, sets: Sequence[Set[int]]) -> Float[np.ndarray, "P B"]:
        """Sets that begin at the same place are tried together: what one of them reaches, the others mostly reach, too."""
        bases, cost = self._held(mask), self.patching.cost
        if bases is None:
            return np.stack([self.values(self._less(mask, senders)) for senders in sets])
        order = sorted(range(len(sets)), key=lambda place: self._begin(sets[place]))
        found = np.zeros((len(sets), self.n_examples))
        for _, places in groupby(order, key=lambda place: self._begin(sets[place])):
            together = list(places)
            for start in range(0, len(together), self._most_rows):
                some = together[start : start + self._most_rows]
                before = self._evaluated(bases)
                found[some] = self._measured([one.without([sets[place] for place in some]) for one in bases])
                cost.node_evaluations += self._evaluated(bases) - before
        return found

    def _evaluated(self, bases: Sequence[IncrementalNodeRemoval]) -> float:
        """Nodes that the runs of all chunks have computed, each on all examples."""
        return sum(chunk.weight * base.node_evaluations for chunk, base in zip(self.chunks, bases, strict=True))

    def _begin(self, senders: Set[int]) -> tuple[int, str]:
        """Layer and kind of the first node of a set."""
        if not senders:
            return (-1, "")
        node = self.graph.senders[min(senders)]
        return node.layer, node.kind

    def _less(self, mask: Mask, senders: Set[int]) -> Mask:
        return without(self.graph, mask, [self.graph.senders[sender].name for sender in senders])

    def _held(self, mask: Mask) -> list[IncrementalNodeRemoval] | None:
        """The circuit's run, ready for nodes to be taken out; None if it does not fit beside the examples.

        The last few are held while they fit, so that the full model's is made once.
        """
        key, components, cost = np.packbits(mask).tobytes(), self.patching.model.components, self.patching.cost
        if key not in self._bases:
            n_tokens = across(max, sum(chunk.batch.clean.numel() for chunk in self.chunks), self.share)
            room = self.patching.budget - n_tokens * bytes_per_token(self.patching.model)
            needed = bytes_of_run(components, self.graph, mask, n_tokens)
            if needed > room:
                return None
            while self._bases and (len(self._bases) >= HELD or needed + sum(self._bytes.values()) > room):
                self._bytes.pop(self._bases.popitem(last=False)[0])
            self._bytes[key] = needed
            self._bases[key] = [IncrementalNodeRemoval(components, self.graph, chunk, mask) for chunk in self.chunks]
            cost.circuit_runs += 1
            cost.node_evaluations += self._evaluated(self._bases[key])
        self._bases.move_to_end(key)
        return self._bases[key]

    @property
    def _n_logits(self) -> int:
        return n_logits(self.patching.model, self.chunks, self.metric)

    def _rows_that_fit(self) -> int:
        """On every rank: no cached property, which in Python 3.11 holds a lock over the call that waits for the others."""
        model, graph = self.patching.model, self.graph
        tokens = max(chunk.batch.clean.numel() for chunk in self.chunks)
        fitting = rows_that_fit(model, self.patching.budget // 4, tokens, graph.n_receivers, graph.n_senders, self._n_logits)
        return across(min, fitting, self.share)

    @torch.no_grad()
    def _measured(self, residuals: Sequence[Float[Tensor, "P N D"]]) -> Float[np.ndarray, "P B"]:
        """Metric values from the final residuals of every chunk."""
        model = self.patching.model
        found = [
            of_residual(model, chunk, residual, self.metric).double().cpu().numpy()
            for residual, chunk in zip(residuals, self.chunks, strict=True)
        ]
        return check_finite(gathered(np.concatenate(found, axis=1), self.share, axis=1), self.metric)

    # --- heads whose patterns are cut: from the layer of the removed head on -------------------------------------------

    def _heads_removed(self, mask: Mask, names: Sequence[str]) -> Float[np.ndarray, "P B"]:
        kept = kept_heads(self.graph, mask)
        rows: list[list[Values]] = [[] for _ in names]
        for chunk in self.chunks:
            _, before = self.patching.head_logits(chunk, kept)
            for name, row in zip(names, rows, strict=True):
                node = self.graph.senders[self.graph.sender_index[name]]
                fewer = kept.copy()
                fewer[node.layer, node.head] = False
                logits, _ = self.patching.head_logits(chunk, fewer, node.layer, before[node.layer])
                row.append(self._per_example(logits, chunk))
        self.patching.cost.candidates += len(names)
        whole = gathered(np.stack([np.concatenate(row) for row in rows]), self.share, axis=1)
        return check_finite(whole, self.metric)

    # --- edges: as rows of one batch ---------------------------------------------------------------------------------

    def _edges_removed(self, mask: Mask, names: Sequence[str]) -> Float[np.ndarray, "P B"]:
        found = np.zeros((len(names), self.n_examples))
        for places, values in self.edge_groups(mask, names):
            found[places] = values()
        return found

    def edge_groups(
        self, mask: Mask, names: Sequence[str]
    ) -> Iterator[tuple[list[int], Callable[[], Float[np.ndarray, "P B"]]]]:
        """Edges by receiver: their places in `names`, and a function for the metric values with each of them taken out.

        Those that are cut already, or lead nowhere, come last: taking them out changes nothing.
        """
        live = live_receivers(self.graph, mask)
        by_receiver: dict[int, list[tuple[int, int]]] = defaultdict(list)
        idle = []
        for place, name in enumerate(names):
            receiver, sender = self.graph.parse_edge(name)
            if mask[receiver, sender] and live[receiver]:
                by_receiver[receiver].append((place, sender))
            else:
                idle.append(place)
        if by_receiver:
            first = min(group[0] for group in self.graph.groups if group[-1] >= min(by_receiver))  # with its q, k and v
            removal = _Once(lambda: self.patching.removal(self.chunks, mask, self.metric, first, accepts=False))
            for receiver, edges in by_receiver.items():
                places, senders = [place for place, _ in edges], [sender for _, sender in edges]
                yield places, partial(self._cut, removal, mask, receiver, senders)
            removal.close()
        if idle:
            yield idle, lambda: np.tile(self.values(mask), (len(idle), 1))

    def _cut(self, removal: "_Once", mask: Mask, receiver: int, senders: list[int]) -> Float[np.ndarray, "P B"]:
        cut, found = removal.get(), []
        self._known.setdefault(np.packbits(mask).tobytes(), check_finite(cut.start_values, self.metric))
        most = cut.most_rows(receiver)
        for start in range(0, len(senders), most):
            found.append(cut.each_without(receiver, senders[start : start + most]))
        return check_finite(np.concatenate(found), self.metric)

    def know(self, mask: Mask, values: Values) -> None:
        """Take over the metric values of a circuit that was run before."""
        self._known[np.packbits(mask).tobytes()] = values

    def _per_example(self, logits: Float[Tensor, "N V"], chunk: Chunk) -> Values:
        return of_logits(chunk.batch, chunk.labels, logits, [self.metric])[self.metric.name].double().cpu().numpy()


class _Once:
    """A removal that is started when it is first asked for: where all is known already, nothing runs."""

    def __init__(self, start: Callable[[], Removal]) -> None:
        self._start, self._removal = start, None

    def get(self) -> Removal:
        self._removal = self._removal or self._start()
        return self._removal

    def close(self) -> None:
        if self._removal is not None:
            self._removal.close()


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
