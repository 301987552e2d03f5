"""Training one checkpoint: Hugging Face's Trainer over the answer's tokens, with checkpoints of its own to resume from.

    FOLDER.part/trainer/checkpoint-N    weights, optimizer, random states: what a killed run goes on from
    FOLDER.part/step-N                  a checkpoint on the way, if asked for
    FOLDER                              the finished checkpoint with training.json and its step-N, renamed from FOLDER.part

Runs offline, reports to nobody. A checkpoint of either kind is a unit of the ladder's memo, registered when all its files are
on the disk. A Trainer's that is damaged is passed over for the one before it; without any, training begins again.

Shape letters: B rows, T positions, V vocabulary.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from circuitdisc.checkpoints.finetune.data import UNLEARNED, pad_rows
from circuitdisc.errors import BadFile, BadRun, BadSetting, CircuitdiscWarning
from circuitdisc.files import fresh_folder, refuse_links, remove, sync, write_json
from circuitdisc.models.load import DTYPES
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Memo
from circuitdisc.schemas import read_record

TRAINING = "training.json"
CHECKPOINTS_KEPT = 2
CHECKPOINTS_A_RUN = 10


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is trained.

    Args:
        epochs: passes over the rows.
        lr: learning rate of AdamW.
        batch_size: rows a step.
        weight_decay: of AdamW.
        schedule: of the rate, as transformers names it: `constant_with_warmup`, `linear` or `cosine`.
        warmup: steps over which the rate rises from 0.
        seed: of the order of the rows, and of dropout.
        save_steps: steps between two checkpoints that are kept; None for none.
        dtype: of the saved weights. Training itself is in float32.
        device: to train on, as torch names it.
    """

    epochs: float
    lr: float
    batch_size: int
    weight_decay: float
    schedule: str
    warmup: int
    seed: int
    save_steps: int | None = None
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Trainee:
    """What is trained, and what is saved of it.

    Args:
        module: a Hugging Face model; its parameters that require a gradient are trained.
        tokenizer: saved beside the weights; None for none.
        finish: (module, in_place) -> what is saved in its place, for example with low-rank changes merged; if not in place, the
            module goes on training.
        callbacks: of the Trainer.
        n_trained: weights that are trained; None: all that require a gradient.
    """

    module: Any
    tokenizer: Any
    finish: Callable[[Any, bool], Any] = lambda module, in_place: module
    callbacks: Sequence[TrainerCallback] = ()
    n_trained: int | None = None


@dataclass(frozen=True)
class Trained:
    """What the training of one checkpoint took (since it was resumed, if it was), and what it left.

    Args:
        steps: of the optimizer.
        examples: rows that were trained on.
        parameters: weights that were trained.
        seconds: of the training loop.
        loss: mean over the last tenth of the steps, in nats for each token of an answer.
        saved_steps: steps after which a checkpoint was kept on the way.
    """

    steps: int
    examples: int
    parameters: int
    seconds: float
    loss: float
    saved_steps: tuple[int, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Trained":
        """What the folder of a finished checkpoint says.

        Raises:
            BadFile: its training.json is missing or malformed.
        """
        return read_record(cls, folder / TRAINING, remedy="it should say how the checkpoint was trained")


class AnswerTrainer(Trainer):
    """A Trainer whose loss is the cross-entropy of the labelled positions, which are not shifted (see `training_rows`)."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = answer_loss(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the labelled positions. [B, T, V], [B, T] -> []"""
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=UNLEARNED)


class _Watch(TrainerCallback):
    """The progress bar, the losses, the checkpoints on the way, and the memo of whole ones."""

    def __init__(
        self, recipe: Recipe, part: Path, save: Callable[[Path], None], memo: Memo, label: str, progress: bool
    ) -> None:
        self.recipe, self.part, self.save, self.memo = recipe, part, save, memo
        self.label, self.progress = label, progress
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = progress_bar(state.max_steps, self.label, "step", self.progress, initial=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(1)
        every = self.recipe.save_steps
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            self.save(self.part / f"step-{state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.memo.register(_unit(checkpoint), checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def train_checkpoint(
    trainee: Trainee,
    rows: Sequence[Mapping[str, Sequence[int]]],
    folder: Path,
    recipe: Recipe,
    memo: Memo,
    *,
    label: str = "finetune",
    progress: bool = False,
) -> Trained:
    """Train a model on rows and save it, going on from where an earlier call was killed.

    Args:
        folder: of the finished checkpoint, beside the memo's journal; it must not exist.
        memo: of the ladder.

    Raises:
        BadRun: the folder cannot be written.
        BadSetting: the loss is no longer a number.
    """
    logging.disable_progress_bar()
    part = folder.with_name(folder.name + ".part")
    module, finish, tokenizer = trainee.module, trainee.finish, trainee.tokenizer
    n_trained = n_parameters(module) if trainee.n_trained is None else trainee.n_trained
    steps = math.ceil(len(rows) / recipe.batch_size) * recipe.epochs

    def save(where: Path) -> None:
        save_checkpoint(finish(module, False), tokenizer, where, recipe.dtype)

    watch = _Watch(recipe, part, save, memo, label, progress)
    try:
        with _writable(part):
            part.mkdir(parents=True, exist_ok=True)
            trainer = AnswerTrainer(
                model=module,
                args=_arguments(part / "trainer", recipe, math.ceil(steps)),
                train_dataset=list(rows),  # pyright: ignore[reportArgumentType] - any list of rows will do
                data_collator=pad_rows,
                callbacks=[*trainee.callbacks, watch],
            )
            trainer.pop_callback(PrinterCallback)
            module.train()
            outcome = trainer.train(resume_from_checkpoint=last_whole(part / "trainer", memo, label))
            module.eval()
            losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
            if not math.isfinite(losses[-1]):
                raise BadSetting(f"the loss of {label} is no longer a number: lower lr={recipe.lr:g}, or raise warmup=")
            done = finish(module, True)
            save_checkpoint(done, tokenizer, part / "final", recipe.dtype)
            seconds = round(float(outcome.metrics["train_runtime"]), 1)
            trained = Trained(int(outcome.global_step), len(rows), n_trained, seconds, float(losses[-1]), _steps(part))
            write_json(part / "final" / TRAINING, asdict(trained))
            memo.register(folder.name, part / "final")
            return _keep(part, folder, trained)
    finally:
        if watch.bar is not None:
            watch.bar.close()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Turn what a full or unwritable disk raises into a sentence; safetensors and torch have errors of their own for it.

    Raises:
        BadRun: the folder cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _NOT_WRITTEN):
            raise
        why = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadRun(f"cannot write {folder}: {why}. Free some space, then give the same command again") from error


_NOT_WRITTEN = ("PytorchStreamWriter", "inline_container", "No space left", "File too large")


def _arguments(folder: Path, recipe: Recipe, steps: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        optim="adamw_torch",
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        max_grad_norm=1.0,
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_strategy="steps",
        save_steps=max(1, steps // CHECKPOINTS_A_RUN),
        save_total_limit=CHECKPOINTS_KEPT,
        logging_strategy="steps",
        logging_steps=max(1, steps // CHECKPOINTS_A_RUN),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=recipe.device == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:  # else the Trainer spreads each step over all of them, with a batch on each
        arguments._n_gpu = 1
    return arguments


def last_whole(folder: Path, memo: Memo, label: str = "") -> str | None:
    """The Trainer's latest whole checkpoint; later ones, which a kill or the disk has damaged, are removed.

    Args:
        label: of what is trained, for the note on damaged ones.
    """
    steps = {path: int(step) for path in folder.glob("checkpoint-*") if (step := path.name.partition("-")[2]).isdecimal()}
    damaged: list[str] = []
    last = None
    for path in sorted(steps, key=lambda path: steps[path], reverse=True):
        name = _unit(path)
        why = memo.damage(name, path) if memo.has(name) else None
        if memo.has(name) and why is None:
            last = path
            break
        damaged += [f"{path.name} is damaged ({why})"] if why else []
        remove(path)
    if damaged:
        then = f"goes on from {last.name}" if last is not None else "begins again"
        warnings.warn(f"training {label} {then}: {', '.join(damaged)}", CircuitdiscWarning, stacklevel=2)
    return None if last is None else str(last)


def _unit(checkpoint: Path) -> str:
    """The name of a Trainer's checkpoint in the ladder's memo: its path in the ladder's folder."""
    return str(Path(*checkpoint.parts[-3:]))


def save_checkpoint(module: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Write a Hugging Face folder beside its place, then rename it; the module is left as it was."""
    wanted = DTYPES[dtype]
    saved = module if module.dtype == wanted else copy.deepcopy(module).to(wanted)
    with fresh_folder(folder) as beside:
        saved.config.use_cache = True
        saved.save_pretrained(beside)
        module.config.use_cache = False
        if tokenizer is not None:
            for name in ("local_files_only", "is_local"):  # where it was read from is no part of it
                tokenizer.init_kwargs.pop(name, None)
            tokenizer.save_pretrained(beside)
        for path in beside.glob("*.safetensors"):
            path.chmod(0o644)


def _steps(part: Path) -> tuple[int, ...]:
    """The steps after which a checkpoint was kept."""
    return tuple(sorted(int(step) for path in part.glob("step-*") if (step := path.name.partition("-")[2]).isdecimal()))


def finished(folder: Path, memo: Memo) -> Trained | None:
    """What a finished checkpoint says, which is put in its place if a kill has left it half-way; None if there is none.

    Raises:
        BadFile: it is damaged.
    """
    part = folder.with_name(folder.name + ".part")
    refuse_links(part)
    if folder.exists():
        remedy = f"Remove {folder}, and the same command makes that checkpoint again"
        if not memo.has(folder.name):
            raise BadFile(f"{folder} is none of this ladder's finished checkpoints. {remedy}")
        if why := memo.damage(folder.name):
            raise BadFile(f"{folder} is damaged ({why}). {remedy}")
        return Trained.read(folder)
    final = part / "final"
    if memo.knows(folder.name) and final.exists() and memo.damage(folder.name, final) is None:
        return _keep(part, folder, Trained.read(final))
    return None


def _keep(part: Path, folder: Path, trained: Trained) -> Trained:
    """Turn the folder of a running training into that of a finished checkpoint; may be done again where it was killed."""
    final = part / "final"
    for step in trained.saved_steps:
        if (part / f"step-{step}").exists():
            (part / f"step-{step}").replace(final / f"step-{step}")
    sync(final)
    final.replace(folder)
    sync(folder.parent)
    remove(part)
    return trained


def n_parameters(module: torch.nn.Module) -> int:
    """Weights that a gradient may change, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
