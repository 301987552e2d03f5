"""Head ablation on several checkpoints at once: a head goes only if none of them misses it.

1. Go through the layers, lowest first (or highest first, or in random order).
2. At the start of each layer measure the metric of every checkpoint with all heads ablated so far: its baseline.
3. Ablate the heads of the layer one after the other, in every checkpoint; a head stays ablated if the metric of each stays
   within the threshold of its own baseline, else it is restored in all.
4. Optional verification, as in `head_ablation`, on examples that were not searched on: while the layer's removals move some
   checkpoint by the threshold or more there, restore the head whose restoration leaves the worst-off checkpoint best.

Source: the search of the Transitive Property Problem study (`discovery/head_ablation.py`), asked of every checkpoint.

Shape letters: L layers, H heads, K checkpoints.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.circuit import kept_heads
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.head_ablation import ORDERS, layers_in_order, split_to_verify
from circuitdisc.discovery.rules import Rule, check_rule
from circuitdisc.engine.head_removal import HeadRemoval
from circuitdisc.engine.head_run import head_circuit
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task


def joint_head_ablation(
    models: Sequence[Model],
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    spared: Bool[np.ndarray, "R S"] | None = None,
    threshold: float = 0.03,
    relative: bool = True,
    two_sided: bool | None = None,
    order: str = "ascending",
    verify: float = 0.0,
) -> Discovery:
    """Ablate every head that no checkpoint misses.

    Args:
        spared: a circuit whose heads are kept without being asked about.
        threshold, relative, two_sided, order, verify: as `head_ablation` takes them; a relative threshold is a fraction of each
            checkpoint's own baseline.
    """
    metric = get_metric(context.metric)
    rule = check_rule(threshold, relative, two_sided, metric)
    check_choice("order", order, ORDERS)
    search_on, verify_on = split_to_verify(task.train, verify)
    graph, journal = models[0].graph, context.journal
    patchings = [Patching(model, ablation, task.train, memory=context.memory) for model in models]
    kept = np.ones((graph.n_layers, graph.n_heads), dtype=bool)
    for decision in journal.decisions:
        kept[graph.parse_head(decision["head"])] = decision["kept"]
    asked = np.ones_like(kept) if spared is None else ~kept_heads(graph, spared)
    finished = set(journal.marks)
    search = [HeadRemoval(patching, patching.hold_share(search_on), metric, kept) for patching in patchings]
    second = (
        [HeadRemoval(patching, patching.hold_share(verify_on), metric, kept) for patching in patchings] if verify_on else []
    )
    title = f"head_ablation on {' + '.join(model.name for model in models)}"
    bar = progress_bar(int(asked.sum()), title, "head", context.progress, len(journal.decisions))
    for layer in layers_in_order(graph.n_layers, order, context.seed):
        if f"layer {layer}" in finished:
            continue
        baselines = [removal.value for removal in search]
        for head in np.flatnonzero(asked[layer]).tolist():
            values = [removal.try_ablating(layer, head) for removal in search]
            keep = not _passes(rule, baselines, values)
            if not keep:
                _set(search, layer, head, keep=False)
            journal.write(head=f"a{layer}.h{head}", layer=layer, kept=keep, metric=values, baseline=baselines)
            bar.update(1)
        for head, values in _verify(search, second, layer, rule) if second else ():
            journal.write(head=f"a{layer}.h{head}", layer=layer, kept=True, metric=values, restored=True)
        journal.mark(f"layer {layer}")
    bar.close()
    cost = Cost()
    for patching in patchings:
        cost.add(patching.cost)
    return Discovery(head_circuit(graph, search[0].kept), None, journal.decisions, cost, notes=(rule.note(metric),))


def _passes(rule: Rule, baselines: Sequence[float], values: Sequence[float]) -> bool:
    """True if the rule holds on every checkpoint."""
    return all(map(rule.passes, baselines, values))


def _set(removals: Sequence[HeadRemoval], layer: int, head: int, keep: bool) -> list[float]:
    return [removal.set_head(layer, head, keep) for removal in removals]


def _verify(
    search: Sequence[HeadRemoval], second: Sequence[HeadRemoval], layer: int, rule: Rule
) -> list[tuple[int, list[float]]]:
    """Step 4 for one layer; returns the heads restored, with the metrics on the second set."""
    baselines = [removal.value for removal in second]
    for head in np.flatnonzero(~search[0].kept[layer]).tolist():
        _set(second, layer, head, keep=False)
    restored = []
    while not _passes(rule, baselines, [removal.value for removal in second]) and not second[0].kept[layer].all():
        margins = {}
        for head in np.flatnonzero(~second[0].kept[layer]).tolist():
            margins[head] = min(map(rule.margin, baselines, _set(second, layer, head, keep=True)))
            _set(second, layer, head, keep=False)
        best = max(margins, key=lambda head: margins[head])
        values = _set(second, layer, best, keep=True)
        _set(search, layer, best, keep=True)
        restored.append((best, values))
    return restored
