"""Refinement: any circuit, walked by exact search backwards and forwards until neither changes it.

d is the distance of a circuit's metric from the full model's.

1. Begin with a circuit: the best edges of a scored algorithm, or one from a file. With `keep`, put back the edges with the
   largest scores, 1, 2, 4, ... at a time, until the circuit keeps the share.
2. Flip every edge alone, exactly: each kept edge is cut, each other edge into a live node is put back.
3. Forward: put back every edge that alone lowers d by more than the threshold, all together if that is no worse than the best
   of them alone.
4. Backward, when nothing is missed: cut the edges that alone may go, in groups as `bisect` does, those that change least first.
   Go on with step 2 until no single flip is due.
5. Put back a group that no single flip would have: the 1, 2, 4, ... edges that come nearest to being missed, then those with
   the largest scores. Repeat steps 2 to 4 from there, and take what comes out if it is better: with a threshold, if
   d + threshold x edges is lower; with `keep`, if it has fewer edges. End when no group is.

What is true of the circuit that comes out, whatever the scores were:
- minimal edge by edge: cutting any single edge of it raises d by the threshold or more (with `keep`: leaves the bounds);
- nothing is missed: no single edge that was tried lowers d by more than the threshold when it is put back;
- no worse than it began: d + threshold x edges only ever falls (with `keep`: the circuit lies within the bounds, and has no
  more edges than one that began within them), which is also why the search ends.

With `edges`, the circuit has exactly that many edges, all with a path to `logits`:
1. Begin with a larger circuit, or with any from a file. While it has too many edges, cut half of what is too many, those that
   alone lead least far from the full model; while it has too few, put back half of what is missing, those that alone bring it
   nearest.
2. Swap: cut an edge (one of the `swaps` whose cut leads least far, in that order), try every candidate in its place, and take
   the best if that lowers d. Begin again from there. End when none of these edges has such a candidate.
So no swap that is tried lowers d by more than rounding: with `swaps` and `candidates` None no swap of one edge for another that
leaves as many edges with a path to `logits`. From a circuit of that size d never rises. It need not be the best of its size.

All of it holds for the metric's mean over the examples that were searched on.

Source: add and drop moves of local search (Kernighan and Lin 1970) with the restarts of iterated local search (Lourenco, Martin
and Stuetzle 2003), over edges; group tests as in `bisect`.
"""

import math
from collections import deque
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import EDGES, FRACTION, Whole, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.ranking import RANKINGS, ascending, check_ranking, edge_ranking
from circuitdisc.discovery.refine_search import FlipWalk, WalkToSize
from circuitdisc.discovery.rules import KeepOptions, KeepRule, OfSize, Priced, Within, check_rule, rule_of
from circuitdisc.discovery.selection import Chosen, Selection
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, GraphMismatch, shown
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, takes
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task

ROUNDING = 1e-6
"""Of the gap between full model and empty circuit: what a swap must gain."""


class RefineOptions(KeepOptions, total=False):
    """Where refinement begins and what it tries."""

    start: Annotated[
        str,
        Option(
            "eap_ig",
            "the circuit to begin with: a scored algorithm at its defaults, whose best edges (`edges`, `fraction`, `grow`) are "
            "taken; or the folder of a run, or a circuit's file.",
        ),
    ]
    edges: Annotated[
        int | None,
        Option(
            None,
            "in place of a threshold: the circuit has exactly so many edges, as near to the full model as swaps lead.",
            EDGES,
        ),
    ]
    fraction: Annotated[
        float,
        Option(0.05, "size of a scored start as a share of the graph's edges; with `edges`, at least that many.", FRACTION),
    ]
    grow: Annotated[
        Chosen, Option("top_k", "how a scored start is chosen: `top_k`, `greedy` or `optimal`, as by scored algorithms.")
    ]
    ranking: Annotated[
        str,
        Option(
            "eap_ig",
            "the scored algorithm whose scores say which edges are put back in groups, where `start` is a file; a scored start "
            "has scores of its own.",
        ),
    ]
    candidates: Annotated[
        int | None,
        Option(None, "how many edges, those with the largest scores, may be put back; None: all of the graph.", EDGES),
    ]
    widest: Annotated[int, Option(8, "the largest group of edges that is put back together in step 5.", Whole(1, 2**31 - 1))]
    swaps: Annotated[
        int | None,
        Option(
            8,
            "with `edges`: how many edges of the circuit, those whose cut changes least, are tried to be swapped; None: all.",
            EDGES,
        ),
    ]


@takes(RefineOptions)
def refine(model: Model, task: Task, ablation: Ablation, context: SearchContext, **options: Unpack[RefineOptions]) -> Discovery:
    """Cut what a circuit does not need and put back what it misses, until neither changes it.

    Args:
        threshold: what an edge must be worth, in units of the metric: kept edges bring it nearer to the full model's by at
            least this; `auto` from the scores.
        keep: in place of a threshold: the fewest edges with which the circuit keeps this share of the gap in the metric between
            the full model and the empty circuit (and rises no further above the full model).
        two_sided: above the full model a circuit is as far from it as below. `False`: only what lies below counts, so that
            edges that raise the metric further are put back. None: `False` for `kl`, and `True` for all others.

    Returns:
        The circuit, in `ranking` the scores that ordered groups, and in the trace every edge's effect and every test.

    Raises:
        BadSetting, UnknownName: a setting cannot be used.
        GraphMismatch: the circuit to begin with is of another graph.
        BadRun: a run that is resumed finds another start than it began with.
    """
    given: Any = options
    metric, graph, journal = get_metric(context.metric), model.graph, context.journal
    if ablation.target == "pattern":
        raise BadSetting("refine cuts edges; an attention pattern is no edge: use ablation.target=output, or head_ablation")
    check_choice("ranking", given["ranking"], RANKINGS)
    size: int | None = given["edges"]
    if size is not None and given["keep"] is not None:
        raise BadSetting(f"edges={size} and keep={given['keep']:g} both say how large the circuit is: give one of them")
    n_start = max(size or 1, math.ceil(given["fraction"] * graph.n_edges))
    selection = Selection(n_start, grow=given["grow"])
    selection.n_edges(graph)
    scored = given["start"] in RANKINGS
    start = None if scored else _circuit_at(given["start"], graph)
    ranking = given["start"] if scored else given["ranking"]
    scores, ranking_cost = edge_ranking(ranking, model, task, ablation, context)
    recorded = deque(journal.decisions)
    check_ranking(ranking, ascending(graph, scores), recorded, journal)
    if recorded:
        recorded.popleft()
    circuit = (start or selection.circuit(graph, scores)).prune()
    patching = Patching(model, ablation, task.train, memory=context.memory)
    chunks = patching.hold_share(task.train)
    full = patching.measure(chunks, graph.edge_mask, metric)
    order, n_candidates = ascending(graph, scores)[::-1], given["candidates"]
    bar = progress_bar(graph.n_edges, f"refine on {model.name}", "edge", context.progress)
    empty = partial(patching.measure, chunks, np.zeros_like(graph.edge_mask), metric)
    shared: dict[str, Any] = {
        "journal": journal, "recorded": recorded, "order": order, "n_candidates": n_candidates, "widest": given["widest"],
        "bar": bar,
    }  # fmt: skip
    if size is not None:
        best = np.zeros_like(graph.edge_mask)
        best.flat[order[:n_candidates]] = True
        if (most := Circuit(graph, best).prune().n_edges) < size:
            raise BadSetting(f"edges={size}, but only {most} of candidates={n_candidates} lead to logits: give more candidates")
        aim = OfSize(check_rule(0.0, False, given["two_sided"], metric), full, size, ROUNDING * abs(full - empty()))
        search = WalkToSize(patching, chunks, metric, aim, **shared, n_swaps=given["swaps"])
    else:
        rule = rule_of({**given, "relative": False, "ranking": ranking}, metric, scores, lambda: (full, empty(), full))
        aim = Within(rule) if isinstance(rule, KeepRule) else Priced(rule, full)
        search = FlipWalk(patching, chunks, metric, aim, **shared)
    mask = search.run(circuit.mask, f"{given['start']}, {circuit.n_edges:,} edges")
    bar.close()
    patching.cost.add(ranking_cost)
    notes = (aim.note(metric), *search.notes(circuit, given["start"], ranking))
    return Discovery(Circuit(graph, mask).prune(), None, journal.decisions, patching.cost, notes=notes, ranking=scores)


def _circuit_at(start: str, graph: ComputationGraph) -> Circuit:
    """The circuit of a run's folder, or of a file.

    Raises:
        BadSetting: there is none.
        GraphMismatch: it is of another graph.
    """
    path = Path(start if isinstance(start, str) else "")
    file = path / "circuit.json" if path.is_dir() else path
    if not isinstance(start, str) or not file.is_file():
        names = ", ".join(RANKINGS)
        raise BadSetting(
            f"start={shown(start)} is neither a scored algorithm ({names}), the folder of a finished run, nor a circuit.json"
        )
    circuit = Circuit.load(file)
    if circuit.graph != graph:
        raise GraphMismatch(f"start={start} is a circuit of {circuit.graph.describe()}; this model has {graph.describe()}")
    return circuit
