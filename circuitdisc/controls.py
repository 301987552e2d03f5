"""Random controls: what a circuit's score is held against.

A control differs from the circuit and from the other controls, and is matched with it.

A head circuit: as many heads in each layer.

An edge circuit: its live part counts (edges on a path of kept edges from an embedding to `logits`; the others change nothing,
or carry a constant). A control has as many live edges and no others; as many between each two kinds and layers (of the sender:
embedding, head, MLP; of the receiver: q, k, v, MLP, `logits`); and as many heads in each layer. It is drawn thus:

1. The heads of each layer change places at random: the same wiring between other heads.
2. Of every node one random edge that enters it and one that leaves it stay, so that all stays live.
3. All other edges are drawn again, evenly, among those between the control's own nodes, as many of each kind and layers.
4. Steps 2 and 3 are done `ROUNDS` times.

Where so few circuits are matched that they can be listed, all are listed and the controls drawn evenly from the list. In
general step 2 makes the draw less than even over all matched circuits: wiring is nearer to the circuit's own where most edges
are needed to hold it together.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, product

import numpy as np
from jaxtyping import Bool, Int

from circuitdisc.circuit import Circuit
from circuitdisc.graph import ComputationGraph, Node

ROUNDS = 2
LISTED = 5000  # choices of edges that are gone through one by one
_TRIES = 50  # draws for each control that is wanted, before it is taken that there are no more
_AT_ONCE = 2**26  # bytes of masks that are looked at together

HEADS, EDGES = (
    "as many heads in each layer",
    "as many live edges, as many of them between each two layers and kinds, and as many heads in each layer",
)

NONE = "cannot be controlled"  # how the note begins where there are no controls
Sets = tuple[tuple[int, ...], ...]
"""Of each stratum the chosen members."""


@dataclass(frozen=True)
class Controls:
    """Random circuits beside one circuit.

    Args:
        circuits: different ones, none of them the circuit itself.
        wanted: how many were asked for.
        possible: how many there are; None if they were not counted, since there are many.
        matched: what they have in common with the circuit, in words.
    """

    circuits: tuple[Circuit, ...]
    wanted: int
    possible: int | None
    matched: str

    def __len__(self) -> int:
        return len(self.circuits)

    @property
    def note(self) -> str:
        """What a reader must know: that there are no controls, or few; empty otherwise."""
        if not self.wanted:
            return ""
        if not self.circuits:
            return f"{NONE}: no other circuit has {self.matched}"
        few = self.possible is not None and self.possible <= 5 * self.wanted
        if len(self) == self.wanted and not few:
            return ""
        if self.possible == 1:
            return "one control, the only other such circuit"
        there_are = "" if self.possible is None else f" of the {self.possible} that there are"
        return f"{len(self)} different control{'s' * (len(self) != 1)}{there_are}"

    @property
    def words(self) -> str:
        """What the controls are, and the note."""
        if not self.circuits:
            return self.note
        return f"random circuits with {self.matched}" + (f"; {self.note}" if self.note else "")


def random_circuits(circuit: Circuit, n: int, generator: np.random.Generator) -> Controls:
    """Random circuits matched with this one, all different and different from it; fewer than n where there are no more."""
    if circuit.granularity == "head":
        return _head_circuits(circuit, n, generator)
    live = circuit.prune(unreached=True)
    if not live.n_edges:
        return Controls((), n, 0, EDGES)
    if _few_choices(live):
        others = _all_matched(live)
        chosen = generator.choice(len(others), min(n, len(others)), replace=False) if others else []
        return Controls(tuple(Circuit(circuit.graph, others[at]) for at in chosen), n, len(others), EDGES)
    seen, masks = {np.packbits(live.mask).tobytes()}, []
    for _ in range(_TRIES * n):
        if len(masks) == n:
            break
        mask = _drawn_again(live, generator)
        key = np.packbits(mask).tobytes()
        if key not in seen:
            seen.add(key)
            masks.append(mask)
    return Controls(tuple(Circuit(circuit.graph, mask) for mask in masks), n, None, EDGES)


def different_sets(
    sizes: Sequence[int], counts: Sequence[int], n: int, generator: np.random.Generator, other_than: Collection[Sets] = ()
) -> list[Sets]:
    """Random choices of as many members of each stratum, all different; fewer than n where there are no more.

    Args:
        sizes: members of each stratum.
        counts: how many of them are chosen.
        other_than: choices that are left out, members in ascending order.

    Returns:
        For each choice the members of each stratum, ascending.
    """
    n_choices = math.prod(math.comb(size, count) for size, count in zip(sizes, counts, strict=True))
    if n_choices <= LISTED:
        every = product(*(combinations(range(size), count) for size, count in zip(sizes, counts, strict=True)))
        rest = [choice for choice in every if choice not in other_than]
        return [rest[at] for at in generator.choice(len(rest), min(n, len(rest)), replace=False)] if rest else []
    seen, sets = set(other_than), []
    for _ in range(_TRIES * n):
        if len(sets) == n:
            break
        drawn = tuple(
            tuple(sorted(generator.choice(size, count, replace=False).tolist()))
            for size, count in zip(sizes, counts, strict=True)
        )
        if drawn not in seen:
            seen.add(drawn)
            sets.append(drawn)
    return sets


def relabelled(circuit: Circuit, places: Int[np.ndarray, "L H"]) -> Circuit:
    """The same circuit between other heads: head h of layer l takes the place of head places[l, h]."""
    senders, receivers = _moved(circuit.graph, places)
    mask = np.empty_like(circuit.mask)
    mask[np.ix_(receivers, senders)] = circuit.mask
    return Circuit(circuit.graph, mask, granularity=circuit.granularity)


def random_places(graph: ComputationGraph, generator: np.random.Generator) -> Int[np.ndarray, "L H"]:
    """An order of the heads of each layer."""
    return generator.random((graph.n_layers, graph.n_heads)).argsort(1)


# --- head circuits --------------------------------------------------------------------------------------------------------


def _head_circuits(circuit: Circuit, n: int, generator: np.random.Generator) -> Controls:
    graph = circuit.graph
    kept: list[list[int]] = [[] for _ in range(graph.n_layers)]
    for name in circuit.heads():
        node = graph.senders[graph.sender_index[name]]
        kept[node.layer].append(node.head)
    own = tuple(tuple(sorted(heads)) for heads in kept)
    counts = [len(heads) for heads in kept]
    drawn = different_sets([graph.n_heads] * graph.n_layers, counts, n, generator, {own})
    possible = math.prod(math.comb(graph.n_heads, count) for count in counts) - 1
    circuits = tuple(Circuit.from_heads(graph, head_names_of(choice)) for choice in drawn)
    return Controls(circuits, n, possible, HEADS)


def head_names_of(choice: Sets) -> list[str]:
    """Names of the heads of a choice whose strata are the layers."""
    return [Node("head", layer, head).name for layer, heads in enumerate(choice) for head in heads]


# --- edge circuits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Strata:
    """The edges of a graph by kind and layer of both ends. Between two classes all edges exist, or none.

    Args:
        senders, receivers: class of each; classes are runs of neighbours.
        nodes: the sender that each receiver feeds; `n_senders` for `logits`.
        heads_sender, heads_receiver: columns of the heads as senders, and rows of their q, k and v inputs.
    """

    senders: Int[np.ndarray, "S"]
    receivers: Int[np.ndarray, "R"]
    nodes: Int[np.ndarray, "R"]
    heads_sender: Int[np.ndarray, "L H"]
    heads_receiver: Int[np.ndarray, "3 L H"]

    @property
    def width(self) -> int:
        return int(self.senders[-1]) + 1

    @property
    def n(self) -> int:
        return self.width * (int(self.receivers[-1]) + 1)

    def of(self, rows: Int[np.ndarray, "E"], columns: Int[np.ndarray, "E"]) -> Int[np.ndarray, "E"]:
        return self.receivers[rows] * self.width + self.senders[columns]


@lru_cache(maxsize=8)
def _strata(graph: ComputationGraph) -> _Strata:
    of_senders: dict[object, int] = {}
    of_receivers: dict[object, int] = {}
    senders = [of_senders.setdefault((node.kind, node.layer), len(of_senders)) for node in graph.senders]
    receivers = [
        of_receivers.setdefault((receiver.kind, receiver.node.layer), len(of_receivers)) for receiver in graph.receivers
    ]
    nodes = [graph.sender_index.get(receiver.node.name, graph.n_senders) for receiver in graph.receivers]
    names = np.array(list(graph.heads)).reshape(graph.n_layers, graph.n_heads).tolist()
    heads_sender = np.array([[graph.sender_index[name] for name in row] for row in names], dtype=int)
    rows = [[[graph.receiver_index[f"{name}<{qkv}>"] for name in row] for row in names] for qkv in "qkv"]
    return _Strata(np.array(senders), np.array(receivers), np.array(nodes), heads_sender, np.array(rows, dtype=int))


def edge_strata(graph: ComputationGraph) -> Int[np.ndarray, "R S"]:
    """A number for each edge: edges with an equal one have senders, and receivers, of one kind and layer."""
    strata = _strata(graph)
    return strata.receivers[:, None] * strata.width + strata.senders[None, :]


def _drawn_again(live: Circuit, generator: np.random.Generator) -> Bool[np.ndarray, "R S"]:
    """One draw: other heads, then other edges between them."""
    strata, mask = _strata(live.graph), live.mask
    to_sender, to_receiver = _moved(live.graph, random_places(live.graph, generator))
    rows, columns = np.nonzero(mask)
    rows, columns = to_receiver[rows], to_sender[columns]
    for _ in range(ROUNDS):
        mask = _rewired(strata, mask.shape, rows, columns, generator)
        rows, columns = np.nonzero(mask)
    return mask


def _rewired(
    strata: _Strata,
    shape: tuple[int, ...],
    rows: Int[np.ndarray, "E"],
    columns: Int[np.ndarray, "E"],
    generator: np.random.Generator,
) -> Bool[np.ndarray, "R S"]:
    """Other edges between the same nodes, as many in each stratum; a random edge into and one out of each node stay."""
    order = generator.permutation(len(rows))
    _, entering = np.unique(strata.nodes[rows[order]], return_index=True)
    _, leaving = np.unique(columns[order], return_index=True)
    stay = order[np.union1d(entering, leaving)]
    drawn = np.zeros(shape, dtype=bool)
    drawn[rows[stay], columns[stay]] = True
    staying = np.bincount(strata.of(rows[stay], columns[stay]), minlength=strata.n)
    missing = np.bincount(strata.of(rows, columns), minlength=strata.n) - staying
    active = np.zeros(shape[1] + 1, dtype=bool)
    active[strata.nodes[rows]] = True
    cells = _Cells(strata, np.flatnonzero(active[strata.nodes]), np.unique(columns))
    crowded = 2 * missing > cells.sizes - staying
    _fill_crowded(drawn, cells, np.where(crowded, missing, 0), generator)
    _fill_sparse(drawn, cells, np.where(crowded, 0, missing), generator)
    return drawn


class _Cells:
    """The places for edges between some receivers and senders, stratum by stratum.

    Args:
        rows, columns: receivers and senders, ascending.
    """

    def __init__(self, strata: _Strata, rows: Int[np.ndarray, "r"], columns: Int[np.ndarray, "c"]) -> None:
        self.rows, self.columns, self.width = rows, columns, strata.width
        n_receivers, n_senders = strata.n // strata.width, strata.width
        self.row_from = np.searchsorted(strata.receivers[rows], np.arange(n_receivers + 1))
        self.column_from = np.searchsorted(strata.senders[columns], np.arange(n_senders + 1))
        self.sizes = np.outer(np.diff(self.row_from), np.diff(self.column_from)).ravel()

    def edges(
        self, stratum: Int[np.ndarray, "E"], cell: Int[np.ndarray, "E"]
    ) -> tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"]]:
        """Receiver and sender of the cells with these numbers."""
        receiver, sender = stratum // self.width, stratum % self.width
        n_columns = self.column_from[sender + 1] - self.column_from[sender]
        row = self.row_from[receiver] + cell // n_columns
        return self.rows[row], self.columns[self.column_from[sender] + cell % n_columns]


def _fill_sparse(
    drawn: Bool[np.ndarray, "R S"], cells: _Cells, missing: Int[np.ndarray, "N"], generator: np.random.Generator
) -> None:
    """Draw places, and those that are taken once more: an even choice, quick where most places are free."""
    stratum = np.repeat(np.arange(len(missing)), missing)
    while len(stratum):
        rows, columns = cells.edges(stratum, (generator.random(len(stratum)) * cells.sizes[stratum]).astype(int))
        _, first = np.unique(rows * drawn.shape[1] + columns, return_index=True)
        new = np.zeros(len(stratum), dtype=bool)
        new[first] = True
        new &= ~drawn[rows, columns]
        drawn[rows[new], columns[new]] = True
        stratum = stratum[~new]


def _fill_crowded(
    drawn: Bool[np.ndarray, "R S"], cells: _Cells, missing: Int[np.ndarray, "N"], generator: np.random.Generator
) -> None:
    """Put all free places into random order and take the first."""
    wanted = np.flatnonzero(missing)
    sizes = cells.sizes[wanted]
    stratum = np.repeat(wanted, sizes)
    rows, columns = cells.edges(stratum, np.arange(len(stratum)) - np.repeat(np.cumsum(sizes) - sizes, sizes))
    free = ~drawn[rows, columns]
    rows, columns, stratum = rows[free], columns[free], stratum[free]
    ranked = (stratum + generator.random(len(stratum))).argsort()
    rank = np.arange(len(ranked)) - np.searchsorted(stratum[ranked], stratum[ranked])
    chosen = ranked[rank < missing[stratum[ranked]]]
    drawn[rows[chosen], columns[chosen]] = True


def _few_choices(live: Circuit) -> bool:
    """True if few enough choices of edges have as many in each stratum."""
    strata, n_choices = edge_strata(live.graph), 1
    counts = np.bincount(strata[live.mask])
    sizes = np.bincount(strata[live.graph.edge_mask], minlength=len(counts))
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=False):
        n_choices *= math.comb(size, count)
        if n_choices > LISTED:
            return False
    return True


def _all_matched(live: Circuit) -> list[Bool[np.ndarray, "R S"]]:
    """Every other circuit that is matched, when few choices have as many edges in each stratum."""
    graph, strata = live.graph, edge_strata(live.graph)
    counts = np.bincount(strata[live.mask])
    choices = [
        [np.array(some) for some in combinations(np.flatnonzero((strata == at).ravel() & graph.edge_mask.ravel()), count)]
        for at, count in enumerate(counts.tolist())
        if count
    ]
    every, own, matched = product(*choices), _heads_in_layers(graph, live.mask), []
    while some := list(islice(every, max(1, _AT_ONCE // live.mask.size))):
        masks = np.zeros((len(some), live.mask.size), dtype=bool)
        for mask, parts in zip(masks, some, strict=True):
            mask[np.concatenate(parts)] = True
        masks = masks.reshape(len(some), *live.mask.shape)
        for mask in masks[_all_live(graph, masks)]:
            if (_heads_in_layers(graph, mask) == own).all() and (mask != live.mask).any():
                matched.append(mask.copy())
    return matched


def _all_live(graph: ComputationGraph, masks: Bool[np.ndarray, "N R S"]) -> Bool[np.ndarray, "N"]:
    """Which masks have live edges alone: a node that an edge leaves is entered (or an embedding), and the other way about."""
    nodes = _strata(graph).nodes
    leaves = masks.any(1)
    entered = np.stack([masks[:, nodes == node].any((1, 2)) for node in range(graph.n_senders)], axis=1)
    within = np.array([node.kind in ("head", "mlp") for node in graph.senders])
    return (leaves == entered)[:, within].all(1)


def _heads_in_layers(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"]) -> Int[np.ndarray, "L"]:
    kept = np.zeros(graph.n_layers, dtype=int)
    for sender in np.flatnonzero(mask.any(0)):
        if graph.senders[sender].kind == "head":
            kept[graph.senders[sender].layer] += 1
    return kept


def _moved(graph: ComputationGraph, places: Int[np.ndarray, "L H"]) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "R"]]:
    """Where each sender and each receiver goes when heads change places."""
    strata, layers = _strata(graph), np.arange(graph.n_layers)[:, None]
    senders, receivers = np.arange(graph.n_senders), np.arange(graph.n_receivers)
    senders[strata.heads_sender] = strata.heads_sender[layers, places]
    receivers[strata.heads_receiver] = strata.heads_receiver[:, layers, places]
    return senders, receivers
