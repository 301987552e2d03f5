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
from typing_extensions import Unpack

from circuitdisc.checkpoints.attention_difference import AttentionDifference, ModelLike, compare_attention
from circuitdisc.checkpoints.cmap.job import CrossCall, CrossJob, CrossPatching
from circuitdisc.checkpoints.cmap.result import CrossMap, CrossModel
from circuitdisc.checkpoints.cmap.sets import groups_of
from circuitdisc.checkpoints.listing import check_same
from circuitdisc.checks import check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.engine.cross.patch import check_kinds
from circuitdisc.engine.cross.plan import DISK, MEMORY
from circuitdisc.engine.memory import parse_memory
from circuitdisc.heads.base import as_list
from circuitdisc.models.model import Model
from circuitdisc.options import from_options, of_others, takes
from circuitdisc.tasks.base import Task

Direction = Literal["tuned_into_base", "base_into_tuned", "both"]
DIRECTIONS = ("tuned_into_base", "base_into_tuned")
MakeTask = Callable[[Model], Task]


@takes(CrossPatching)
def cmap(
    base: ModelLike,
    tuned: ModelLike,
    task: Task | MakeTask,
    *,
    groups: Mapping[str, Sequence[str]] | Circuit | None = None,
    direction: Direction = "tuned_into_base",
    **options: Unpack[CrossPatching],
) -> CrossModel:
    """Patch one checkpoint's activations into another's run, head by head, in pieces and in groups.

    Args:
        base, tuned: names, folders, or loaded models. Of names only one is in memory at a time.
        task: a task, or what makes one from the first model that is loaded. All models read its clean prompts alone.
        groups: named groups of heads; or a circuit: its groups, or its heads as one.
        direction: `tuned_into_base`, `base_into_tuned`, or `both`.
        seed: of random sets and the bootstrap.
        settings: of `load_model`, for names: `dtype`, `device`.

    Raises:
        BadModel: the two do not share an architecture and a vocabulary.
        UnknownName: a metric, position, split, kind or direction is not known.
        GraphMismatch: a group names a head that the models lack.
        BadSetting: a number is out of its bounds, a model has no fast components, or the disk has too little room.
    """
    directions = DIRECTIONS if direction == "both" else (check_choice("direction", direction, (*DIRECTIONS, "both")),)
    if isinstance(groups, Circuit):
        groups = groups_of(groups)
    given: Any = options
    positions, keys, folder = given["positions"], given["keys"], given["cache_folder"]
    call = from_options(
        CrossCall,
        given,
        base=base,
        tuned=tuned,
        what=check_kinds(given["what"]),
        positions=None if positions is None else tuple(as_list("positions", positions)),
        groups={name: tuple(heads) for name, heads in (groups or {}).items()},
        keys=None if keys is None else tuple(as_list("keys", keys)),
        budget=parse_memory(given["memory"]),
        cache=check_choice("cache", given["cache"], ("auto", MEMORY, DISK)),
        folder=None if folder is None else Path(folder),
        model_settings=of_others(CrossPatching, given),
    )
    check_same([base, tuned])
    clock, maps, looks = time.perf_counter(), list[CrossMap](), dict[str, np.ndarray]()
    job, names = None, ()
    for name in directions:
        job, cross_map, names = _one_direction(call, name, task if job is None else job.task, looks)
        maps.append(cross_map)
    assert job is not None, "there is a direction"
    cost = {"forwards": job.forwards * len(maps), "seconds": round(time.perf_counter() - clock, 3)}
    return CrossModel(
        base=call.name_of("base"),
        tuned=call.name_of("tuned"),
        task=job.task.name,
        metric=job.measure.name,
        split=call.split,
        n=len(job.judged),
        positions=None if call.positions is None else tuple(map(str, call.positions)),
        maps=tuple(maps),
        attention=_attention(call, names, looks, job) if call.attention else None,
        plan=job.plan.to_dict(),
        cost=cost,
    )


def _one_direction(
    call: CrossCall, direction: str, task: Task | MakeTask, looks: dict[str, np.ndarray]
) -> tuple[CrossJob, CrossMap, tuple[str, ...]]:
    """Keep the giver's activations, let it go, and run the taker. `looks` gets the attention of models that lack in it."""
    giver, taker = ("tuned", "base") if direction == "tuned_into_base" else ("base", "tuned")
    model = call.open(giver)
    job = CrossJob(call, model, task if isinstance(task, Task) else task(model))
    with job.cache() as folder:
        given = job.keep(model, folder)
        if call.attention and giver not in looks:
            looks[giver] = job.attention(model)
        del model  # only one model in memory
        gc.collect()
        model = call.open(taker)
        cross_map = job.run(direction, model, given)
        if call.attention and taker not in looks:
            looks[taker] = job.attention(model)
        names = tuple(model.graph.heads)
    return job, cross_map, names


def _attention(call: CrossCall, names: tuple[str, ...], looks: Mapping[str, np.ndarray], job: CrossJob) -> AttentionDifference:
    labels = (call.query, job.keys, call.split, call.confidence, call.seed)
    return compare_attention(names, looks["base"], looks["tuned"], *labels, job.over)
