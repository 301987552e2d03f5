"""Draw prompts until enough of them can be used with a tokenizer; the others are counted in a note."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Example, TextExample
from circuitdisc.tasks.encode import encode_fitting
from circuitdisc.tasks.notes import note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = 20  # prompts drawn at a time where some of the first ones cannot be used


def draw_examples(
    draw: Callable[[], TextExample],
    tokenizer: "PreTrainedTokenizerBase",
    n: int,
    task: str,
    *,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> list[Example]:
    """Examples of `n` different clean prompts, in the order in which they are drawn.

    Args:
        draw: draws one example at random.
        tokenizer: the model's tokenizer.
        n: examples wanted.
        task: the task that draws, for messages.
        first_token: score the first token of an answer of several; else such an answer cannot be used.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        BadTask: too few different prompts can be drawn, or none of those drawn can be used.
        BadSetting: `prepend_bos` is set and the tokenizer has no BOS token.
    """
    drawn: set[str] = set()
    usable: list[Example] = []
    while len(usable) < n:
        fresh = _draw_new(draw, max(n - len(usable), LEAST) if drawn else n, drawn)
        if not fresh:
            raise BadTask(
                f"task '{task}' has about {len(usable)} different prompts for this model's tokenizer with these settings, "
                f"but {n} are asked for (n and n_heldout together): ask for fewer, or widen the task's settings"
            )
        usable += encode_fitting(fresh, tokenizer, len(fresh), first_token=first_token, prepend_bos=prepend_bos)
    if len(usable) < len(drawn):
        note(
            f"task '{task}': {len(drawn) - len(usable)} of {len(drawn)} prompts drawn cannot be used with this model's "
            "tokenizer (a corrupted prompt of another length, or answers that one token does not tell apart) and are left out"
        )
    return usable[:n]


def _draw_new(draw: Callable[[], TextExample], n: int, drawn: set[str]) -> list[TextExample]:
    """Up to `n` examples whose clean prompts were not drawn before; they are added to `drawn`."""
    fresh: list[TextExample] = []
    for _ in range(20 * n + 100):
        if len(fresh) == n:
            break
        example = draw()
        if example.clean not in drawn:
            drawn.add(example.clean)
            fresh.append(example)
    return fresh
