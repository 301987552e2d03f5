"""How heads change along a ladder of checkpoints, on the same prompts:

    attention    from one named position to another (the study's attention to the answer token c)
    roles        first-token, self, previous-token, ... heads, and how many of each there are
    weights      relative change of W_Q W_K^T and of W_V W_O (see weight_change.py)
    attribution  what a head adds directly to the logit difference
    cosine       between what a head writes in the checkpoint and in the reference, token by token

The reference of each checkpoint is the first of the ladder, or the one before it. One checkpoint is in memory at a time; of the
reference its head weights and head outputs are kept.

Source: the CS224N study of the Transitive Property Problem (attention to the answer token, counts of head roles).

Shape letters: C checkpoints, L layers, H heads, B examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from typing_extensions import Unpack

from circuitdisc.checkpoints.listing import check_same, load, read_checkpoints
from circuitdisc.checkpoints.weight_change import PRODUCTS, HeadWeights, head_weights, weight_change
from circuitdisc.checks import check_choice
from circuitdisc.engine.head_outputs import HeadOutputs, head_outputs
from circuitdisc.engine.measuring import examples_of, mean_intervals
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting
from circuitdisc.heads.attention import attention_to
from circuitdisc.heads.base import check_wrong
from circuitdisc.heads.logits import logit_attribution
from circuitdisc.heads.roles import HeadRoles, RoleRules, head_roles
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import progress_bar
from circuitdisc.results import OverExamples, Row, plain_rows
from circuitdisc.stats import Partition, partition_of
from circuitdisc.tasks import load_task
from circuitdisc.tasks.base import Example, Task

Against = Literal["first", "previous"]


@dataclass(frozen=True, repr=False)
class Drift(OverExamples):
    """What every head does in every checkpoint.

    Args:
        checkpoints: names, in the order of the ladder.
        references: for each checkpoint the one that it is compared with; the first has none.
        heads: names, layer by layer.
        attention: from `query` to `key`. [C, L, H, B]
        attribution: what a head adds to logit(right) - logit(wrong), example by example. [C, L, H, B]
        logit_diff: the checkpoint's own logit difference. [C, B]
        roles: the head roles of each checkpoint. Length C.
        weights: relative change by product, `qk` and `ov`; NaN for the first. [C, L, H]
        cosine: mean over an example's tokens; NaN for the first, and where a head writes nothing. [C, L, H, B]
        at: the tokens of `cosine`: `all`, or a position.
        against: `first` or `previous`.
    """

    FORMAT = "circuitdisc.drift"
    KEYS = (
        "checkpoints", "references", "heads", "attention=attention_means", "attribution", "logit_diff", "roles", "weights",
        "cosine=cosine_means", "query", "key", "at", "against", "n", "split", "confidence", "by_checkpoint=ladder",
    )  # fmt: skip

    checkpoints: tuple[str, ...]
    references: tuple[str | None, ...]
    heads: tuple[str, ...]
    attention: Float[np.ndarray, "C L H B"]
    attribution: Float[np.ndarray, "C L H B"]
    logit_diff: Float[np.ndarray, "C B"]
    roles: tuple[HeadRoles, ...]
    weights: Mapping[str, Float[np.ndarray, "C L H"]]
    cosine: Float[np.ndarray, "C L H B"]
    query: str
    key: str
    at: str
    against: str
    split: str
    confidence: float
    seed: int
    over: Partition | None = None

    @property
    def attention_means(self) -> dict[str, Float[np.ndarray, "C L H"]]:
        """Mean attention with its intervals."""
        low, high = (np.clip(end, 0.0, 1.0) for end in mean_intervals(self.attention, self.over, self.confidence, self.seed))
        return {"mean": self.attention.mean(-1), "low": low, "high": high}

    @property
    def cosine_means(self) -> Float[np.ndarray, "C L H"]:
        """Mean cosine over the examples where it is defined."""
        return _mean_defined(self.cosine)

    @property
    def ladder(self) -> list[Row]:
        """The lines of `by_checkpoint`."""
        return self.by_checkpoint()

    def change(self, values: Float[np.ndarray, "C L H B"]) -> Float[np.ndarray, "C L H B"]:
        """Values minus those of each checkpoint's reference, example by example; NaN for the first."""
        change = np.full_like(values, np.nan)
        for place, reference in enumerate(self.references):
            if reference is not None:
                change[place] = values[place] - values[self._reference(place)]
        return change

    def _reference(self, place: int) -> int:
        return 0 if self.against == "first" else place - 1

    def by_checkpoint(self) -> list[Row]:
        """A line a checkpoint: mean attention over heads, the most attentive head, and how many heads hold each role."""
        rows: list[Row] = []
        over_heads = self.attention.mean(axis=(1, 2))
        low, high = (np.clip(end, 0.0, 1.0) for end in mean_intervals(over_heads, self.over, self.confidence, self.seed))
        for place, name in enumerate(self.checkpoints):
            means = self.attention[place].mean(-1).ravel()
            rows.append(
                {
                    "checkpoint": name,
                    "logit difference": self.logit_diff[place].mean(),
                    f"attention {self.query} to {self.key}": over_heads[place].mean(),
                    "low": low[place],
                    "high": high[place],
                    "most attentive": self.heads[int(means.argmax())],
                    "its attention": means.max(),
                    **{role: len(self.roles[place].heads(role)) for role in self.roles[place].roles},
                    "n": self.n,
                }
            )
        return plain_rows(rows)

    def table(self, place: int = -1) -> list[Row]:
        """A line a head of one checkpoint, the largest change of attribution (of either sign) first.

        Args:
            place: of the checkpoint in the ladder.
        """
        place = range(len(self.checkpoints))[place]
        attention, attribution = (self.change(values)[place] for values in (self.attention, self.attribution))
        ends = {
            name: mean_intervals(values.reshape(-1, self.n), self.over, self.confidence, self.seed)
            for name, values in (("attention", attention), ("attribution", attribution))
        }
        means = attribution.mean(-1).ravel()
        roles = [
            ", ".join(role for role in self.roles[place].roles if head in self.roles[place].heads(role)) for head in self.heads
        ]
        cosine = _mean_defined(self.cosine[place]).ravel()
        return plain_rows(
            {
                "head": self.heads[h],
                "adds": self.attribution[place].mean(-1).ravel()[h],
                "change": means[h],
                "change low": ends["attribution"][0][h],
                "change high": ends["attribution"][1][h],
                f"attention to {self.key}": self.attention[place].mean(-1).ravel()[h],
                "its change": attention.mean(-1).ravel()[h],
                "its low": ends["attention"][0][h],
                "its high": ends["attention"][1][h],
                **{f"{name} moved": self.weights[name][place].ravel()[h] for name in PRODUCTS},
                "cosine": cosine[h],
                "roles": roles[h],
            }
            for h in np.argsort(-np.abs(np.nan_to_num(means)), kind="stable").tolist()
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Every example's values, by name."""
        arrays = {name: getattr(self, name) for name in ("attention", "attribution", "logit_diff", "cosine")}
        return arrays | {f"weights_{name}": values for name, values in self.weights.items()}


@takes(RoleRules)
def drift(
    checkpoints: str | Sequence[str | Model],
    task: Task | Sequence[Example] | Mapping[str, Any],
    *,
    query: str | int = "end",
    key: str | int = "first",
    at: str | int = "all",
    against: Against = "first",
    model_settings: Mapping[str, Any] | None = None,
    **options: Unpack[RoleRules],
) -> Drift:
    """Follow every head along a ladder of checkpoints.

    Args:
        checkpoints: at least two, as `read_checkpoints` takes them (shipped names, folders, hub names, the folder of a
            ladder), or loaded models.
        task: a task, examples, or the settings of a task (`{"name": "tpp", "n": 100}`), which is then drawn with the first
            checkpoint's tokenizer.
        query, key: positions between which attention is measured, as `attention_to` takes them.
        at: the tokens at which outputs are compared: `all`, or a position.
        against: what a checkpoint is compared with: the `first` of the ladder, or the `previous` one.
        model_settings: of `load_model`: dtype, device.
        seed: of the bootstrap, and of the task where it is drawn here.

    Raises:
        BadSetting: there are fewer than two checkpoints, or a number is out of its bounds.
        BadFile: a checkpoint's file is missing.
        BadModel: the checkpoints do not match.
        UnknownName: a checkpoint, role or split is not known.
    """
    check_choice("against", against, ("first", "previous"))
    given: Any = options
    ladder = _ladder(checkpoints)
    measured: list[dict[str, Any]] = []
    names: list[str] = []
    heads: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    references: list[str | None] = []
    reference: tuple[str, HeadWeights, HeadOutputs] | None = None
    common: dict[str, Any] = {name: given[name] for name in ("seed", "memory", "confidence")}
    role_settings: dict[str, Any] = {name: given[name] for name in ("roles", "threshold", "min_share")} | common
    with progress_bar(len(ladder), "drift", "checkpoint", given["progress"]) as bar:
        for checkpoint in ladder:
            model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint, **(model_settings or {}))
            if not examples:
                own = _draw(task, model, given["seed"]) if isinstance(task, Mapping) else task
                examples = examples_of(own, given["split"])
                check_wrong(examples, "logit_diff")
                heads = tuple(model.graph.heads)
            weights = head_weights(components_of(model, "drift", whole=True))
            outputs = head_outputs(model, examples, at, given["memory"])
            figures = {
                "roles": head_roles(model, examples, **role_settings),
                **_now(model, examples, heads, query, key, common),
            }
            measured.append(figures | _changes(weights, outputs, reference, len(examples)))
            names.append(model.name)
            references.append(reference[0] if reference else None)
            if reference is None or against == "previous":
                reference = model.name, weights, outputs
            bar.update(1)
    stacked = {name: np.stack([figures[name] for figures in measured]) for name in measured[0] if name != "roles"}
    return Drift(
        checkpoints=tuple(names),
        references=tuple(references),
        heads=heads,
        attention=stacked["attention"],
        attribution=stacked["attribution"],
        logit_diff=stacked["logit_diff"],
        roles=tuple(figures["roles"] for figures in measured),
        weights={name: stacked[name] for name in PRODUCTS},
        cosine=stacked["cosine"],
        query=str(query),
        key=str(key),
        at=str(at),
        against=against,
        split=given["split"],
        confidence=given["confidence"],
        seed=given["seed"],
        over=partition_of(examples),
    )


def _ladder(checkpoints: str | Sequence[str | Model]) -> Sequence[str | Model]:
    """The checkpoints in order, seen to be there and to fit together."""
    given = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if any(isinstance(checkpoint, Model) for checkpoint in given):
        if len(given) < 2:
            raise BadSetting(f"drift needs at least 2 checkpoints, not {len(given)}")
        check_same(given)
        return given
    return read_checkpoints([str(checkpoint) for checkpoint in given], least=2, what="drift")


def _draw(settings: Mapping[str, Any], model: Model, seed: int) -> Task:
    own = {"seed": seed, **settings}
    return load_task(own.pop("name"), model, **own)


def _now(
    model: Model, examples: Sequence[Example], heads: Sequence[str], query: str | int, key: str | int, common: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What the heads of one checkpoint attend to and add to the logit difference."""
    attention = attention_to(model, examples, query=query, key=key, **common).values
    attributed = logit_attribution(model, examples, **common)
    place = {name: row for row, name in enumerate(attributed.names)}
    added = attributed.values[[place[name] for name in heads]]
    return {"attention": attention, "attribution": added.reshape(attention.shape), "logit_diff": attributed.logit_diff}


def _changes(
    weights: HeadWeights, outputs: HeadOutputs, reference: tuple[str, HeadWeights, HeadOutputs] | None, n: int
) -> dict[str, np.ndarray]:
    """Change of the products, and cosine of the outputs, against the reference."""
    shape = tuple(outputs.values.shape[:2])
    if reference is None:
        return {name: np.full(shape, np.nan) for name in PRODUCTS} | {"cosine": np.full((*shape, n), np.nan)}
    return weight_change(weights, reference[1]) | {"cosine": cosines(outputs, reference[2], n)}


def cosines(new: HeadOutputs, reference: HeadOutputs, n: int) -> Float[np.ndarray, "L H B"]:
    """Cosine of two checkpoints' outputs, averaged over each example's tokens; a token where one is zero does not count."""
    a, b = new.values.double(), reference.values.double()
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    cosine = torch.where(norms > 0, (a * b).sum(-1) / norms, torch.nan).numpy()
    cosines = np.full((*cosine.shape[:2], n), np.nan)
    for example in range(n):
        cosines[..., example] = _mean_defined(cosine[..., new.example == example])
    return cosines


def _mean_defined(values: Float[np.ndarray, "*X B"]) -> Float[np.ndarray, "*X"]:
    """Mean over what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(-1)
    counts = defined.sum(-1)
    return np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
