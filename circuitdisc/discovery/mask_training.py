"""What the algorithms that learn a mask share: the loop of training, its journal and its resumption.

A step draws a mask, runs it on one mini-batch, and moves the mask's parameters against the gradient of

    loss = -metric (or KL to the full model) + penalty

by Adam. All that is random is drawn from (seed, step), so that nothing of a generator has to be kept: the state of a training
is its parameters and Adam's two moments. Every `SAVE_EVERY` steps these go into a file beside the journal, named by its step,
and the journal gets a line with the losses and a mark; a killed run goes on from there, bit for bit. Without a folder nothing
is kept.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from circuitdisc.ablation import Ablation
from circuitdisc.checks import BATCH, RATE, STEPS, check_choice
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.selection import Sizing
from circuitdisc.engine.masked_run import MaskedRuns
from circuitdisc.errors import BadFile, BadSetting
from circuitdisc.files import read_arrays, write_arrays
from circuitdisc.graph import ComputationGraph
from circuitdisc.identity import Identity
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task

SAVE_EVERY = 50
LOSSES = ("kl", "metric")
STEP, IDENTITY = "step of the search", "identity of the search"  # beside the parameters of a state
ORDER, NOISE = 0, 1  # what is drawn: the order of mini-batches, or a mask


class MaskTraining(TypedDict, total=False):
    """How a mask is trained."""

    steps: Annotated[int, Option(600, "steps of training.", STEPS)]
    learning_rate: Annotated[float, Option(0.1, "of the masks' logits.", RATE)]
    loss: Annotated[
        str,
        Option("kl", "`kl` to the full model, or `metric`: raise the metric of the search, above the full model's if it can."),
    ]
    batch: Annotated[int, Option(10, "examples in a step.", BATCH)]


class SizedMaskTraining(Sizing, MaskTraining, total=False):
    """The same for a circuit of a given size."""


class Masks(Protocol):
    """A mask with parameters.

    Args:
        parameters: by name, as leaves.
    """

    parameters: dict[str, Tensor]

    def groups(self) -> list[dict[str, Any]]:
        """The parameters as Adam takes them, with their learning rates."""
        ...

    def draw(self, generator: np.random.Generator) -> Float[Tensor, "R S"]:
        """A mask to train on, of edges or, with one row, of senders."""
        ...

    def penalty(self, step: int) -> Tensor:
        """What is added to the loss in this step, with gradients."""
        ...

    def n_edges(self) -> float:
        """How many edges the mask keeps on average, for the progress bar and the trace."""
        ...


def prepare_runs(
    model: Model, task: Task, ablation: Ablation, context: SearchContext, *, name: str, options: Mapping[str, Any]
) -> MaskedRuns:
    """The train split, ready for masked runs.

    Args:
        options: of `MaskTraining`.

    Raises:
        UnknownName: `loss` is not known.
        BadSetting: `batch` is no whole number, or masks are not possible here.
    """
    check_choice("loss", options["loss"], LOSSES)
    metric = get_metric("kl" if options["loss"] == "kl" else context.metric)
    return MaskedRuns(model, ablation, task.train, metric, batch=options["batch"], memory=context.memory, name=name)


def train(masks: Masks, runs: MaskedRuns, context: SearchContext, *, name: str, steps: int) -> None:
    """Train a mask; the lines of the journal are its trace: step, mean loss without penalty since the last line, edges.

    Raises:
        BadSetting: the loss stops being finite.
        BadFile: the state that the journal goes on from is missing or damaged.
    """
    optimizer = torch.optim.Adam(masks.groups(), betas=(0.9, 0.999))
    done = _resume(masks, optimizer, context)
    bar = progress_bar(steps, name, "step", context.progress, done)
    losses: list[float] = []
    for step in range(done, steps):
        losses.append(_step(masks, runs, optimizer, context.seed, step))
        if not np.isfinite(losses[-1]):
            raise BadSetting(f"the loss of algorithm '{name}' is {losses[-1]} in step {step}: lower learning_rate")
        bar.update(1)
        bar.set_postfix(loss=f"{losses[-1]:.4g}", edges=f"{masks.n_edges():.0f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            line = {"step": step + 1, "loss": float(np.mean(losses)), "edges": masks.n_edges()}
            _save(masks, optimizer, context, line)
            losses = []
    bar.close()


def _step(masks: Masks, runs: MaskedRuns, optimizer: torch.optim.Adam, seed: int, step: int) -> float:
    """One step; the loss without the penalty."""
    n_batches = len(runs.batches)
    order = np.random.default_rng([seed, ORDER, step // n_batches]).permutation(n_batches)
    mask = masks.draw(np.random.default_rng([seed, NOISE, step]))
    measured = runs.measure(int(order[step % n_batches]), mask)
    optimizer.zero_grad()
    mask.backward(-measured.gradient)
    penalty = masks.penalty(step)
    if penalty.requires_grad:
        penalty.backward()
    optimizer.step()
    return -measured.value


# --- the state beside the journal ----------------------------------------------------------------------------------------


def _state_path(context: SearchContext, step: int) -> Path | None:
    path = context.journal.path
    return None if path is None else path.with_name(f"mask_state_{step}.npz")


def _belongs_to(context: SearchContext) -> str:
    """The journal's identity in a few characters."""
    identity = Identity.from_dict(context.journal.identity)
    return "" if identity is None else identity.digest


def _save(masks: Masks, optimizer: torch.optim.Adam, context: SearchContext, line: dict[str, Any]) -> None:
    """Write the state, then the journal's line and mark, then let go of the states before it: one is always whole."""
    path = _state_path(context, line["step"])
    if path is not None:
        arrays = {}
        for name, parameter in masks.parameters.items():
            moments = optimizer.state[parameter]
            for part, values in (("", parameter), (".mean", moments["exp_avg"]), (".square", moments["exp_avg_sq"])):
                arrays[name + part] = values.detach().cpu().numpy()
        arrays |= {STEP: np.array(line["step"]), IDENTITY: np.array(_belongs_to(context))}
        write_arrays(path, arrays)
    context.journal.write(**line)
    context.journal.mark(f"step {line['step']}")
    if path is not None:
        for other in path.parent.glob("mask_state_*.npz"):
            if other != path:
                with suppress(OSError):
                    other.unlink()


def _resume(masks: Masks, optimizer: torch.optim.Adam, context: SearchContext) -> int:
    """Take over the state of the journal's last mark; returns how many steps are done."""
    lines = context.journal.decisions
    if not lines:
        return 0
    step = int(lines[-1]["step"])
    path = _state_path(context, step)
    if path is None:
        raise BadFile("a journal in memory holds no state of a mask: start with an empty one")
    arrays = read_arrays(path)
    if STEP in arrays and arrays[STEP] != step:
        raise BadFile(f"{path} is the state of step {arrays[STEP]}, and not that of step {step}: start the search again")
    if IDENTITY in arrays and str(arrays[IDENTITY]) != _belongs_to(context):
        raise BadFile(f"{path} is the state of another search than the journal beside it: start the search again")
    with torch.no_grad():
        for name, parameter in masks.parameters.items():
            try:
                values, mean, square = (
                    torch.from_numpy(arrays[name + part]).to(parameter) for part in ("", ".mean", ".square")
                )
                parameter.copy_(values)
            except (KeyError, RuntimeError) as error:
                raise BadFile(f"{path} is not the state of this search: {name} is missing or of another shape") from error
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square}
    return step


# --- settings and the graph ----------------------------------------------------------------------------------------------


def is_fixed(graph: ComputationGraph) -> list[bool]:
    """True for the senders that a mask on nodes always keeps: the embedding's. Length S."""
    return [node.kind not in ("head", "mlp") for node in graph.senders]


def mask_dtype(runs: MaskedRuns) -> torch.dtype:
    """Of the parameters: float32 at least."""
    return torch.promote_types(runs.cut.dtype, torch.float32)


def to_scores(graph: ComputationGraph, scores: Float[Tensor, "R S"]) -> Float[np.ndarray, "R S"]:
    """As a discovery holds them: float64, NaN where the graph has no edge."""
    return np.where(graph.edge_mask, scores.detach().cpu().double().numpy(), np.nan)
