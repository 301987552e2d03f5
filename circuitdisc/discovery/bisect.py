"""Bisection: group testing over edges, the least important first.

1. Rank all edges by the size of an attribution score, smallest first.
2. Take all edges as one group. Cut the whole group: if the metric changes by less than the threshold, it stays cut and the
   new value is the next baseline; else split it in two halves and test these, the less important half first. A single edge
   that fails is kept. Edges into a node that no longer reaches `logits` go without a run.
3. Walk over the kept edges as ACDC does, one by one, from `logits` backwards; repeat until a whole walk cuts nothing: what an
   edge was kept for may be gone by the end of step 2.

About k log2(N / k) runs for k kept edges of N, and k candidates for each walk.

What is true of the circuit that comes out, whatever the ranking was:
- minimal edge by edge: cutting any single edge of it changes (with `two_sided=False`: lowers) the metric by the threshold or
  more;
- faithful within a bound: from the full model to it the metric has changed by less than the threshold in each accepted test,
  so in all by less than the threshold times the number of accepted tests, which the trace lists (`acdc` has one test an edge).
It is not the circuit of `acdc`: the order of the tests is another.

Source: group testing by generalised binary splitting (Hwang 1972) and the 1-minimality of delta debugging (Zeller and
Hildebrandt 2002), for edges.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.circuit import Circuit, live_receivers
from circuitdisc.discovery.acdc import Walk
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.ranking import RANKINGS, Proposing, ascending, check_ranking, edge_ranking, not_tried, proposed
from circuitdisc.discovery.rules import Passing, RuleOptions, rule_of
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, takes
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task

TESTS_PER_MARK = 50


class BisectOptions(RuleOptions, Proposing, total=False):
    """How bisection searches."""

    ranking: Annotated[
        str,
        Option(
            "eap_ig",
            "the scored algorithm, at its default settings, that ranks the edges. It changes the number of runs and, among "
            "circuits that all hold what is stated above, which one comes out.",
        ),
    ]


@takes(BisectOptions)
def bisect(model: Model, task: Task, ablation: Ablation, context: SearchContext, **options: Unpack[BisectOptions]) -> Discovery:
    """Find a circuit by cutting groups of edges.

    Args:
        threshold: the change allowed for a test, of a group or of an edge, in units of the metric; `auto` from the ranking's
            scores.

    Returns:
        The circuit, in `ranking` the scores that ordered the tests, and a test a line in the trace.

    Raises:
        BadSetting: a setting is out of its bounds, or the ranking cannot be had for this metric, model or ablation.
        BadRun: a run that is resumed finds another ranking than it began with.
    """
    given: Any = options
    metric, ranking = get_metric(context.metric), given["ranking"]
    check_choice("ranking", ranking, RANKINGS)
    if ablation.target == "pattern":
        raise BadSetting("bisect cuts edges; an attention pattern is no edge: use ablation.target=output, or head_ablation")
    graph, journal = model.graph, context.journal
    scores, ranking_cost = edge_ranking(ranking, model, task, ablation, context)
    order = ascending(graph, scores)
    recorded = deque(journal.decisions)
    check_ranking(ranking, order, recorded, journal)
    if recorded:
        recorded.popleft()
    patching = Patching(model, ablation, task.train, memory=context.memory)
    chunks = patching.hold_share(task.train)
    start, notes = graph.edge_mask, ()
    if given["prune_first"] is not None:
        start = proposed(graph, scores, given["prune_first"])
        notes = not_tried(Circuit(graph, start), ranking)
    rule = rule_of(given, metric, scores, lambda: patching.ends(chunks, metric, start))
    bar = progress_bar(int(start.sum()), f"bisect on {model.name}", "edge", context.progress)
    measured = partial(patching.measure, chunks, metric=metric)
    baseline = (
        next_line(recorded, "start")["metric"]
        if recorded
        else _first(measured(start), "full model" if (start == graph.edge_mask).all() else "proposed edges", journal)
    )
    mask, _ = cut_groups(start, baseline, order, measured, graph, rule, journal, recorded, bar)
    if "groups" not in journal.marks:
        journal.mark("groups")
    sweep, n_before = 0, -1
    while n_before != mask.sum():
        n_before, sweep = mask.sum(), sweep + 1
        if f"walk {sweep}" in journal.marks:
            mask = _replay_walk(graph, mask, recorded)
            continue
        removal = patching.removal(chunks, mask, metric, first=0)
        walk = Walk(removal, graph, context, bar, rule)
        bar.reset(int(mask.sum()))
        for receiver in reversed(range(graph.n_receivers)):
            if mask[receiver].any():
                walk.visit(receiver)
        removal.close()
        mask = removal.mask & live_receivers(graph, removal.mask)[:, None]
        journal.mark(f"walk {sweep}")
    bar.close()
    patching.cost.add(ranking_cost)
    circuit, notes = Circuit(graph, mask).prune(), (rule.note(metric), *notes)
    return Discovery(circuit, None, journal.decisions, patching.cost, notes=notes, ranking=scores)


def cut_groups(
    start: Bool[np.ndarray, "*P R S"],
    baseline: float,
    order: Int[np.ndarray, "n"],
    measure: Callable[[Bool[np.ndarray, "*P R S"]], float],
    graph: ComputationGraph,
    rule: Passing,
    journal: Journal,
    recorded: deque[dict],
    bar: tqdm,
    live: Callable[[Bool[np.ndarray, "*P R S"]], Bool[np.ndarray, "*P R S"]] | None = None,
) -> tuple[Bool[np.ndarray, "*P R S"], float]:
    """Step 2. Tests that the journal already holds are taken from there.

    Args:
        baseline: the metric of the circuit that it starts with.
        order: flat indices of the edges that are up, the least important first.
        live: which edges of a mask may change anything; None: those into a node with a path to `logits`.

    Returns:
        The edges left, and their metric.
    """
    mask, groups = start.copy(), [order]
    while groups:
        group = groups.pop()
        group = group[mask.flat[group]]  # without the edges that led nowhere by now
        if len(group) == 0:
            continue
        tried = mask.copy()
        tried.flat[group] = False
        tried &= live_receivers(graph, tried)[:, None] if live is None else live(tried)
        if recorded:
            value = next_line(recorded, "group")["metric"]
        else:
            value = measure(tried)
            kept = not rule.passes(baseline, value)
            journal.write(group=len(group), kept=kept, metric=value)
            if (n_tests := len(journal.decisions)) % TESTS_PER_MARK == 0:
                journal.mark(f"{n_tests} tests")
        if rule.passes(baseline, value):
            bar.update(int(mask.sum() - tried.sum()))
            mask, baseline = tried, value
        elif len(group) > 1:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]  # the last one is taken first
        else:
            bar.update(1)
        bar.set_postfix(kept=int(mask.sum()), metric=float(baseline), refresh=False)
    return mask, baseline


def next_line(recorded: deque[dict], *keys: str) -> dict:
    """The next line of an earlier start.

    Raises:
        BadRun: there is none, or it is of another step of the search.
    """
    if not recorded or not set(keys) & set(recorded[0]):
        raise BadRun("the journal's lines are not those of a search by groups in their order: start again in a new folder")
    return recorded.popleft()


def _first(value: float, start: str, journal: Journal) -> float:
    journal.write(start=start, metric=value)
    return value


def _replay_walk(graph: ComputationGraph, mask: Bool[np.ndarray, "R S"], recorded: deque[dict]) -> Bool[np.ndarray, "R S"]:
    """A walk that the journal already holds."""
    mask, n_decisions = mask.copy(), int(mask.sum())
    while n_decisions > 0:
        line = next_line(recorded, "dead", "edge")
        if "dead" in line:
            receiver = graph.receiver_index[line["dead"]]
            n_decisions -= int(mask[receiver].sum())
            mask[receiver] = False
        else:
            n_decisions -= 1
            mask[graph.parse_edge(line["edge"])] = line["kept"]
    return mask & live_receivers(graph, mask)[:, None]
