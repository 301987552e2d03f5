"""Localised interventions: edit a few chosen heads, learned or swept on train examples, and see what held-out ones do.

    offset       a vector for each head is added to its values z, before W_O, at every token; learned by Adam on the answer's
                 log-probability, at a price for the vectors' size (LoFiT). `heads="lofit"` is its first step: a scaling of
                 every head is learned at a price, and the heads with the largest scalings are taken.
    inject       where the answer is read, each head's z is mixed with its mean over train examples (or over
                 demonstrations); the share of each is learned (soft injection)
    first_token  the heads' attention to the first token is multiplied by a factor that is swept (ZeroTuning)

Three splits: trained or swept on the first part of the train examples, chosen on the rest of them (the epoch, the price of the
vectors, the factor), reported on the held-out ones. Beside it the same is done, training and choice included, to as many random
heads: what is not beaten there is not a matter of these heads.

Source: see `heads/localised/head_edits.py`.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import EXAMPLES, N_RANDOM, Whole, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.engine.measuring import mean_intervals
from circuitdisc.engine.requirements import gradients_of
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.heads.base import as_list, head_mask
from circuitdisc.heads.dcm.parts import check_circuit, draws
from circuitdisc.heads.localised.fit import EditFit, EditFitting, Learned, Splits, head_norms, learn, task_vectors
from circuitdisc.heads.localised.result import EditEffect, Localised
from circuitdisc.identity import Identity, identity_of
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import from_options, takes
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Journal, Memo
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.framing import behind_solved
from circuitdisc.tasks.measured import beside, metric_for

KINDS = ("offset", "inject", "first_token")
RATES = {"offset": 0.01, "inject": 0.1, "first_token": 0.0}
LOFIT = "lofit"


@bounded(k=Whole(1, 1_000_000), n_choose=EXAMPLES, n_random=N_RANDOM, demonstrations=Whole(1, 1000, kinds=(list, tuple)))
@takes(EditFitting)
def localised(
    model: Model,
    task: Task,
    heads: str | Sequence[str] | Circuit = LOFIT,
    kind: str = "offset",
    *,
    k: int | None = None,
    n_choose: int | None = None,
    demonstrations: int | Sequence[Example] | None = None,
    n_random: int = 5,
    journal: Journal | None = None,
    **options: Unpack[EditFitting],
) -> Localised:
    """Edit some heads, learned on train examples, and measure held-out ones before and after, beside random heads.

    Args:
        heads: their names, a circuit whose heads are taken, `all`, or `lofit`: the k heads that LoFiT's first step takes.
        kind: `offset`, `inject` or `first_token`.
        k: how many heads `lofit` takes; None: a tenth of the model's, at least one.
        n_choose: how many of the train examples choose; None: a third.
        demonstrations: examples whose mean is injected (`inject`); a number: those that are trained on, behind so many solved
            ones, which are chosen among them; None: those that are trained on.
        n_random: how often as many random heads are drawn; fewer where there are no more choices.
        seed: of the mini-batches, the random heads and the bootstrap.
        journal: where each edit is written when it is learned; those already in it are taken over.

    Raises:
        UnknownName: kind or metric is not known.
        GraphMismatch: a head is not one of this model.
        BadSetting: the model runs by hooks, a number is out of its bounds, or there is no head to edit.
        BadTask: there are too few train examples for two splits.
        BadRun: the journal is of a call with other settings.

    Source: Yin, Ye and Durrett 2024 (LoFiT); Park and Rhee 2025 (soft injection); Han et al. 2025 (ZeroTuning).
    """
    check_choice("kind", kind, KINDS)
    given: Any = options
    measure = metric_for(model, task, given["metric"] or "log_prob")
    gradients_of(model, Ablation("zero"), get_metric("log_prob"), "localised")
    rate = RATES[kind] or 0.01 if given["learning_rate"] is None else given["learning_rate"]
    l1, factors = (tuple(map(float, _numbers(name, given[name]))) for name in ("l1", "factors"))
    fit = from_options(EditFit, given, l1=l1, factors=factors, learning_rate=rate, metric=measure)
    examples = _three_splits(task, n_choose)
    demonstrations = _demonstrations(model, task, examples["train"], kind, demonstrations)
    chosen = _given_heads(model, heads, k)
    splits = Splits(model, examples, fit.batch, given["memory"])
    identity = _identity(model, fit, kind, chosen, k, given["selection_l1"], examples, demonstrations)
    with closing(Memo(journal, identity)) as memo:
        norms: dict[str, float] = {}
        if chosen is None:
            norms = dict(memo.get("norms", lambda: head_norms(splits, fit, given["selection_l1"])))
            chosen = list(norms)[: _size(model, k)]
        vectors = None
        if kind == "inject":
            vectors = task_vectors(model, demonstrations or examples["train"], fit.batch, given["memory"])
        names = list(model.graph.heads)
        own = frozenset(names.index(head) for head in chosen)
        drawn = [
            [names[i] for i in sorted(indices)] for indices in draws(names, own, n_random, np.random.default_rng(fit.seed))
        ]
        learned = []
        with progress_bar(1 + len(drawn), f"{kind} on {model.name}", "set of heads", given["progress"]) as bar:
            for number, some in enumerate([chosen, *drawn]):
                edit = memo.get(f"edit {number}", lambda some=some: learn(splits, kind, some, fit, vectors).to_dict())
                learned.append(Learned.from_dict(edit, model.dtype))
                bar.update(1)
    return _report(splits, kind, learned, norms, fit, given["confidence"])


def _report(
    splits: Splits, kind: str, learned: Sequence[Learned], norms: Mapping[str, float], fit: EditFit, confidence: float
) -> Localised:
    """The effect of every edit on the held-out examples."""
    metrics = beside(splits.model, fit.metric, "accuracy")
    over = partition_of(splits.examples["report"])
    before = splits.values("report", None, metrics)
    after = [splits.values("report", each.edit, metrics) for each in learned]
    effects = []
    for metric in metrics:
        name, width = metric.name, metric.most - metric.least
        rows = np.stack([before[name], after[0][name], after[0][name] - before[name]])
        low, high = mean_intervals(rows, over, confidence, fit.seed)
        low = np.maximum(low, [metric.least, metric.least, -width])
        high = np.minimum(high, [metric.most, metric.most, width])
        (b, a, d), controls = rows.mean(1).tolist(), (float((each[name] - before[name]).mean()) for each in after[1:])
        ends = [float(end) for pair in zip(low, high, strict=True) for end in pair]
        effects.append(
            EditEffect(name, rows.shape[1], b, ends[0], ends[1], a, ends[2], ends[3], d, ends[4], ends[5], tuple(controls))
        )
    unedited = float(splits.values("choose", None, [fit.metric])[fit.metric.name].mean())
    graph = splits.model.graph
    values = {f"{when} {name}": rows[name] for when, rows in (("before", before), ("after", after[0])) for name in rows}
    return Localised(
        kind,
        learned[0],
        tuple(effects),
        tuple(learned[1:]),
        norms,
        {split: len(examples) for split, examples in splits.examples.items()},
        unedited,
        (graph.n_layers, graph.n_heads),
        confidence,
        values,
    )


# --- settings, checked ------------------------------------------------------------------------------------------------


def _three_splits(task: Task, n_choose: int | None) -> dict[str, Sequence[Example]]:
    n_choose = max(1, len(task.train) // 3) if n_choose is None else n_choose
    n_train = len(task.train) - n_choose
    if n_train < 1:
        raise BadTask(
            f"{len(task.train)} train examples cannot be dealt into some to train on and {n_choose} to choose on: ask for "
            "more (n=), or lower n_choose"
        )
    return {"train": task.train[:n_train], "choose": task.train[n_train:], "report": task.heldout}


def _demonstrations(
    model: Model, task: Task, train: Sequence[Example], kind: str, given: int | Sequence[Example] | None
) -> Sequence[Example] | None:
    """The examples whose mean is injected, where they are not those that are trained on."""
    if given is None:
        return None
    if not isinstance(given, int) and not given:
        raise BadSetting("demonstrations= holds no examples: give some, or leave it out for the train examples")
    if kind != "inject":
        raise BadSetting(f"demonstrations= is for kind=inject, which mixes a mean in: leave it out of kind={kind}")
    return behind_solved(task, model, train, given) if isinstance(given, int) else given


def _given_heads(model: Model, heads: str | Sequence[str] | Circuit, k: int | None) -> list[str] | None:
    """The heads that were named, in the model's order; None if LoFiT's first step is to find them."""
    names = list(model.graph.heads)
    if heads == LOFIT:
        _size(model, k)
        return None
    if k is not None:
        raise BadSetting(f"k={k} is for heads=lofit, which finds heads: leave it out")
    if isinstance(heads, Circuit):
        check_circuit(model.graph, heads)
        chosen = heads.heads()
    else:
        chosen = names if heads == "all" else as_list("heads", heads)
    head_mask(model.graph, chosen)
    if not chosen:
        raise BadSetting(
            "there is no head to edit: name some, give a circuit that keeps heads, or take heads=lofit or heads=all"
        )
    return [name for name in names if name in set(chosen)]


def _size(model: Model, k: int | None) -> int:
    n = model.graph.n_layers * model.graph.n_heads
    if k is None:
        return max(1, round(n / 10))
    if k > n:
        raise BadSetting(f"k={k} is more than the {n} heads of {model.name}: lower it")
    return k


def _numbers(name: str, value: float | Sequence[float]) -> list[float]:
    numbers: list[float] = [value] if isinstance(value, int | float) else as_list(name, value)
    if not numbers:
        raise BadSetting(f"{name}= is empty: give at least one number")
    return numbers


def _identity(
    model: Model,
    fit: EditFit,
    kind: str,
    chosen: Sequence[str] | None,
    k: int | None,
    selection_l1: float,
    examples: Mapping[str, Sequence[Example]],
    demonstrations: Sequence[Example] | None,
) -> Identity:
    """What the learned edits belong to. The examples of the report are no part of it: it is made each time."""
    some = {f"{split} examples": examples[split] for split in ("train", "choose")}
    some |= {} if demonstrations is None else {"demonstrations": demonstrations}
    settings = {
        "kind": kind,
        "heads": LOFIT if chosen is None else list(chosen),
        "lofit": [k, selection_l1] if chosen is None else None,
        **{name: value for name, value in vars(fit).items() if name != "metric"},
        "metric": fit.metric.name,
    }
    return identity_of(model, some, settings)
