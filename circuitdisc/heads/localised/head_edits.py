"""Edits of heads that can be learned, kept in a file, and made again: offsets, mixtures with a vector, scaled attention.

    offset       z + v at every token: a vector for each head is added to its pattern-weighted values z, before W_O (LoFiT)
    scale        z * (1 + v) at every token: LoFiT's first step, which ranks heads
    inject       (1 - a) * z + a * v where the last answer is read: a head's value is mixed with a vector (soft injection)
    first_token  the head's attention to the first token is multiplied by a factor, at every query, and renormalised
                 (ZeroTuning)

Everything behind an edited head sees the change.

Source: Yin, Ye and Durrett 2024, "LoFiT: Localized Fine-tuning on LLM Representations" (https://arxiv.org/abs/2406.01563);
Park and Rhee 2025, "Soft Injection of Task Embeddings Outperforms Prompt-Based In-Context Learning"
(https://arxiv.org/abs/2507.20906); Han et al. 2025, "ZeroTuning" (https://arxiv.org/abs/2505.11739).

Shape letters: n edited heads, K head width, H heads, B examples, T positions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.engine.changed_heads import Ready, changed_logits, hold
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.forward import Hooks
from circuitdisc.engine.path_effects import ALL, Positions, positions_mask
from circuitdisc.errors import BadFile, BadSetting, GraphMismatch
from circuitdisc.files import write_bytes
from circuitdisc.graph import ComputationGraph, Node
from circuitdisc.metrics import Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.schemas import validate
from circuitdisc.tasks.base import Example

KINDS = ("offset", "scale", "inject", "first_token")
FORMAT = "circuitdisc.head_edit"


@dataclass(frozen=True, eq=False)
class HeadEdit:
    """What is done to some heads.

    Args:
        kind: `offset`, `scale`, `inject` or `first_token`.
        heads: their names, `a3.h1`. Length n.
        vectors: a row for each head; None for `first_token`. [n, K]
        shares: for `inject`, the share a of the vector, from 0 to 1. [n]
        factor: for `first_token`, what the attention to the first token is multiplied by, from 0.

    Raises:
        UnknownName: there is no such kind.
        BadSetting: a part that the kind needs is missing or of another length, or the factor is negative.
    """

    kind: str
    heads: tuple[str, ...]
    vectors: Float[Tensor, "n K"] | None = None
    shares: Float[Tensor, "n"] | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise BadSetting(f"heads={list(self.heads)} cannot be edited: name at least one, and each once")
        needs = {"vectors": self.kind != "first_token", "shares": self.kind == "inject"}
        for name, needed in needs.items():
            rows: Tensor | None = getattr(self, name)
            if needed and (rows is None or len(rows) != len(self.heads)):
                raise BadSetting(f"an edit of kind '{self.kind}' needs {name} with a row for each of {len(self.heads)} heads")
        if self.kind == "first_token" and (self.factor is None or not 0 <= self.factor < float("inf")):
            raise BadSetting(f"factor={self.factor!r} cannot be used: give a finite number from 0")

    def check(self, model: Model) -> None:
        """The model has these heads, of this width.

        Raises:
            GraphMismatch: it has not.
        """
        for name in self.heads:
            model.graph.parse_head(name)
        if self.vectors is not None and self.vectors.shape[1] != model.backend.d_head:
            raise GraphMismatch(
                f"the edit's vectors are {self.vectors.shape[1]} wide, and heads of {model.name} {model.backend.d_head}: it "
                "was learned in another architecture"
            )

    def first_layer(self, graph: ComputationGraph) -> int:
        """The first layer that it changes."""
        places = graph.heads
        return min(places[name][0] for name in self.heads)

    @property
    def positions(self) -> Positions:
        """Where it changes heads."""
        return "end" if self.kind == "inject" else ALL

    def to(self, model: Model) -> "HeadEdit":
        """In the model's dtype, on its device."""
        vectors, shares = (
            None if tensor is None else tensor.to(model.device, model.dtype) for tensor in (self.vectors, self.shares)
        )
        return HeadEdit(self.kind, self.heads, vectors, shares, self.factor)

    def _here(self, layer: int) -> tuple[list[int], list[int]]:
        """Rows of the edited heads of a layer, and their numbers."""
        nodes = [Node.parse(name) for name in self.heads]
        rows = [row for row, node in enumerate(nodes) if node.layer == layer]
        return rows, [nodes[row].head for row in rows]

    def hooks(self, ready: Ready) -> Hooks:
        """The edit as hooks on z, or on the patterns."""
        if self.kind == "first_token":
            return {"pattern": partial(self._weigh_first, is_first=positions_mask(ready.chunk.batch, "first")[:, None, :])}
        return {"z": partial(self._change_z, at_end=ready.places("end") if self.kind == "inject" else None)}

    def _change_z(
        self, layer: int, z: Float[Tensor, "H B T K"], at_end: Bool[Tensor, "B T"] | None
    ) -> Float[Tensor, "H B T K"]:
        rows, heads = self._here(layer)
        if not rows:
            return z
        assert self.vectors is not None, "checked when it was made"
        live, vector = z[heads], self.vectors[rows][:, None, None, :]
        if self.kind == "offset":
            changed = live + vector
        elif self.kind == "scale":
            changed = live * (1 + vector)
        else:
            assert self.shares is not None, "checked when it was made"
            assert at_end is not None, "where the vector is mixed in"
            changed = live + self.shares[rows][:, None, None, None] * at_end[..., None] * (vector - live)
        return z.index_copy(0, torch.tensor(heads, device=z.device), changed)

    def _weigh_first(
        self, layer: int, pattern: Float[Tensor, "H B T T2"], is_first: Bool[Tensor, "B 1 T2"]
    ) -> Float[Tensor, "H B T T2"]:
        _, heads = self._here(layer)
        if not heads:
            return pattern
        assert self.factor is not None, "checked when it was made"
        weighed = torch.where(is_first, pattern[heads] * self.factor, pattern[heads])
        total = weighed.sum(-1, keepdim=True)  # 0 where a query sees the first token alone and the factor is 0: left as it is
        scaled = torch.where(total > 0, weighed / total.where(total > 0, 1.0), pattern[heads])
        return pattern.index_copy(0, torch.tensor(heads, device=pattern.device), scaled)

    # --- the file -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        vectors, shares = (None if part is None else part.tolist() for part in (self.vectors, self.shares))
        return {"kind": self.kind, "heads": list(self.heads), "vectors": vectors, "shares": shares, "factor": self.factor}

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: torch.dtype = torch.float32) -> "HeadEdit":
        """The inverse of `to_dict`.

        Raises:
            BadFile: it is none.
        """
        given = validate(_EditLine, data, "an edit of heads")
        vectors, shares = (
            None if values is None else torch.tensor(values, dtype=dtype) for values in (given.vectors, given.shares)
        )
        return cls(given.kind, given.heads, vectors, shares, given.factor)

    def save(self, path: str | Path) -> None:
        """Write as safetensors, beside the target first, then renamed.

        Raises:
            BadRun: the file cannot be written.
        """
        from safetensors.torch import save

        path = Path(path)
        tensors = {"vectors": self.vectors, "shares": self.shares}
        whole = {name: part.detach().cpu().contiguous() for name, part in tensors.items() if part is not None}
        if self.factor is not None:
            whole["factor"] = torch.tensor([self.factor], dtype=torch.float64)
        write_bytes(path, save(whole, {"format": FORMAT, "kind": self.kind, "heads": json.dumps(self.heads)}))

    @classmethod
    def load(cls, path: str | Path) -> "HeadEdit":
        """Read an edit.

        Raises:
            BadFile: the file is missing, cut short, or holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise BadFile(f"{path} is not a whole safetensors file ({error}); is it missing, or was it cut short?") from error
        if about.get("format") != FORMAT:
            raise BadFile(f"{path} holds no edit of heads: give a file that `circuitdisc localise` wrote")
        try:
            factor = float(tensors["factor"][0]) if "factor" in tensors else None
            return cls(about["kind"], tuple(json.loads(about["heads"])), tensors.get("vectors"), tensors.get("shares"), factor)
        except (KeyError, ValueError, BadSetting) as error:
            raise BadFile(f"{path} holds no whole edit of heads: {error}") from error


@dataclass
class _EditLine:
    """An edit as JSON has it."""

    kind: str
    heads: tuple[str, ...]
    vectors: Float[np.ndarray, "n K"] | None
    shares: Float[np.ndarray, "n"] | None
    factor: float | None


def evaluate_edit(
    model: Model,
    examples: Sequence[Example],
    edit: HeadEdit | None,
    metrics: Sequence[str | Metric],
    *,
    batch: int = 32,
    memory: str | int = "4GiB",
) -> dict[str, Float[Tensor, "B"]]:
    """Metric values with heads edited, example by example; without an edit those of the model itself.

    Raises:
        BadSetting: the model runs by hooks.
        GraphMismatch: the edit belongs to another architecture.
    """
    if edit is not None:
        edit.check(model)
    first = model.graph.n_layers if edit is None else edit.first_layer(model.graph)
    at, loss = ALL if edit is None else edit.positions, get_metric("log_prob")
    batches = hold(model, Ablation("zero"), examples, loss, batch=batch, first=first, positions=at, memory=memory)
    return edit_values(model, [ready for pieces in batches for ready in pieces], edit, metrics)


@torch.no_grad()
def edit_values(
    model: Model, examples: Sequence[Ready], edit: HeadEdit | None, metrics: Sequence[str | Metric]
) -> dict[str, Float[Tensor, "B"]]:
    """As `evaluate_edit`, on examples made ready."""
    change = None if edit is None else edit.to(model)
    measures = [get_metric(metric) for metric in metrics]
    by_metric: dict[str, list[Tensor]] = {metric.name: [] for metric in measures}
    for ready in examples:
        for name, values in of_logits(
            ready.chunk.batch, ready.chunk.labels, changed_logits(model, ready, change), measures
        ).items():
            by_metric[name].append(values)
    return {name: torch.cat(parts) for name, parts in by_metric.items()}
