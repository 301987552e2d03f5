"""What a tokenizer makes of text that follows other text: tasks ask it which words and numbers they can use."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens_after(context: str, texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[int, ...] | None]:
    """The tokens of each text where it follows the context.

    Args:
        context: what stands before each text; not empty, since some tokenizers treat the beginning of a text by itself.
        texts: the texts, with the space they begin with, if any.
        tokenizer: the model's tokenizer.

    Returns:
        For each text its token ids; None if it merges with the end of the context or holds a word unknown to the tokenizer.
    """
    if not texts:
        return []
    joined = [context, *(context + text for text in texts)]
    before, *after = tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    tokens: list[tuple[int, ...] | None] = []
    for ids in after:
        tail = tuple(ids[len(before) :])
        tokens.append(tail if ids[: len(before)] == before and unknown not in tail else None)
    return tokens
