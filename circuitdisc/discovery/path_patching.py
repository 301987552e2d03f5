"""Path patching in rounds: from the logits backwards, the heads whose paths into what was found before move the metric.

1. Patch the direct path from every head into the first round's receivers (usually `logits`), one head at a time: the sender
   takes its ablated value, every other head is frozen, MLPs react; only what the receivers read is carried over into a second
   run (`engine/path_run.py`).
2. Keep the heads that change the metric most: the best few, or all that pass a threshold. They are a named group.
3. Make them the receivers of the next round, through the input (q, k or v) and at the positions that the plan names.
4. Go on until the plan ends or, without a plan of one's own (`auto`), until no new head passes.
5. The circuit keeps the heads of all groups, every MLP and every embedding, with all edges among them.

Source: Wang et al. 2022, "Interpretability in the Wild", section 3.1 and appendix B (https://arxiv.org/abs/2211.00593); in
rounds also Prakash et al. 2024 (https://arxiv.org/abs/2402.14811).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import THRESHOLD, Whole, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.path_plan import PatchingPlan, Round, read_plan
from circuitdisc.discovery.selection import By
from circuitdisc.engine.part_removal import check_finite
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.path_effects import PathEffects, PathPatching, Rerunning
from circuitdisc.errors import BadRun, BadSetting, UnknownName
from circuitdisc.graph import QKV, ComputationGraph
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import progress_bar
from circuitdisc.stats import Partition, partition_of, plain, standard_error
from circuitdisc.tasks.base import Task

Groups = dict[str, tuple[str, ...]]


@bounded(threshold=THRESHOLD, top=Whole(1, 1_000_000), max_depth=Whole(1, 1000))
@takes(Rerunning)
def path_patching(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    plan: str | Mapping[str, Any] = "auto",
    threshold: float | None = 0.05,
    top: int | None = None,
    by: By = "signed",
    max_depth: int = 4,
    **options: Unpack[Rerunning],
) -> Discovery:
    """Find heads by path patching, in rounds.

    Args:
        plan: `auto`, `direct`, a YAML file of rounds (see `path_plan.py`), or its content.
        threshold: a head is kept if its paths change the metric by at least this fraction; None: whatever the change.
        top: at most so many heads in a round; None for no limit.
        by: `signed`: only falls of the metric count; `absolute`: rises do, too (negative name movers).
        max_depth: `auto` follows paths back over at most so many groups.

    Returns:
        A head circuit with its groups; in `node_scores` each head's largest relative change in any round (NaN for senders that
        were never patched); in the trace a line a round with all effects.

    Raises:
        BadSetting: a setting is out of its bounds, or the metric has no clean value to take a fraction of.
        UnknownName: a plan, a group or a position is not known.
        BadRun: the journal of an earlier start followed another plan.
    """
    metric = get_metric(context.metric)
    check_choice("by", by, get_args(By))
    chosen = read_plan(plan, top, threshold, by)
    _check_metric(metric, chosen)
    graph, journal = model.graph, context.journal
    patching = Patching(model, ablation, task.train, memory=context.memory)
    paths = PathPatching(patching, patching.hold_share(task.train), metric, **options)
    groups: Groups = {}
    over = partition_of(task.train)
    earlier = list(journal.decisions)
    bar = progress_bar(len(chosen.rounds), f"path_patching on {model.name}", "round", context.progress)
    for one in _rounds(chosen, groups, max_depth, bar):
        if earlier:
            found = _replayed(earlier.pop(0), one)
        else:
            receivers = _receivers(graph, one, groups)
            effects = _effects(paths, graph, one, receivers, context.progress)
            found = [] if effects is None else _strongest(effects, one, groups if chosen.auto else {})
            journal.write(**_line(one, receivers, effects, found, over, metric))
            journal.mark(one.group)
        groups[one.group] = tuple(found)
        bar.update(1)
        bar.set_postfix(heads=len(_heads(groups)), refresh=False)
    bar.close()
    kept = {name: heads for name, heads in groups.items() if heads}
    circuit = replace(Circuit.from_heads(graph, _heads(groups)), groups=kept)
    return Discovery(circuit, None, journal.decisions, patching.cost, _node_scores(graph, journal.decisions))


def _check_metric(metric: Metric, plan: PatchingPlan) -> None:
    for one in plan.rounds:
        if metric.zero_at_full and one.threshold is not None:
            raise BadSetting(
                f"threshold={one.threshold} with metric '{metric.name}': the clean value is 0, and no change is a fraction of "
                "it: use threshold=null and top=, or another metric"
            )


def _rounds(plan: PatchingPlan, groups: Groups, max_depth: int, bar: Any) -> Iterator[Round]:
    """The plan's rounds; `auto` adds one for each input of every group that was found, breadth first."""
    waiting = [(one, 1) for one in plan.rounds]
    while waiting:
        one, depth = waiting.pop(0)
        yield one
        if plan.auto and groups[one.group] and depth < max_depth:
            further = [replace(one, group=f"{one.group}.{i}", receivers=(one.group,), input=i) for i in get_args(QKV)]
            waiting += [(next_round, depth + 1) for next_round in further]
            bar.total += len(further)
            bar.refresh()


def _effects(
    paths: PathPatching, graph: ComputationGraph, one: Round, receivers: Sequence[str], progress: bool
) -> PathEffects | None:
    """The round's map; None without receivers (groups in which nothing was found), or if no head comes before them."""
    if all(graph.n_upstream[graph.receiver_index[name]] <= graph.sender_index["a0.h0"] for name in receivers):
        return None
    return paths.effects("heads", receivers, one.sender_positions, one.positions, progress)


def _receivers(graph: ComputationGraph, one: Round, groups: Groups) -> list[str]:
    """Names of the round's receivers: nodes and groups with the round's input."""
    names: list[str] = []
    for name in one.receivers:
        for node in groups.get(name, (name,)):
            if node in graph.receiver_index:
                names.append(node)
            elif node not in graph.heads:
                raise UnknownName(f"receiver of round '{one.group}'", node, ("logits", *groups), "Nodes are written a1.h0, m2.")
            elif one.input is None:
                raise BadSetting(f"round '{one.group}' has heads as receivers and no input: give input: q, k or v")
            else:
                names.append(f"{node}<{one.input}>")
    return names


def _strongest(effects: PathEffects, one: Round, found_before: Groups) -> list[str]:
    """The heads that the round keeps, strongest first."""
    change = effects.absolute if one.threshold is None else effects.relative
    size = np.abs(change) if one.by == "absolute" else -change
    least = 0.0 if one.threshold is None else one.threshold
    taken = set(_heads(found_before))
    order = [index for index in np.argsort(-np.where(np.isnan(size), -np.inf, size), kind="stable") if size[index] > 0]
    kept = [effects.senders[index] for index in order if size[index] >= least and effects.senders[index] not in taken]
    return kept[: one.top]


def _line(
    one: Round, receivers: Sequence[str], effects: PathEffects | None, found: Sequence[str], over: Partition, metric: Metric
) -> dict[str, Any]:
    """What the journal keeps of a round."""
    line: dict[str, Any] = {"round": one.group, "plan": one.to_dict(), "receivers": list(receivers), "found": list(found)}
    line["effects"] = {}
    if effects is None:
        return line
    spread = effects.patched - check_finite(effects.clean, metric)
    error = standard_error(spread, over)
    columns = zip(effects.senders, effects.absolute, effects.relative, error, strict=True)
    line["clean"], line["n"] = float(effects.clean.mean()), len(effects.clean)
    line["effects"] = {
        name: {"absolute": float(a), "relative": plain(r), "standard_error": plain(e)}
        for name, a, r, e in columns
        if np.isfinite(a)
    }
    return line


def _replayed(line: Mapping[str, Any], one: Round) -> list[str]:
    """What a round of an earlier start found.

    Raises:
        BadRun: that start followed another plan.
    """
    if line.get("plan") != one.to_dict():
        raise BadRun(f"the plan has changed since the run was started (round '{one.group}'): start a new run with out=")
    return list(line["found"])


def _heads(groups: Groups) -> list[str]:
    return list(dict.fromkeys(head for heads in groups.values() for head in heads))


def _node_scores(graph: ComputationGraph, trace: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Each head's change of largest size in any round: relative, or absolute where the clean metric is 0."""
    scores = np.full(graph.n_senders, np.nan)
    for line in trace:
        for name, effect in line["effects"].items():
            index = graph.sender_index[name]
            change = effect["absolute"] if effect["relative"] is None else effect["relative"]
            if not abs(scores[index]) >= abs(change):
                scores[index] = change
    return scores
