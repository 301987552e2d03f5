"""Attention patterns of the uncut model, as many examples at a time as fit.

Shape letters: L layers, H heads, B examples, T positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.ablation import Prompts
from circuitdisc.engine.backends import full_run
from circuitdisc.engine.full_run import FullRun
from circuitdisc.engine.memory import examples_that_fit, parse_memory
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadTask
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, PromptBatch, collate

COPIES_OF_PATTERNS = 2  # the patterns, and their scores in passing


@dataclass(frozen=True)
class Attended:
    """What every head attends to on some of the examples.

    Args:
        batch: the padded prompts.
        tokens: those of them that were run. [B, T]
        patterns: by layer, [H, B, T, T2]: query T attends to key T2.
        run: all that the run gave.
    """

    batch: PromptBatch
    tokens: Int[Tensor, "B T"]
    patterns: dict[int, Float[Tensor, "H B T T2"]]
    run: FullRun


def attention_patterns(
    model: Model,
    examples: Sequence[Example],
    prompts: Prompts = "clean",
    memory: str | int = "4GiB",
    padding_side: str = "right",
) -> Iterator[Attended]:
    """Run the model and keep its attention patterns, chunk by chunk.

    Args:
        prompts: which prompts are run: `clean` or `corrupted`.
        memory: budget for activations, as `8GiB`.

    Raises:
        BadSetting: the model has no fast components.
        BadTask: corrupted prompts are asked for, and an example has none.
    """
    components_of(model, "looking at attention")
    if prompts == "corrupted" and any(example.corrupted is None for example in examples):
        raise BadTask("prompts=corrupted needs a corrupted prompt for every example; this task has examples without")
    for first, last in _chunks(model, examples, parse_memory(memory)):
        batch = collate(examples[first:last], padding_side, model.device)
        tokens = batch.clean
        if prompts == "corrupted":
            assert batch.corrupted is not None, "checked above"
            tokens = batch.corrupted
        run = full_run(model, tokens, batch.is_token, batch.position_ids, keep_patterns=True)
        yield Attended(batch, tokens, run.patterns, run)


def _chunks(model: Model, examples: Sequence[Example], budget: int) -> Iterator[tuple[int, int]]:
    """First and last example of each chunk: senders and patterns share the budget."""
    length, graph = max(len(example) for example in examples), model.graph
    per_example = COPIES_OF_PATTERNS * graph.n_layers * graph.n_heads * length * length * model.dtype.itemsize
    size = max(1, min(examples_that_fit(model, budget // 2, length), budget // 2 // per_example))
    for first in range(0, len(examples), size):
        yield first, min(first + size, len(examples))
