"""What the algorithms that learn a mask share: the loop of training, its journal and its resumption.

A step draws a mask, runs it on one mini-batch, and moves the mask's parameters against the gradient of

    loss = -metric (or KL to the full model) + penalty

by Adam. All that is random is drawn from (seed, step), so that nothing of a generator has to be kept: the state of a training
is its parameters and Adam's two moments. Every `SAVE_EVERY` steps these are a unit of the search's memo, a file named by its
step, and the journal gets a line with the losses; a killed run goes on from there, bit for bit. Without a folder nothing is
kept.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from typing_extensions import TypedDict

from circuitdisc.ablation import Ablation
from circuitdisc.checks import BATCH, RATE, STEPS, check_choice
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.ranking import RANKINGS, ascending, edge_ranking
from circuitdisc.discovery.selection import Sizing
from circuitdisc.engine.masked_run import MaskedRuns
from circuitdisc.errors import BadFile, BadSetting
from circuitdisc.files import ARRAYS_BYTES, read_bytes, remove, write_bytes
from circuitdisc.graph import ComputationGraph
from circuitdisc.identity import Identity, package_version
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Memo
from circuitdisc.tasks.base import Task

SAVE_EVERY = 50
LOSSES = ("kl", "metric")
STATE = "mask_state_{}.safetensors"  # of a step
PARTS = ("", ".mean", ".square")  # of a state, for each parameter: its values, and Adam's moments
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

    start: Annotated[
        str | None,
        Option(
            None,
            "an algorithm, as `eap_ig`, whose scores the masks begin with: the larger an edge's |score|, the likelier it is "
            "kept at first. None: all begin alike.",
        ),
    ]


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


def head_start(
    start: str | None, model: Model, task: Task, ablation: Ablation, context: SearchContext, runs: MaskedRuns
) -> Float[Tensor, "R S"]:
    """How far below the others each edge's mask begins: by the rank of its |score|, evenly from -1 to 0; 0 without a start.

    Ranks and not scores, whose few large values would leave all other masks where they are.

    Source: masks warm-started from attribution, arXiv 2510.06811 (there from EAP-IG); by ranks is ours.

    Raises:
        UnknownName: `start` is no ranking.
        BadSetting: it cannot be had for this metric, model or ablation.
    """
    graph = model.graph
    places = torch.zeros(graph.edge_mask.shape, dtype=mask_dtype(runs))
    if start is None:
        return places
    check_choice("start", start, RANKINGS)
    scores, cost = edge_ranking(start, model, task, ablation, context, "start")
    places.view(-1)[torch.from_numpy(ascending(graph, scores))] = torch.linspace(-1, 0, graph.n_edges, dtype=places.dtype)
    runs.cost.add(cost)
    return places


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
        bar.set_postfix(loss=float(losses[-1]), edges=round(masks.n_edges()), refresh=False)
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


def _save(masks: Masks, optimizer: torch.optim.Adam, context: SearchContext, line: dict[str, Any]) -> None:
    """Write the state, then the journal's line and mark, then let go of the states before it: one is always whole."""
    memo, name = Memo(context.journal), STATE.format(line["step"])
    path = memo.path(name)
    if path is None:
        context.journal.write(**line)
        context.journal.mark(name)
        return
    tensors = {}
    for parameter, values in masks.parameters.items():
        moments = optimizer.state[values]
        for part, tensor in zip(PARTS, (values, moments["exp_avg"], moments["exp_avg_sq"]), strict=True):
            tensors[parameter + part] = tensor.detach().cpu().contiguous()
    write_bytes(path, save(tensors))
    context.journal.write(**line)
    memo.register(name)
    for other in path.parent.glob(STATE.format("*")):
        if other != path:
            remove(other)


def _resume(masks: Masks, optimizer: torch.optim.Adam, context: SearchContext) -> int:
    """Take over the state of the journal's last mark; returns how many steps are done."""
    lines = context.journal.decisions
    if not lines:
        return 0
    step = int(lines[-1]["step"])
    memo, name = Memo(context.journal), STATE.format(step)
    path = memo.path(name)
    if path is None:
        raise BadFile("a journal in memory holds no state of a mask: start with an empty one")
    if (older := path.with_suffix(".npz")).exists():
        raise BadFile(
            f"{older} is the state of a search that an older circuitdisc began ({_version(context)}), which alone goes on with "
            f"it (this is {package_version()}): go on there, or start the search again"
        )
    why = memo.damage(name) if memo.has(name) else "it is missing"
    if why:
        raise BadFile(f"{path} is not the state of step {step} of this search ({why}): start the search again")
    try:
        state = load(read_bytes(path, ARRAYS_BYTES))
        for parameter, values in masks.parameters.items():
            tensor, mean, square = (state[parameter + part].to(values) for part in PARTS)
            with torch.no_grad():
                values.copy_(tensor)
            optimizer.state[values] = {"step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square}
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise BadFile(f"{path} is not the state of this search: {str(error)[:80]} is missing or of another shape") from error
    return step


def _version(context: SearchContext) -> str:
    begun = Identity.from_dict(context.journal.identity)
    return "its version is not known" if begun is None else begun.version


# --- settings and the graph ----------------------------------------------------------------------------------------------


def is_fixed(graph: ComputationGraph) -> list[bool]:
    """True for the senders that a mask on nodes always keeps: the embedding's. Length S."""
    return [node.kind not in ("head", "mlp") for node in graph.senders]


def mask_dtype(runs: MaskedRuns) -> torch.dtype:
    """Of the parameters: float32 at least."""
    return torch.promote_types(runs.components.dtype, torch.float32)


def to_scores(graph: ComputationGraph, scores: Float[Tensor, "R S"]) -> Float[np.ndarray, "R S"]:
    """As a discovery holds them: float64, NaN where the graph has no edge."""
    return np.where(graph.edge_mask, scores.detach().cpu().double().numpy(), np.nan)
