"""What a kind of ablation answers, and what the engine offers it to do so.

A *site* is where the engine keeps what some senders write in one tensor: all senders together in runs of circuits, the heads
of a layer before W_O or an MLP in attribution. A kind fills every site without knowing which engine asks:

    fit     once, on the reference examples     what the kind learns of them (averages, constants)
    carry   for each batch                      what the senders of every site carry when cut

Shape letters: B examples, T positions, T2 positions attended to, E embedding senders, H heads, h some of them, K head width,
D residual width, s senders of a site, X width of a site (D, or K for heads before W_O), N readings, V vocabulary.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.errors import BadTask
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch

if TYPE_CHECKING:
    from circuitdisc.ablation.settings import Ablation
    from circuitdisc.engine.source import CleanRun

Scope = Literal["group", "position", "dataset"]
Prompts = Literal["clean", "corrupted"]
Target = Literal["output", "pattern"]

Site = Hashable
Write = Callable[[Any, Tensor], object]
"""Takes a site and what its senders carry: [s, B, T, X], axes of size 1 broadcast."""


class Pattern(NamedTuple):
    """The site of a layer's attention patterns, which `target=pattern` asks for. [H, B, T, T2]"""

    layer: int


@dataclass
class Constants:
    """A value for each sender that is the same at every token; what is missing is 0.

    Args:
        embedding: of the embedding's senders. [E, D]
        z: by layer, of its heads before W_O; in models with a norm after attention this holds the norm's scale. [H, K]
        mlp: by layer. [D]
    """

    embedding: Float[Tensor, "E D"] | None = None
    z: Mapping[int, Float[Tensor, "H K"]] = field(default_factory=dict)
    mlp: Mapping[int, Float[Tensor, "D"]] = field(default_factory=dict)


class Source(Protocol):
    """The engine's side: the reference examples, and runs of the model on prompts."""

    model: Model
    examples: Sequence[Example]
    cost: Any
    """Runs of the model are added to its `model_runs` and `backward_runs`."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def longest(self) -> int:
        """Tokens of the longest reference example."""
        ...

    def batches(self) -> Iterator[PromptBatch]:
        """The reference examples, as many at a time as fit in memory."""
        ...

    def clean_runs(self) -> "list[CleanRun]":
        """The same, ready to be run with gradients, for kinds that learn."""
        ...

    def run(self, tokens: Int[Tensor, "B T"], batch: PromptBatch, write: Write) -> None:
        """Run the model on prompts of this batch's shape, and write what stands at every site."""
        ...

    def carry_constants(self, constants: Constants, write: Write) -> None:
        """Write constants to every site."""
        ...


class AblationKind:
    """A kind of ablation, with the settings it was asked for; the base of all.

    The keyword-only parameters of a kind's constructor, each with a default, are its settings (`ablation.steps=...`).

    Args:
        ablation: the settings that all kinds share.
    """

    constant: ClassVar[bool] = False
    """What a sender carries is the same at every token of every example."""
    empties_embedding: ClassVar[bool] = False
    """Without the embedding nothing is left of the residual stream before the first layer."""
    runs_per_example: ClassVar[int] = 0
    """Runs of the model that `carry` makes on each example, for the count of costs."""
    empty_is_corrupted: ClassVar[bool] = False
    """A run of the empty circuit is the model on the corrupted prompts."""
    cancels: ClassVar[str] = ""
    """Why changes cancel in the mean over examples, for a note; empty where nothing says that they do."""

    def __init__(self, ablation: "Ablation") -> None:
        self.ablation = ablation

    @property
    def label(self) -> str:
        """What is printed beside every score."""
        return self.ablation.kind

    @property
    def needs_corrupted(self) -> bool:
        """Every example must have a corrupted prompt."""
        return False

    @property
    def averages(self) -> Scope | None:
        """What is averaged over, for kinds that keep averages of every site."""
        return None

    @property
    def ablates_neurons(self) -> bool:
        """Neurons can be ablated this way: to their average over clean prompts (`averages`), or else to 0."""
        return False

    def tokens(self, batch: PromptBatch) -> Int[Tensor, "B T"]:
        """The prompts whose run, or whose average, cut edges carry.

        Raises:
            BadTask: corrupted prompts are needed, and the task has none.
        """
        if not self.needs_corrupted:
            return batch.clean
        if batch.corrupted is None:
            raise BadTask(
                f"ablation '{self.ablation.label}' needs a corrupted prompt for every example; this task has none. "
                "Add them, or use ablation=mean or ablation=zero"
            )
        return batch.corrupted

    def differs(self, batch: PromptBatch) -> Bool[Tensor, "B T"] | None:
        """The tokens from which on a sender of a causal model may carry another value when cut; None: all of them."""
        return None

    def carries_alike(self, examples: Sequence[Example]) -> bool:
        """What senders carry is the same for all of these, so that it is in memory once and not for each of them."""
        return self.constant

    def fit(self, source: Source) -> Any:
        """What is learnt of the reference examples, for `carry`."""
        return None

    def carry(self, fitted: Any, source: Source, batch: PromptBatch, write: Write) -> None:
        """Write what the senders of every site carry when cut; a pattern that is not written is 0.

        Args:
            fitted: what `fit` gave.
        """
        source.carry_constants(self.constants(fitted, source), write)

    def constants(self, fitted: Any, source: Source) -> Constants:
        """What the senders carry, for kinds whose values are the same at every token."""
        return Constants()
