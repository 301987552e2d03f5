"""Path patching as a plain call: what reaches some receivers from each sender alone, and what that does to the metric.

    effects = path_patch(model, task, "heads", ["logits"])                             # direct effects, layer x head
    effects = path_patch(model, task, "heads", ["a9.h9<q>", "a9.h6<q>"], receiver_positions="end")

Direction: the clean run is patched with what the ablation says (under `resample`: with the sender's value on the corrupted
prompt), so that a path which the answer rests on has a negative effect.

Shape letters: S senders, B examples, T positions, L layers, H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm
from typing_extensions import TypedDict, Unpack

from circuitdisc.ablation import get_ablation
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.evaluate import n_logits, of_columns
from circuitdisc.engine.measuring import Ablating
from circuitdisc.engine.memory import COPIES_OF_LOGITS, rows_in, storage_bytes
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.engine.path_run import PathRun, PathTarget, Rerun
from circuitdisc.engine.ranks import gathered
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph, Node
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, Working, takes
from circuitdisc.progress import progress_bar
from circuitdisc.results import Row, Shown, plain_rows
from circuitdisc.tasks.base import PromptBatch, Task
from circuitdisc.tasks.measured import metric_for

Positions = str | int | Sequence[str | int]
ALL = "all"


@dataclass(frozen=True)
class PathEffects(Shown):
    """What patching the paths from each sender into the receivers does to the metric.

    Args:
        graph: the model's graph.
        receivers: names of the receivers.
        senders: names of the senders. Length n.
        clean: the clean run's metric, example by example. [B]
        patched: the metric with a sender's paths patched; NaN for a sender that comes after every receiver. [n, B]
        cost: what it took.
    """

    graph: ComputationGraph
    receivers: tuple[str, ...]
    senders: tuple[str, ...]
    clean: Float[np.ndarray, "B"]
    patched: Float[np.ndarray, "n B"]
    cost: Cost

    def __repr__(self) -> str:
        into = ", ".join(self.receivers[:3]) + (", ..." if len(self.receivers) > 3 else "")
        return f"PathEffects({len(self.senders)} senders into {into}, n={len(self.clean)})"

    def table(self) -> list[Row]:
        """A row a sender, the largest change first; None for one that comes after every receiver."""
        change = self.absolute
        return plain_rows(
            {"sender": self.senders[s], "change": change[s], "relative": self.relative[s]}
            for s in np.argsort(-np.abs(np.nan_to_num(change)), kind="stable").tolist()
        )

    @property
    def absolute(self) -> Float[np.ndarray, "n"]:
        """Mean change of the metric."""
        return self.patched.mean(1) - self.clean.mean()

    @property
    def relative(self) -> Float[np.ndarray, "n"]:
        """Mean change of the metric as a fraction of the clean mean: -.05 is a fall of 5 %."""
        mean = abs(self.clean.mean())
        return self.absolute / mean if mean > 0 else np.full(len(self.senders), np.nan)

    def head_map(self, relative: bool = False) -> Float[np.ndarray, "L H"]:
        """The effects of heads, layer by head; NaN for heads that were not patched or have no path."""
        values = dict(zip(self.senders, self.relative if relative else self.absolute, strict=True))
        heads = range(self.graph.n_heads)
        return np.array(
            [[values.get(Node("head", layer, head).name, math.nan) for head in heads] for layer in range(self.graph.n_layers)]
        )


class Rerunning(TypedDict, total=False):
    """What reacts on the way from senders to receivers."""

    mlps: Annotated[
        Rerun,
        Option("recompute", "`recompute`: MLPs on the way react (as in the paper); `freeze`: direct edges alone."),
    ]
    norms: Annotated[
        Rerun,
        Option(
            "recompute",
            "`recompute` (as in the paper), or `freeze`: norms on the way and into the receivers keep the clean run's scale.",
        ),
    ]


class PathOptions(Working, Ablating, Rerunning, total=False):
    """How paths are patched and measured."""


@takes(PathOptions, ablation="resample")
def path_patch(
    model: Model,
    task: Task,
    senders: str | Sequence[str] = "heads",
    receivers: str | Sequence[str] = "logits",
    *,
    sender_positions: Positions = ALL,
    receiver_positions: Positions = ALL,
    split: str = "train",
    **options: Unpack[PathOptions],
) -> PathEffects:
    """Patch the paths from each sender into a set of receivers, one sender at a time.

    Args:
        senders: names of senders, `heads`, `mlps` or `all`.
        receivers: names of receivers: `logits`, `m3`, `a9.h9<q>`.
        sender_positions: where a sender's output is replaced: `all`, a position (see `tasks/roles.py`), or several.
        receiver_positions: where the receivers' inputs are set.
        ablation: what a sender's output is replaced with.
        split: `train` or `heldout`.

    Raises:
        UnknownName: a name or a position is not known.
        GraphMismatch: a receiver or sender is not one of this model.
        BadSetting: the model runs through hooks alone, or the ablation replaces patterns.
        BadTask: corrupted prompts are needed and missing, or a position lies outside a prompt.
    """
    given: Any = options
    patching = Patching(model, get_ablation(given["ablation"]), task.train, memory=given["memory"])
    metric = metric_for(model, task, given["metric"])
    paths = PathPatching(patching, patching.hold_share(task.split(split)), metric, given["mlps"], given["norms"])
    return paths.effects(senders, receivers, sender_positions, receiver_positions, given["progress"])


class PathPatching:
    """Path patching on examples held in memory: any number of maps from the same runs of the model.

    Args:
        patching: the model under an ablation.
        chunks: the examples.
        metric: what is measured.
        mlps, norms: as in `path_patch`.
    """

    def __init__(
        self, patching: Patching, chunks: Sequence[Chunk], metric: Metric, mlps: Rerun = "recompute", norms: Rerun = "recompute"
    ) -> None:
        for name, value in (("mlps", mlps), ("norms", norms)):
            if value not in ("recompute", "freeze"):
                raise UnknownName(f"value of {name}", str(value), ("recompute", "freeze"))
        components_of(patching.model, "path patching")
        if patching.ablation.target == "pattern":
            raise BadSetting("path patching replaces what a sender writes: ablation.target=pattern cannot be used")
        self.patching, self.chunks, self.metric = patching, chunks, metric
        self.mlps: Rerun = mlps
        self.norms: Rerun = norms
        self.graph = patching.graph

    def effects(
        self,
        senders: str | Sequence[str] = "heads",
        receivers: str | Sequence[str] = "logits",
        sender_positions: Positions = ALL,
        receiver_positions: Positions = ALL,
        progress: bool = False,
    ) -> PathEffects:
        """One map; arguments as in `path_patch`."""
        before = Cost(**vars(self.patching.cost))
        names = sender_names(self.graph, senders)
        chosen = [self.graph.sender_index[name] for name in names]
        ends = receiver_indices(self.graph, receivers)
        first_after = int(self.graph.n_upstream[max(ends)])
        before_ends = [sender for sender in chosen if sender < first_after]
        bar = progress_bar(len(before_ends) * len(self.chunks), "path patching", "path", progress)
        parts: list[Tensor] = []
        clean: list[Tensor] = []
        for chunk in self.chunks:
            held, replaced = (positions_mask(chunk.batch, at) for at in (receiver_positions, sender_positions))
            run = PathRun(self.patching.model, chunk, PathTarget(tuple(ends), held, replaced, self.mlps, self.norms))
            clean.append(self._values(run, run.run.residual())[0])
            parts.append(self._patched(run, before_ends, bar))
            self.patching.cost.circuit_runs += 1
            self.patching.cost.node_evaluations += run.node_evaluations * chunk.weight
        bar.close()
        share = self.chunks[0].share
        patched = gathered(torch.cat(parts, dim=1), share, "patched paths", axis=1).double().cpu().numpy()
        unpatched = gathered(torch.cat(clean), share, "clean runs").double().cpu().numpy()
        rows = np.full((len(chosen), patched.shape[1]), np.nan)
        rows[[place for place, sender in enumerate(chosen) if sender < first_after]] = patched
        self.patching.cost.candidates += len(before_ends)
        cost = Cost(**{name: value - getattr(before, name) for name, value in vars(self.patching.cost).items()})
        ends_by_name = tuple(self.graph.receivers[one].name for one in ends)
        return PathEffects(self.graph, ends_by_name, tuple(names), unpatched, rows, cost)

    def _patched(self, run: PathRun, senders: list[int], bar: tqdm) -> Float[Tensor, "n B"]:
        model, chunk = self.patching.model, run.chunk
        most = rows_in(model, self.patching.budget - self.held_bytes(run), *self.row_size(run))
        found = [torch.zeros(0, chunk.batch.n_examples, device=model.device, dtype=model.dtype)]
        for start in range(0, len(senders), most):
            batch = senders[start : start + most]
            found.append(self._values(run, run.residuals(batch)))
            bar.update(len(batch))
        return torch.cat(found)

    def row_size(self, run: PathRun) -> tuple[int, int]:
        """What patching one sender takes: bytes, its logits among them, and tokens that change."""
        model = self.patching.model
        logits = COPIES_OF_LOGITS * n_logits(model, [run.chunk], self.metric, in_blocks=False) * max(4, model.dtype.itemsize)
        size, n_changed = run.row_size()
        return size + logits, n_changed

    def held_bytes(self, run: PathRun) -> int:
        """What is held between senders: the examples and the clean run."""
        return run.held_bytes() + storage_bytes(tensor for chunk in self.chunks for tensor in chunk.tensors())

    def _values(self, run: PathRun, final: Float[Tensor, "C Nr D"]) -> Float[Tensor, "C B"]:
        """The metric of every row, example by example."""
        return of_columns(run.chunk.batch, run.chunk.labels, partial(run.logits, final), self.metric)


def positions_mask(batch: PromptBatch, positions: Positions) -> Bool[Tensor, "B T"]:
    """True at these positions of every prompt."""
    if positions == ALL:
        return batch.is_token
    mask = torch.zeros_like(batch.is_token)
    for name in [positions] if isinstance(positions, str | int) else positions:
        mask[torch.arange(batch.n_examples, device=mask.device), batch.position(name)] = True
    return mask


def sender_names(graph: ComputationGraph, senders: str | Sequence[str]) -> list[str]:
    """Names of senders in topological order, from `heads`, `mlps`, `all`, one name or several.

    Raises:
        GraphMismatch: one of them is no sender of this graph.
    """
    kinds = {"heads": ("head",), "mlps": ("mlp",), "all": ("head", "mlp")}
    if isinstance(senders, str) and senders in kinds:
        return [node.name for node in graph.senders if node.kind in kinds[senders]]
    names = [senders] if isinstance(senders, str) else list(senders)
    for name in names:
        if name not in graph.sender_index:
            raise GraphMismatch(f"'{name}' is not a sender of this graph ({graph.describe()}); senders are written a0.h1, m2")
    return sorted(set(names), key=lambda name: graph.sender_index[name])


def receiver_indices(graph: ComputationGraph, receivers: str | Sequence[str]) -> list[int]:
    """Indices of receivers, in topological order.

    Raises:
        GraphMismatch: one of them is no receiver of this graph.
    """
    names = [receivers] if isinstance(receivers, str) else list(receivers)
    if not names:
        raise BadSetting("path patching needs at least one receiver, such as logits")
    for name in names:
        if name not in graph.receiver_index:
            hint = "a head is named with its input" if name in graph.heads else "receivers are written"
            raise GraphMismatch(f"'{name}' is not a receiver of this graph ({graph.describe()}); {hint}: a1.h0<q>, m2, logits")
    return sorted({graph.receiver_index[name] for name in names})
