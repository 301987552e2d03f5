"""Where a command's figures go as they come, beside its files: TensorBoard, Weights & Biases, MLflow, or another package's.

    circuitdisc discover model=gpt2 task=ioi log=tensorboard       this command; CIRCUITDISC_LOG=tensorboard: every one

What a bar shows beside its share (edges kept, the metric, a loss) is logged as it changes, and the result's scores at the end.
No result depends on it: a logger that fails is left with a note, and the command goes on.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from circuitdisc.errors import BadSetting, CircuitdiscWarning
from circuitdisc.plugins import Registry, Unfit

VARIABLE, PROJECT, NONE = "CIRCUITDISC_LOG", "circuitdisc", "null"


class Tracker(Protocol):
    """What a logger does: these three, in this order."""

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        """A command begins.

        Args:
            name: unlike that of any other command.
            settings: what was typed.
        """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures by name.

        Args:
            step: counts up.
        """

    def finish(self) -> None:
        """The command has ended, well or not."""


class TensorBoard:
    """Writes event files below runs/tensorboard/."""

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        self.writer = import_module("torch.utils.tensorboard").SummaryWriter(str(Path("runs", "tensorboard", name)))
        self.writer.add_text("settings", "  \n".join(f"{key}={value}" for key, value in settings.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def finish(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project `circuitdisc`; where it goes is wandb's own setting (WANDB_MODE=offline: a folder)."""

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        self.run = import_module("wandb").init(project=PROJECT, name=name, config=dict(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the experiment `circuitdisc`; where it goes is MLflow's own setting (MLFLOW_TRACKING_URI)."""

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        self.mlflow = import_module("mlflow")
        self.mlflow.set_experiment(PROJECT)
        self.mlflow.start_run(run_name=name)
        self.mlflow.log_params(dict(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        allowed = {re.sub(r"[^\w\-./ ]", "_", key): value for key, value in values.items()}
        self.mlflow.log_metrics(allowed, step=step)

    def finish(self) -> None:
        self.mlflow.end_run()


@dataclass(frozen=True)
class Logger:
    """A logger by name.

    Args:
        make: gives a new one.
        needs: the package that it imports when it starts.
    """

    make: Callable[[], Tracker]
    summary: str = ""
    needs: str = ""


def _adopt(name: str, declared: Any) -> Logger:
    if not all(callable(getattr(declared, method, None)) for method in ("start", "log", "finish")):
        raise Unfit("has not the three methods start, log and finish")
    return Logger(declared if isinstance(declared, type) else lambda: declared, str(declared.__doc__ or "").partition("\n")[0])


REGISTRY = Registry(
    "logger",
    {
        "tensorboard": Logger(TensorBoard, "event files below runs/tensorboard/", "tensorboard"),
        "wandb": Logger(WeightsAndBiases, "Weights & Biases", "wandb"),
        "mlflow": Logger(MLflow, "MLflow", "mlflow"),
    },
    _adopt,
    "a class, or an object, with the methods start, log and finish of circuitdisc.tracking.Tracker",
)


@dataclass
class _Tracked:
    """The logger of the command at work, until it fails."""

    name: str
    tracker: Tracker | None
    step: int = 0

    def call(self, method: str, *args: Any) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, method)(*args)
        except Exception as error:  # whatever another package does, the command's own work goes on
            tracker, self.tracker = self.tracker, None
            if method != "finish":
                with suppress(Exception):  # it has failed already
                    tracker.finish()
            words = " ".join(str(error).split())
            note = f"nothing more is logged: log={self.name} failed ({type(error).__name__}: {words})"
            warnings.warn(note, CircuitdiscWarning, stacklevel=2)


_tracked: ContextVar[_Tracked | None] = ContextVar("tracked", default=None)


def log_figures(values: Mapping[str, Any], prefix: str = "") -> None:
    """Log what of these is a number, if the command at work has a logger."""
    tracked = _tracked.get()
    if tracked is None:
        return
    numbers = {f"{prefix}{key}": float(value) for key, value in values.items() if _is_number(value)}
    if numbers:
        tracked.call("log", numbers, tracked.step)
        tracked.step += 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def log_result(result: Any) -> None:
    """Log the scores of a command's result, `heldout/faithfulness`; of one without scores its numbers."""
    if not isinstance(result, Mapping):
        return
    scores = [score for score in result.get("scores") or () if isinstance(score, Mapping)]
    log_figures({f"{score.get('split')}/{score.get('name')}": score.get("value") for score in scores} or result)


@contextmanager
def tracked(name: str | None, command: str, words: Sequence[str], runs_others: bool = False) -> Iterator[None]:
    """Have the figures of a command logged; those of a command within it are logged as its own.

    Args:
        name: of the logger; None: that of CIRCUITDISC_LOG, if it is set; `null`: none, whatever is set. Cells of the command,
            in other processes, too, have the same.
        command: what runs.
        words: what was typed behind it.
        runs_others: it runs commands that are logged, each by itself, and has no figures of its own.

    Raises:
        UnknownName: there is no such logger.
        BadSetting: its package is not installed.
    """
    name = os.environ.get(VARIABLE, "") if name is None else name
    name = "" if name == NONE else name
    current = _Tracked(name, _made(name)) if name and _tracked.get() is None else None
    with _variable(name):
        if current is None or runs_others:
            yield
            return
        settings = {key: value for key, equals, value in (word.partition("=") for word in words) if equals}
        title = f"{command.replace(' ', '-')}_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        token = _tracked.set(current)
        try:
            current.call("start", title, settings)
            yield
        finally:
            current.call("finish")
            _tracked.reset(token)


def _made(name: str) -> Tracker:
    logger = REGISTRY.get(name)
    if logger.needs:
        try:
            import_module(logger.needs)
        except ImportError as error:
            raise BadSetting(f"log={name} needs a package that is not installed: pip install {logger.needs}") from error
    return logger.make()


@contextmanager
def _variable(name: str) -> Iterator[None]:
    """CIRCUITDISC_LOG has this value, for other processes, too."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
