"""What a task needs to know of a model."""

from typing import TYPE_CHECKING, Protocol

from circuitdisc.errors import BadTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TaskModel(Protocol):
    """The part of a model that tasks look at: its name, its tokenizer and three sizes."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer; None for a model of bare token ids."""
        ...

    @property
    def d_vocab(self) -> int:
        """Number of input tokens."""
        ...

    @property
    def d_vocab_out(self) -> int:
        """Number of output tokens."""
        ...

    @property
    def n_ctx(self) -> int:
        """Longest prompt, in tokens."""
        ...


def need_tokenizer(model: TaskModel, task: str) -> "PreTrainedTokenizerBase":
    """The model's tokenizer.

    Raises:
        BadTask: the model has none.
    """
    if model.tokenizer is None:
        raise BadTask(
            f"task '{task}' is written in text, but model '{model.name}' has no tokenizer: "
            "use task 'induction', or give token ids in a file of your own"
        )
    return model.tokenizer
