"""ACDC: Automatic Circuit DisCovery.

1. Visit the receivers in reverse topological order, from `logits` to the first block.
2. A receiver whose node no longer reaches `logits` loses all its edges, without a run.
3. Otherwise visit the edges into it, one by one: cut the edge; if the metric changes by less than the threshold, it stays
   cut and the new value is the next baseline; else it is kept. The published rule looks at the loss alone (`two_sided=False`).

Exact, though several edges are tried at once: candidate i is measured with those before it cut, except the ones that are
guessed to be kept. Decisions are taken over up to the first one that differs from its guess, which is what one-by-one ACDC
would have decided; what was measured behind it says nothing exact, but makes the guesses of the next try.

Source: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability", algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import Whole, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.ranking import RANKINGS, Proposing, ascending, check_ranking, edge_ranking, not_tried, proposed
from circuitdisc.discovery.rules import AUTO, Deciding, RuleOptions, rule_of
from circuitdisc.discovery.time_left import TimeLeft
from circuitdisc.engine.memory import MOST_ROWS
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, takes
from circuitdisc.progress import finish, time_bar
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task
from circuitdisc.wording import number

BY_ATTRIBUTION = "attribution"
ORDERS_WITHOUT_SCORES = ("descending", "ascending", "random")
ORDERS = (*ORDERS_WITHOUT_SCORES, BY_ATTRIBUTION)


class Trying(Proposing, total=False):
    """Which edges are tried, and in which order."""

    order: Annotated[
        str,
        Option(
            "descending",
            "of the senders of a receiver: `descending` (latest first), `ascending`, `random` (by the seed), or `attribution` "
            "(the one with the smallest score of `ranking` first). It changes the result: report it.",
        ),
    ]
    speculation: Annotated[
        int | None,
        Option(None, "how many candidates are tried at once; None adapts. It never changes the result.", Whole(1, 1_000_000)),
    ]
    ranking: Annotated[
        str,
        Option(
            "eap_ig",
            "the scored algorithm, at its default settings, that `prune_first`, `order=attribution` and `threshold=auto` take "
            "their scores from; without them it is not run.",
        ),
    ]


class AcdcOptions(RuleOptions, Trying, total=False):
    """How ACDC searches."""


@takes(AcdcOptions)
def acdc(model: Model, task: Task, ablation: Ablation, context: SearchContext, **options: Unpack[AcdcOptions]) -> Discovery:
    """Find a circuit by cutting every edge that the metric does not miss.

    Args:
        relative: the threshold is a fraction of the current metric instead, so that n cuts may cost a factor (1 - t)^n.

    Returns:
        The circuit, with a decision an edge in the trace.

    Raises:
        BadSetting, UnknownName: a setting cannot be used.
        BadRun: a run that is resumed finds another ranking than it began with.

    Source: Conmy et al. 2023, algorithm 1; relative thresholds as in the published variants.
    """
    given: Any = options
    metric, graph, journal = get_metric(context.metric), model.graph, context.journal
    check_order(ablation, given["order"])
    check_choice("ranking", given["ranking"], RANKINGS)
    start, scores, notes, cost = graph.edge_mask, None, (), Cost()
    if given["prune_first"] is not None or given["order"] == BY_ATTRIBUTION or given["threshold"] == AUTO:
        scores, cost = edge_ranking(given["ranking"], model, task, ablation, context)
        check_ranking(given["ranking"], ascending(graph, scores), journal.decisions, journal)
        if given["prune_first"] is not None:
            start = proposed(graph, scores, given["prune_first"])
            notes = not_tried(Circuit(graph, start), given["ranking"])
    patching = Patching(model, ablation, task.train, memory=context.memory)
    chunks = patching.hold_share(task.train)
    rule = rule_of(given, metric, scores, lambda: patching.ends(chunks, metric, start))
    clock = TimeLeft(graph)
    with time_bar(f"acdc on {model.name}", context.progress) as bar:

        def begin(mask: Bool[np.ndarray, "R S"], first: int) -> Walk:
            removal = patching.removal(chunks, mask, metric, first=first)
            return Walk(removal, graph, context, bar, rule, given["order"], given["speculation"], scores, clock)

        mask = walk_back(graph, journal, begin, start)
        finish(bar)
    patching.cost.add(cost)
    notes = (rule.note(metric), *notes)
    return Discovery(Circuit(graph, mask).prune(), None, journal.decisions, patching.cost, notes=notes, ranking=scores)


def check_order(ablation: Ablation, order: str, orders: tuple[str, ...] = ORDERS) -> None:
    """Refuse an order that is not known, and an ablation that cuts no edges.

    Raises:
        BadSetting, UnknownName: a setting cannot be used.
    """
    check_choice("order", order, orders)
    if ablation.target == "pattern":
        raise BadSetting("acdc cuts edges; an attention pattern is no edge: use ablation.target=output, or head_ablation")


def walk_back(
    graph: ComputationGraph,
    journal: Journal,
    begin: Callable[[Bool[np.ndarray, "R S"], int], "Walk"],
    start: Bool[np.ndarray, "R S"],
) -> Bool[np.ndarray, "R S"]:
    """Step 1: the receivers from `logits` backwards, those of one node and layer in a walk of their own.

    What the journal has decided is not decided again.

    Args:
        begin: (edges left, index of the lowest receiver to be visited) -> the walk that visits them.
        start: the edges that the search begins with.

    Returns:
        The edges left.
    """
    mask = edges_left(graph, journal.decisions, start)
    finished = set(journal.marks)
    for group in reversed(graph.groups):
        name = graph.receivers[group[0]].name
        if name in finished:
            continue
        walk = begin(mask, group[0])
        walk.expect(group[-1] + 1)
        for receiver in reversed(group):
            walk.visit(receiver)
        walk.end(group[0])
        mask = walk.removal.mask
        del walk  # before the next one runs the circuit
        journal.mark(name)
    return mask


class Cuts(Protocol):
    """What a walk asks of a `Removal`, or of several that are cut alike."""

    @property
    def mask(self) -> Bool[np.ndarray, "R S"]: ...
    @property
    def value(self) -> Any: ...
    def most_rows(self, receiver: int) -> int: ...
    def try_cuts(self, receiver: int, senders: list[int], spared: Sequence[bool] | None = None) -> Sequence[Any]: ...
    def accept(self, cuts: list[int]) -> None: ...
    def drop(self, receivers: list[int]) -> None: ...
    def close(self) -> None: ...


class Walk:
    """Steps 2 and 3 for one receiver after the other, with the edges cut so far.

    Args:
        rule: when an edge may stay cut.
        order, speculation: as `acdc` takes them.
        scores: of all edges, for `order=attribution`. [R, S]
        clock: for a bar that counts time; None: it counts edges.
    """

    def __init__(
        self,
        removal: Cuts,
        graph: ComputationGraph,
        context: SearchContext,
        bar: tqdm,
        rule: Deciding,
        order: str = "descending",
        speculation: int | None = None,
        scores: Float[np.ndarray, "R S"] | None = None,
        clock: TimeLeft | None = None,
    ) -> None:
        self.removal, self.graph, self.context, self.bar = removal, graph, context, bar
        self.rule = rule
        self.order, self.scores, self.clock = order, scores, clock
        self.n_tried, self.seconds = 0, 0.0
        self.speculation, self.rows = speculation, speculation or 16
        self.guesses: dict[int, bool] = {}  # sender -> whether an edge from it is thought to be kept

    def expect(self, n_unvisited: int) -> None:
        """Tell the bar how much time is left before the receivers below `n_unvisited` have been visited."""
        if self.clock is not None:
            left = self.clock.expect(self.removal.mask, n_unvisited)
            self.bar.total = None if left is None else self.bar.n + left

    def end(self, receiver: int) -> None:
        """The walk is over; `receiver` is one that it visited."""
        self.removal.close()
        if self.clock is not None:
            self.clock.visited(receiver, self.n_tried, self.seconds)

    def visit(self, receiver: int) -> None:
        """Steps 2 and 3 for one receiver."""
        node = self.graph.receivers[receiver].node
        if node.kind != "logits" and not self.removal.mask[:, self.graph.sender_index[node.name]].any():
            self._drop_dead(receiver)
            return
        candidates = self._candidates(receiver)
        most = self.removal.most_rows(receiver) if candidates else 1
        while candidates:
            n_decided = self._try(receiver, candidates[: min(self.rows, most)])
            candidates = candidates[n_decided:]

    def _drop_dead(self, receiver: int) -> None:
        """A node without a path to `logits` loses all its edges, without a run."""
        n_edges = int(self.removal.mask[receiver].sum())
        self.removal.drop([receiver])
        self.context.journal.write(dead=self.graph.receivers[receiver].name, edges=n_edges)
        self._advance(n_edges)

    def _candidates(self, receiver: int) -> list[int]:
        senders = np.flatnonzero(self._asked(receiver))
        if self.order == "descending":
            senders = senders[::-1]
        elif self.order == "random":
            senders = np.random.default_rng([self.context.seed, receiver]).permutation(senders)
        elif self.order == BY_ATTRIBUTION and self.scores is not None:
            senders = senders[np.argsort(np.abs(self.scores[receiver, senders]), kind="stable")]
        return [int(sender) for sender in senders]

    def _asked(self, receiver: int) -> Bool[np.ndarray, "S"]:
        """Edges into a receiver that are up for a decision."""
        return self.removal.mask[receiver]

    def _passes(self, before: Any, value: Any) -> bool:
        return self.rule.passes(before, value)

    def _try(self, receiver: int, senders: list[int]) -> int:
        """Decide as many of these edges as one-by-one ACDC surely would; returns how many."""
        spared = [self.guesses.get(sender, False) for sender in senders]
        values = self.removal.try_cuts(receiver, senders, spared)
        baseline, kept = self.removal.value, []
        for value, guess in zip(values, spared, strict=True):
            kept.append(not self._passes(baseline, value))
            if not kept[-1]:
                baseline = value
            if kept[-1] != guess:  # the entries behind it have the wrong edges cut
                break
        self._guess(senders, spared, values)
        n_decided = len(kept)
        self.removal.accept([index for index in range(n_decided) if not kept[index]])
        for sender, keep, value in zip(senders, kept, values, strict=False):
            self.context.journal.write(edge=self.graph.edge_name(receiver, sender), kept=keep, metric=value)
        self.n_tried += n_decided
        self._advance(n_decided)
        if self.speculation is None:  # twice as many after guesses that held, as many as were useful after one that did not
            held = n_decided == len(senders)
            self.rows = min(MOST_ROWS, 2 * self.rows) if held else max(1, (len(senders) + n_decided) // 2)
        return n_decided

    def _guess(self, senders: list[int], spared: list[bool], values: Sequence[Any]) -> None:
        """What an edge changed on top of the cuts before it, though wrong ones, is a fair guess of what it will change.

        It serves the receivers visited after this one, too: a sender that one head needs is often needed by the next.
        """
        before = self.removal.value
        for sender, spare, value in zip(senders, spared, values, strict=True):
            self.guesses[sender] = not self._passes(before, value)
            before = before if spare else value

    def _advance(self, n_edges: int) -> None:
        if self.clock is None:
            self.bar.update(n_edges)
        else:
            seconds = self.clock.lap()
            self.seconds += seconds
            if self.bar.total is not None:  # an estimate, which may be passed
                self.bar.total = max(self.bar.total, self.bar.n + seconds)
            self.bar.update(seconds)
        values = np.atleast_1d(self.removal.value)  # several, where checkpoints are searched together
        value = float(values[0]) if len(values) == 1 else " ".join(map(number, values))
        self.bar.set_postfix(kept=int(self.removal.mask.sum()), metric=value, refresh=False)


def edges_left(graph: ComputationGraph, decisions: Sequence[dict], start: Bool[np.ndarray, "R S"]) -> Bool[np.ndarray, "R S"]:
    """The edges left by the decisions of a journal, of those that the search began with."""
    mask = start.copy()
    for decision in decisions:
        if "ranking" in decision:
            continue
        if "dead" in decision:
            mask[graph.receiver_index[decision["dead"]]] = False
        elif not decision["kept"]:
            mask[graph.parse_edge(decision["edge"])] = False
    return mask
