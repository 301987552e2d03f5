"""Cross-model activation patching (CMAP): parts of one checkpoint's run put into another's, on the same prompts.

1. The giver runs, and its activations are kept: in memory, or on disk when they do not fit. It is then let go.
2. The taker runs, each time with one part of the giver's activations in place of its own; everything else stays its own.
3. Patch score = (m(patched) - m(taker)) / (m(giver) - m(taker)), of means: the share of the gap between the models closed.

With nothing patched the run is the taker, with everything (see `engine/cross/patch.py`) it is the giver, exactly.

Source: Prakash et al. 2024, "Fine-Tuning Enhances Existing Mechanisms" (https://arxiv.org/abs/2402.14811, CMAP).
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from circuitdisc.checkpoints.attention_difference import AttentionDifference, ModelLike, compare_attention
from circuitdisc.checkpoints.cmap.job import Call, Job
from circuitdisc.checkpoints.cmap.result import CrossMap, CrossModel
from circuitdisc.checkpoints.cmap.sets import groups_of
from circuitdisc.checkpoints.listing import check_same
from circuitdisc.checks import CONFIDENCE, N_RANDOM, SEED, Whole, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.engine.cross.patch import check_kinds
from circuitdisc.engine.cross.plan import DISK, MEMORY
from circuitdisc.engine.memory import parse_memory
from circuitdisc.heads.base import as_list
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Task

Direction = Literal["tuned_into_base", "base_into_tuned", "both"]
DIRECTIONS = ("tuned_into_base", "base_into_tuned")
MakeTask = Callable[[Model], Task]


@bounded(top=Whole(0, 10_000), steps=Whole(0, 100_000, many=True), n_random=N_RANDOM, confidence=CONFIDENCE, seed=SEED)
def cmap(
    base: ModelLike,
    tuned: ModelLike,
    task: Task | MakeTask,
    *,
    what: str | Sequence[str] = ("output", "value"),
    positions: str | int | Sequence[str | int] | None = None,
    groups: Mapping[str, Sequence[str]] | Circuit | None = None,
    direction: Direction = "tuned_into_base",
    parts: bool = True,
    top: int = 5,
    grow: bool = True,
    steps: int | Sequence[int] | None = None,
    n_random: int = 20,
    metric: str | Metric | None = None,
    split: str = "heldout",
    attention: bool = True,
    query: str | int = "end",
    keys: str | int | Sequence[str | int] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    memory: str | int = "4GiB",
    cache: Literal["auto", "memory", "disk"] = "auto",
    cache_folder: str | Path | None = None,
    progress: bool = False,
    **model_settings: Any,
) -> CrossModel:
    """Patch one checkpoint's activations into another's run, head by head, in pieces and in groups.

    Args:
        base, tuned: names, folders, or loaded models. Of names only one is in memory at a time.
        task: a task, or what makes one from the first model that is loaded. All models read its clean prompts alone.
        what: parts of heads: `output`, `value`, `query`, `key`, `pattern`. Pairs and the growing set are of the first.
        positions: where activations are taken over: a role of the task, `end`, ..., or several; None: at all tokens.
        groups: named groups of heads; or a circuit: its groups, or its heads as one.
        direction: `tuned_into_base`, `base_into_tuned`, or `both`.
        parts: also the embedding, MLPs, residual stream, attention biases, readout, and everything.
        top: how many of the best heads are tried two by two; 0 for none.
        grow: also patch more and more heads, the best on the train split first.
        steps: points of that curve, as in `knockout_curve`.
        n_random: random sets beside every group, and random orders beside the curve.
        metric: None takes the task's own.
        split: the examples that judge: `heldout` or `train`. Heads are always ranked on the train split.
        attention: measure both models' attention from `query` to `keys` (None: `first` and the task's roles).
        confidence: coverage of the intervals.
        seed: of random sets and the bootstrap.
        memory: budget for activations, as `4GiB`.
        cache: where the giver's activations are kept; `auto`: in memory if half of the budget holds them.
        cache_folder: where a folder for them is made, and removed at the end; None: where temporary files go.
        progress: show progress bars.
        model_settings: of `load_model`, for names: `dtype`, `device`.

    Raises:
        BadModel: the two do not share an architecture and a vocabulary.
        UnknownName: a metric, position, split, kind or direction is not known.
        GraphMismatch: a group names a head that the models lack.
        BadSetting: a number is out of its bounds, a model has no fast components, or the disk has too little room.
    """
    directions = DIRECTIONS if direction == "both" else (check_choice("direction", direction, (*DIRECTIONS, "both")),)
    if isinstance(groups, Circuit):
        groups = groups_of(groups)
    call = Call(
        base=base,
        tuned=tuned,
        what=check_kinds(what),
        positions=None if positions is None else tuple(as_list("positions", positions)),
        groups={name: tuple(heads) for name, heads in (groups or {}).items()},
        parts=parts,
        top=top,
        steps=steps,
        grow=grow,
        n_random=n_random,
        metric=metric,
        split=split,
        query=query,
        keys=None if keys is None else tuple(as_list("keys", keys)),
        attention=attention,
        confidence=confidence,
        seed=seed,
        budget=parse_memory(memory),
        cache=check_choice("cache", cache, ("auto", MEMORY, DISK)),
        folder=None if cache_folder is None else Path(cache_folder),
        progress=progress,
        model_settings=model_settings,
    )
    check_same([one if isinstance(one, Model) else str(one) for one in (base, tuned)])
    clock, maps, looks = time.perf_counter(), list[CrossMap](), dict[str, np.ndarray]()
    job, names = None, ()
    for name in directions:
        job, found, names = _one_direction(call, name, task if job is None else job.task, looks)
        maps.append(found)
    assert job is not None, "there is a direction"
    cost = {"forwards": job.forwards * len(maps), "seconds": round(time.perf_counter() - clock, 3)}
    return CrossModel(
        base=call.name_of("base"),
        tuned=call.name_of("tuned"),
        task=job.task.name,
        metric=job.measure.name,
        split=split,
        n=len(job.judged),
        positions=None if call.positions is None else tuple(map(str, call.positions)),
        maps=tuple(maps),
        attention=_attention(call, names, looks, job) if attention else None,
        plan=job.plan.to_dict(),
        cost=cost,
    )


def _one_direction(
    call: Call, direction: str, task: Task | MakeTask, looks: dict[str, np.ndarray]
) -> tuple[Job, CrossMap, tuple[str, ...]]:
    """Keep the giver's activations, let it go, and run the taker. `looks` gets the attention of models that lack in it."""
    giver, taker = ("tuned", "base") if direction == "tuned_into_base" else ("base", "tuned")
    model = call.open(giver)
    job = Job(call, model, task if isinstance(task, Task) else task(model))
    with job.cache() as folder:
        given = job.keep(model, folder)
        if call.attention and giver not in looks:
            looks[giver] = job.attention(model)
        del model  # only one model in memory
        gc.collect()
        model = call.open(taker)
        found = job.run(direction, model, given)
        if call.attention and taker not in looks:
            looks[taker] = job.attention(model)
        names = tuple(model.graph.heads)
    return job, found, names


def _attention(call: Call, names: tuple[str, ...], looks: Mapping[str, np.ndarray], job: Job) -> AttentionDifference:
    labels = (call.query, job.keys, call.split, call.confidence, call.seed)
    return compare_attention(names, looks["base"], looks["tuned"], *labels, job.over)
