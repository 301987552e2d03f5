"""Layer-ascending head ablation: the attention-focused search of the Transitive Property Problem study.

1. Go through the layers, lowest first (or highest first, or in random order).
2. At the start of each layer measure the metric with all heads ablated so far: this layer's baseline.
3. Ablate the heads of the layer one after the other; a head stays ablated if the metric stays within the threshold of the
   layer's baseline, else it is restored. The study looks at falls of the metric alone (`two_sided=False`).
4. Optional verification: measure the layer's removals together on examples that were not searched on; while they move the
   metric by the threshold or more there, restore the one whose restoration helps most.

Source: the CS224N study of the Transitive Property Problem in GPT-2 small (layer-by-layer ablation of attention heads);
the verification step answers its finding that circuits found on 100 examples do not hold on 3,000.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from circuitdisc.ablation import Ablation
from circuitdisc.checks import KEEP, THRESHOLD, Real, bounded, check_choice
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.rules import Deciding, KeepRule, check_rule
from circuitdisc.engine.head_removal import HeadRemoval
from circuitdisc.engine.head_run import head_circuit
from circuitdisc.engine.memory import COPIES_TO_PREPARE
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.graph import Node
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Example, Task

ORDERS = ("ascending", "descending", "random")


@bounded(threshold=THRESHOLD, verify=Real(0, 0.9), keep=KEEP)
def head_ablation(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    threshold: float = 0.03,
    relative: bool = True,
    two_sided: bool | None = None,
    order: str = "ascending",
    verify: float = 0.0,
    keep: float | None = None,
) -> Discovery:
    """Find the heads that a task needs by ablating them layer by layer.

    Args:
        threshold: how far the metric may move away from the baseline of the layer.
        relative: the threshold is a fraction of that baseline; else it is in units of the metric.
        two_sided: a rise of the metric by the threshold or more keeps a head, too. `False` is the study's rule, by which only a
            fall does. None: `False` for `kl`, which cannot rise above the full model's, and `True` for all others.
        order: of the layers: `ascending`, `descending` or `random` (by the seed).
        verify: share of the train examples that is kept out of the search and used for verification; 0 for none.
        keep: in place of the threshold: a head goes while the rest keeps this share of the gap in the metric between the full
            model and the model without heads (and rises no further above the full model).

    Returns:
        A head circuit, with a decision a head in the trace.

    Raises:
        BadSetting: a setting is out of its bounds, or leaves no examples to search or to verify on.
    """
    metric = get_metric(context.metric)
    rule: Deciding = check_rule(threshold, relative, two_sided, metric)
    check_choice("order", order, ORDERS)
    search_on, verify_on = split_to_verify(task.train, verify)
    graph, journal = model.graph, context.journal
    patching = Patching(model, ablation, task.train, memory=context.memory)
    kept = _replay(graph.n_layers, graph.n_heads, journal.decisions)
    finished = set(journal.marks)
    chunks = patching.hold_share(search_on, COPIES_TO_PREPARE)
    if keep is not None:
        full, empty = (HeadRemoval(patching, chunks, metric, np.full_like(kept, end)).value for end in (True, False))
        rule = KeepRule(keep, full, empty)
    search = HeadRemoval(patching, chunks, metric, kept)
    second = HeadRemoval(patching, patching.hold_share(verify_on, COPIES_TO_PREPARE), metric, kept) if verify_on else None
    n_done = len(finished) * graph.n_heads
    bar = progress_bar(graph.n_layers * graph.n_heads, f"head_ablation on {model.name}", "head", context.progress, n_done)
    for layer in layers_in_order(graph.n_layers, order, context.seed):
        if f"layer {layer}" in finished:
            continue
        baseline = search.value
        for head in range(graph.n_heads):
            value = search.try_ablating(layer, head)
            keep = not rule.passes(baseline, value)
            if not keep:
                search.set_head(layer, head, keep=False)
            journal.write(head=f"a{layer}.h{head}", layer=layer, kept=keep, metric=value, baseline=baseline)
            bar.update(1)
            bar.set_postfix(kept=int(search.kept.sum()), metric=float(search.value), refresh=False)
        if second is not None:
            for head, value in _verify(search, second, layer, rule):
                name = f"a{layer}.h{head}"
                journal.write(head=name, layer=layer, kept=True, metric=value, restored=True)
        journal.mark(f"layer {layer}")
    bar.close()
    return Discovery(head_circuit(graph, search.kept), None, journal.decisions, patching.cost, notes=(rule.note(metric),))


def _verify(search: HeadRemoval, second: HeadRemoval, layer: int, rule: Deciding) -> list[tuple[int, float]]:
    """Step 4: restore the layer's worst removals until the rest holds on the second set. Returns heads and metric there."""
    baseline = second.value
    for head in np.flatnonzero(~search.kept[layer]):
        second.set_head(layer, int(head), keep=False)
    restored = []
    while not rule.passes(baseline, second.value) and not second.kept[layer].all():
        values = {}
        for head in np.flatnonzero(~second.kept[layer]):
            values[int(head)] = second.set_head(layer, int(head), keep=True)
            second.set_head(layer, int(head), keep=False)
        best = max(values, key=lambda head: rule.margin(baseline, values[head]))
        second.set_head(layer, best, keep=True)
        search.set_head(layer, best, keep=True)
        restored.append((best, second.value))
    return restored


def split_to_verify(examples: Sequence[Example], verify: float) -> tuple[Sequence[Example], Sequence[Example]]:
    """Examples to search on, and the last `verify` of them to verify on.

    Raises:
        BadSetting: one of the two is empty.
    """
    n_verify = round(len(examples) * verify)
    if verify > 0 and (n_verify == 0 or n_verify == len(examples)):
        raise BadSetting(f"verify={verify} leaves {n_verify} of {len(examples)} train examples to verify on: raise task.n")
    return examples[: len(examples) - n_verify], examples[len(examples) - n_verify :]


def layers_in_order(n_layers: int, order: str, seed: int) -> list[int]:
    """Layers in the order in which they are searched."""
    if order == "random":
        return [int(layer) for layer in np.random.default_rng(seed).permutation(n_layers)]
    return list(range(n_layers)) if order == "ascending" else list(reversed(range(n_layers)))


def _replay(n_layers: int, n_heads: int, decisions: Sequence[dict]) -> Bool[np.ndarray, "L H"]:
    """The heads left by the decisions of a journal; a restored head's last line counts."""
    kept = np.ones((n_layers, n_heads), dtype=bool)
    for decision in decisions:
        node = Node.parse(decision["head"])
        kept[node.layer, node.head] = decision["kept"]
    return kept
