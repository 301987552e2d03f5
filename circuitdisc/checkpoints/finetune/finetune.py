"""A ladder of checkpoints: one base fine-tuned on growing fractions of one pool of a task's examples.

1. Draw the pool; no prompt of it is held out anywhere (see `data.py`).
2. For each fraction: start from the base, train on the first part of the pool, save a folder. Rungs share nothing but the base
   and the pool, of which a larger fraction holds the smaller ones.
3. With heads alone (Precise SFT): beside each rung, as a control, one of as many random heads.
4. Measure all of them on held-out examples and on other tasks.

    OUT/ladder.json        the rungs in order, every setting, and the figures
    OUT/journal.jsonl      what is finished: the memo of the ladder
    OUT/<rung>/            a Hugging Face folder, with training.json, and step-N where steps were asked for

The same call goes on where one was killed: finished rungs are kept, the one at work resumes from its last checkpoint.

Source: the CS224N study of the Transitive Property Problem (10, 30, 50 % for 3, 3, 20 epochs; AdamW 5e-5, batches of 64, loss
on the answer's tokens); Zhang et al., ICML 2024 (Precise SFT).
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from circuitdisc.checkpoints.baselines import Baselines, baselines
from circuitdisc.checkpoints.evaluation_sets import check_others
from circuitdisc.checkpoints.finetune.data import Pool, Reader, draw_pool, training_rows
from circuitdisc.checkpoints.finetune.heads_only import HeadsOnly
from circuitdisc.checkpoints.finetune.loop import Recipe, Trained, Trainee, finished, train_checkpoint
from circuitdisc.checkpoints.finetune.lora import merged, with_lora
from circuitdisc.checkpoints.finetune.rungs import SCHEDULES, Rung, Training, check_settings, make_rungs
from circuitdisc.checkpoints.listing import LADDER, LADDER_FORMAT
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.selfcheck import is_the_module
from circuitdisc.errors import BadModel, BadRun
from circuitdisc.files import write_json
from circuitdisc.heads.base import head_mask
from circuitdisc.identity import Identity, identity_of, package_version
from circuitdisc.models.load import read_model
from circuitdisc.options import from_options, takes
from circuitdisc.results import Result, plain
from circuitdisc.runs import Memo, check_free, versions, workspace
from circuitdisc.schemas import LadderFile, read_record
from circuitdisc.shipped import shipped_models
from circuitdisc.tasks.base import Task

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, repr=False)
class TrainedLadder(Result):
    """A base and the checkpoints made of it.

    Args:
        folder: that holds them.
        base: as `load_model` takes it.
        rungs: in order.
        settings: everything that was asked for.
        figures: how all do on held-out examples; None if that was not asked for.
        identity: the base's weights and the pool that the rungs are made of.
    """

    FORMAT = LADDER_FORMAT
    KEYS = ("base", "rungs", "settings", "identity", "versions", "figures")

    folder: Path
    base: str
    rungs: tuple[Rung, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    figures: Baselines | None = None
    identity: Identity = field(default_factory=Identity)

    @property
    def versions(self) -> dict[str, str]:
        """Of this package and those that it works with."""
        return versions()

    @property
    def checkpoints(self) -> list[str]:
        """The base and the rungs, in order, as `load_model` takes them."""
        return [self.base, *(str(self.folder / rung.name) for rung in self.rungs)]


@takes(Training)
def finetune(
    base: str | Path,
    task: Mapping[str, Any] | Task,
    out: str | Path,
    *,
    figures: bool = True,
    others: Sequence[str] | None = None,
    **options: Unpack[Training],
) -> TrainedLadder:
    """Fine-tune a base checkpoint on a task, on growing fractions of one pool of examples.

    Args:
        base: a shipped name, a folder or a Hugging Face name.
        task: settings of a task (`{"name": "entity_tracking", "boxes": 7, "n_heldout": 500}`), or a task, whose train split is
            then the pool.
        out: folder of the ladder. One that a killed call has left is gone on with, if the settings are the same.
        figures: measure the base and all rungs at the end.
        others: tasks on which forgetting is measured; None: all that the tokenizer can read; see `baselines`.
        memory: budget for activations where figures are measured.

    Raises:
        CircuitdiscError: bad input; nothing is left behind.
        BadRun: the folder holds something else, or another process writes in it; or the base's weights, the pool or the
            settings have changed since the ladder in it was begun.
    """
    folder = Path(out)
    settings: dict[str, Any] = {**options}
    memory, progress = (settings.pop(name) for name in ("memory", "progress"))
    check_settings(settings)
    parse_memory(memory)
    check_others(others)
    if not (folder / JOURNAL).is_file():
        _check_no_ladder(folder)
        check_free(folder)
    with workspace(folder, lambda: (folder / LADDER).exists()):
        plan = _plan(base, task, settings)
        settings |= {"task": plan.task_settings, "n_pool": len(plan.pool.examples)}
        ladder = TrainedLadder(folder, plan.base, plan.rungs, plain({"base": plan.base, **settings}), identity=plan.identity)
        identity = plan.identity
        with closing(Memo(folder / JOURNAL, replace(identity, settings={**ladder.settings, **identity.settings}))) as memo:
            write_json(folder / LADDER, ladder.to_dict())
            trained = [replace(rung, trained=_train(rung, plan, settings, folder, memo, progress)) for rung in ladder.rungs]
        ladder = replace(ladder, rungs=tuple(trained))
        if figures:
            chosen: dict[str, Any] = {"others": others, "seed": settings["seed"], "memory": memory, "progress": progress}
            table = baselines(ladder.checkpoints, plan.judged, model_settings={"device": settings["device"]}, **chosen)
            ladder = replace(ladder, figures=table)
        write_json(folder / LADDER, ladder.to_dict())
        return ladder


# --- what will be done ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    base: str
    judged: Mapping[str, Any] | Task
    task_settings: dict[str, Any]
    pool: Pool
    rungs: tuple[Rung, ...]
    n_ctx: int
    identity: Identity


def _plan(base: str | Path, task: Mapping[str, Any] | Task, settings: Mapping[str, Any]) -> _Plan:
    """The pool and the rungs; the base is loaded once, for its tokenizer and its graph."""
    model = read_model(str(base), accepts=is_the_module)
    if not hasattr(getattr(model.module, "config", None), "model_type"):
        raise BadModel(f"{model.name} is in TransformerLens weight names: only Hugging Face models can be fine-tuned")
    judged: dict[str, Any] | Task = task if isinstance(task, Task) else {"seed": settings["seed"], **task}
    pool = draw_pool(Reader.of(model), judged, settings["n_pool"])
    described = {"name": judged.name, **judged.settings} if isinstance(judged, Task) else judged
    path = Path(base).expanduser()
    name = str(path.resolve()) if path.is_dir() and str(base) not in shipped_models() else str(base)
    rungs = make_rungs(model, settings)
    heads = {"heads": {rung.name: list(rung.heads) for rung in rungs}}
    return _Plan(
        name, judged, described, pool, tuple(rungs), model.n_ctx, identity_of(model, {"pool of examples": pool.examples}, heads)
    )


def _check_no_ladder(folder: Path) -> None:
    """A folder without a journal holds no ladder that another version has begun.

    Raises:
        BadRun: it does.
    """
    if (folder / LADDER).is_file():
        version = read_record(LadderFile, folder / LADDER).versions.get("circuitdisc", "unknown")[:40]
        raise BadRun(
            f"{folder} holds a ladder of circuitdisc {version}, which kept no journal: other commands take it as it is, but "
            f"circuitdisc {version} alone goes on with it (this is {package_version()}); choose another folder with out="
        )


# --- one rung -------------------------------------------------------------------------------------------------------------


def _train(rung: Rung, plan: _Plan, settings: Mapping[str, Any], folder: Path, memo: Memo, progress: bool) -> Trained:
    """Train one rung from the base; one that is finished is read."""
    done = folder / rung.name
    if (trained := finished(done, memo)) is not None:
        return trained
    n_rows = max(1, round(rung.fraction * len(plan.pool.examples)))
    rows = training_rows(plan.pool.examples[:n_rows], plan.n_ctx, settings["seed"])
    model = read_model(plan.base, device=settings["device"], accepts=is_the_module)
    module: Any = model.module.requires_grad_(True)
    extra: dict[str, Any] = {}
    if rung.heads:
        only = HeadsOnly(module, head_mask(model.graph, rung.heads))
        extra = {"callbacks": [only], "n_trained": only.n_trained}
    elif settings["method"] == "lora":
        names = ("rank", "alpha", "seed")
        module = with_lora(module, targets=settings["lora_targets"], **{name: settings[name] for name in names})
        extra = {"finish": merged}
    recipe = from_options(Recipe, settings, epochs=rung.epochs, schedule=SCHEDULES[settings["schedule"]])
    trainee = Trainee(module, model.tokenizer, **extra)
    return train_checkpoint(trainee, rows, done, recipe, memo, label=rung.name, progress=progress)
